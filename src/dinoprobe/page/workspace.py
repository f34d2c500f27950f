"""What the page works on: the features of a dataset, its labels as they are now, and a model.

Rows never change while the page is open, and are known by the key of their image; labels are what
the file of corrections says. Nothing here writes to the images' own place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.datasets.corrections import State
from dinoprobe.errors import DatasetError
from dinoprobe.page.log import CorrectionLog, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

    from dinoprobe.datasets import DataSettings
    from dinoprobe.encoder import Encoder, EncoderSettings
    from dinoprobe.heads import Novelty
    from dinoprobe.page.fitting import Model, Recipe
    from dinoprobe.types import Features, Sample, Split

    Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the images, the run and the corrections are; `run` is None for images alone."""

    title: str
    data: DataSettings
    encoder: EncoderSettings
    labels: Path
    run: Path | None = None
    store: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Labels as they are at one version of the corrections, row by row."""

    version: int
    labels: npt.NDArray[np.object_]
    dropped: npt.NDArray[np.bool_]


@dataclass(slots=True, kw_only=True)
class Workspace:
    """`features.y` and `splits` are those of the source, or of the run. `model` is what predicts
    now, None where nothing was ever fitted; `first` is the one that the page began with.
    """

    origin: Origin
    features: Features
    samples: Mapping[str, Sample]
    splits: tuple[Split | None, ...]
    encoder: Encoder
    recipe: Recipe
    novelty: Novelty | None = None
    first: Model | None = None
    model: Model | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    busy: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.rows = {key: row for row, key in enumerate(self.features.keys)}
        self.log = CorrectionLog(self.origin.labels, self._base)

    rows: dict[str, int] = field(init=False)
    log: CorrectionLog = field(init=False)
    _standing: Standing | None = field(init=False, default=None)

    def _base(self, key: str) -> State:
        row = self.rows.get(key)
        return State(None if row is None else self.features.y[row])

    def row(self, key: str) -> int:
        """The row of an image. Raises DatasetError for a key that is not in the dataset."""
        found = self.rows.get(key)
        if found is None:
            shown = f"{key[:100]!r}"
            raise DatasetError(f"{shown}: no image of this dataset has this key. Reload the page.")
        return found

    def standing(self) -> Standing:
        """Labels and drops as they are now; the arrays are shared, and not to be changed."""
        version = self.log.version
        if self._standing is None or self._standing.version != version:
            self._standing = self._stand(version)
        return self._standing

    def _stand(self, version: int) -> Standing:
        labels = self.features.y.copy()
        dropped = np.zeros(len(labels), dtype=bool)
        for key in {change.key for change in self.log.refresh()}:
            row = self.rows.get(key)
            if row is not None:
                state = self.log.state(key, self.features.hashes[row])
                labels[row], dropped[row] = state.label, state.dropped
        return Standing(version, labels, dropped)

    def wanted(self, key: str, old: State, new: State) -> Wanted:
        """A change of one image of this dataset. Raises DatasetError."""
        return Wanted(key, self.features.hashes[self.row(key)], old, new)

    def is_test(self) -> npt.NDArray[np.bool_]:
        """Which rows are never trained on."""
        return np.array([part == "test" for part in self.splits], dtype=bool)

    def training_rows(self, standing: Standing) -> Rows:
        """Rows with a label that may be trained on: not those of the test part, and none that came
        after the split and is a copy of a test image.
        """
        labelled = np.array([label is not None for label in standing.labels], dtype=bool)
        hashes = self.features.hashes
        tested = {hashes[row] for row in np.flatnonzero(self.is_test())}
        copies = np.array(
            [
                part is None and digest in tested
                for part, digest in zip(self.splits, hashes, strict=True)
            ],
            dtype=bool,
        )
        return np.flatnonzero(labelled & ~standing.dropped & ~self.is_test() & ~copies)

    def test_rows(self, standing: Standing | None = None) -> Rows:
        """Rows of the test part with a label: as the source has it, or as it stands."""
        labels = self.features.y if standing is None else standing.labels
        labelled = np.array([label is not None for label in labels], dtype=bool)
        kept = labelled & self.is_test()
        return np.flatnonzero(kept if standing is None else kept & ~standing.dropped)

    def labelled(self, rows: Rows, standing: Standing) -> Features:
        """Features of some rows with their labels as they stand."""
        chosen = self.features.select(rows)
        return replace(chosen, y=standing.labels[rows])

    def classes(self, standing: Standing) -> list[str]:
        """Labels that there are, and those that the model knows, sorted."""
        names: set[str] = {str(label) for label in standing.labels if label is not None}
        names |= {str(label) for label in self.features.y if label is not None}
        if self.model is not None:
            names |= set(self.model.classes)
        return sorted(names)

    def corrected(self, standing: Standing, rows: Sequence[int] | Rows) -> int:
        """How many of some rows have another label than the source, or are dropped."""
        return sum(
            bool(standing.dropped[row]) or standing.labels[row] != self.features.y[row]
            for row in rows
        )
