"""The images that the gate shows: the run's own test part, filled up with rendered photographs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import DinoprobeError
from dinoprobe.preprocess import decode, prepare, prepare_plain
from dinoprobe.preprocess.resize import shrink_factor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.encoder import Encoder
    from dinoprobe.preprocess import Preprocessing
    from dinoprobe.types import Sample

MIN_IMAGES = 64
MAX_IMAGES = 256
_BATCH = 16
_PIECE = 64
_SEED = 0


@dataclass(frozen=True)
class Pictures:
    """Encoded files or pixels, with a name each; `tested` of them are the run's test images."""

    keys: tuple[str, ...]
    contents: tuple[Any, ...]
    labels: tuple[str | None, ...]
    tested: int
    preprocessing: Preprocessing
    _rows: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def described(self) -> str:
        """What they are, in words."""
        rendered = len(self) - self.tested
        parts = [f"{self.tested} of the run's test part"] if self.tested else []
        return " and ".join([*parts, f"{rendered} rendered"] if rendered else parts)

    def decoded(self, *, whole: bool = False) -> Iterator[npt.NDArray[np.uint8]]:
        """Each as `(height, width, 3)`, large JPEGs at a reduced scale as `prepare` reads them, or
        `whole`.
        """
        shrink = None if whole else partial(shrink_factor, preprocessing=self.preprocessing)
        for content in self.contents:
            yield decode(content, bands=self.preprocessing.bands, shrink=shrink).pixels

    @cached_property
    def prepared(self) -> npt.NDArray[Any]:
        """All of them `(n, 3, height, width)`, as the encoder takes them."""
        return np.stack([prepare(c, self.preprocessing).numpy() for c in self.contents])

    @cached_property
    def prepared_plainly(self) -> npt.NDArray[Any]:
        """As `prepared`, resized without torch."""
        return np.stack([prepare_plain(c, self.preprocessing) for c in self.contents])

    def features(self, encoder: Encoder) -> npt.NDArray[np.float32]:
        """Their rows `(n, dimension)`, by the path that `predict` takes; computed once."""
        if encoder.fingerprint not in self._rows:
            import torch

            batches = [self.prepared[i : i + _BATCH] for i in range(0, len(self), _BATCH)]
            rows = [encoder.encode(torch.from_numpy(batch)) for batch in batches]
            self._rows[encoder.fingerprint] = np.concatenate(rows)
        return self._rows[encoder.fingerprint]


def pictures(classifier: ImageClassifier, run: Path | None) -> Pictures:
    """From the test part of `run`, where its images are there, and rendered where they are few.

    More than 256 test images are not shown: evenly spaced ones are.
    """
    preprocessing = classifier.encoder.preprocessing
    tested = spaced(samples_of(run, "test"), MAX_IMAGES) if run is not None else []
    found = list(_usable(tested, preprocessing))
    rendered = [] if len(found) >= MIN_IMAGES else _rendered(MIN_IMAGES - len(found))
    return Pictures(
        keys=(*(key for key, _, _ in found), *(f"rendered-{i}" for i in range(len(rendered)))),
        contents=(*(content for _, content, _ in found), *rendered),
        labels=(*(label for _, _, label in found), *(None for _ in rendered)),
        tested=len(found),
        preprocessing=preprocessing,
    )


def pieces(samples: Iterable[Sample], preprocessing: Preprocessing) -> Iterator[Pictures]:
    """All of them that can be used, 64 at a time."""
    usable = _usable(samples, preprocessing)
    while piece := list(islice(usable, _PIECE)):
        keys, contents, labels = zip(*piece, strict=True)
        yield Pictures(keys, contents, labels, len(piece), preprocessing)


def samples_of(run: Path, part: str) -> list[Sample]:
    """The samples of a part of the run, with the run's labels; none where the images have gone."""
    from dinoprobe.run import known_rows, own_data

    try:
        rows = {key: row for key, row in known_rows(run).items() if row.split == part}
        found = [sample for sample in own_data(run).open().samples if sample.key in rows]
    except (DinoprobeError, OSError):
        return []
    return [sample._replace(label=rows[sample.key].label) for sample in found]


def spaced(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` of them, evenly spaced."""
    if len(samples) <= count:
        return samples
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).astype(int)]


def _usable(
    samples: Iterable[Sample], preprocessing: Preprocessing
) -> Iterator[tuple[str, Any, str | None]]:
    """What can be read and decoded; the rest is no matter of an export."""
    for sample in samples:
        try:
            content = sample.source.read()
            prepare(content, preprocessing)
        except (DinoprobeError, OSError):
            continue
        yield sample.key, content, sample.label


def _rendered(count: int) -> list[bytes]:
    from dinoprobe.bench.synthetic import photos

    return list(islice(photos(_SEED), count))
