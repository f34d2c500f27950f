"""What every row of a table was scored by: rows by other terms are scored again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.files import to_json
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier

METADATA_KEY = b"dinoprobe.predictions"
FORMAT = "dinoprobe-predictions/1"
_NAMES = {
    "format": "format",
    "classifier": "classifier",
    "top_k": "--top-k",
    "abstain_below": "--abstain-below",
    "all_probabilities": "--all-probabilities",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """`classifier` is its digest; `classes` are in the order of the column `probabilities`."""

    classifier: str
    classes: tuple[str, ...]
    fingerprint: str
    top_k: int = 5
    abstain_below: float | None = None
    all_probabilities: bool = False
    format: str = FORMAT

    def metadata(self) -> dict[bytes, bytes]:
        """As the schema of a table keeps it, with the version that wrote it."""
        return {METADATA_KEY: to_json(asdict(self) | {"version": own_version()})}

    def differs(self, stored: Mapping[str, Any]) -> str | None:
        """What rows with the `stored` terms were scored by otherwise, or None."""
        values = asdict(self)
        return next((_NAMES[key] for key in _NAMES if stored.get(key) != values[key]), None)


def classifier_digest(classifier: ImageClassifier) -> str:
    """SHA-256 in hex over all that makes a prediction of an image: the fingerprint of its features,
    the head with its calibration, and the thresholds of sets, novelty and abstention.

    Figures, names and places are not in it: the same classifier saved twice has one digest.
    """
    from dinoprobe.heads import to_state

    state, arrays = to_state(classifier.head)
    novelty = classifier.novelty
    values = {
        "fingerprint": classifier.encoder.fingerprint,
        "classes": list(classifier.classes),
        "head": state,
        "sets": classifier.sets and classifier.sets.to_dict(),
        "abstention": classifier.abstention and classifier.abstention.to_dict(),
        "novelty": novelty and novelty.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for part in (arrays, novelty.arrays if novelty else {}):
        for line in _lines(part.items()):
            digest.update(line)
    return digest.hexdigest()


def _lines(arrays: Iterable[tuple[str, npt.NDArray[Any]]]) -> Iterable[bytes]:
    import numpy as np

    for name, array in sorted(arrays):
        yield f"{name} {array.dtype.str} {array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
