"""The gate of an int8 export: how many images it gets right, beside the classifier.

int8 moves probabilities by tenths where an image is between two classes, so these are told and do
not decide. What decides is accuracy: on the run's test part, which nothing of the export was chosen
by, or where there is none on images of the training part that int8 was not calibrated on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import ConfigurationError, MismatchError
from dinoprobe.export.pictures import pieces, samples_of, spaced
from dinoprobe.heads import MultiLabelProbe
from dinoprobe.quantize import CALIBRATION_IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.export.gate import Answers
    from dinoprobe.export.pictures import Pictures
    from dinoprobe.types import Sample

ALLOWED_DROP = 0.005
MAX_JUDGED = 2048
LEAST_JUDGED = 64
_SEED = 0
_PARTS = {
    "test": "the run's test part",
    "train": "the run's training part that int8 was not calibrated on",
}


@dataclass(frozen=True, slots=True)
class Material:
    """Images `calibration` of the training part, and other ones with labels to judge by."""

    calibration: list[Sample]
    judged: list[Sample]
    part: str

    def prepared(self, classifier: ImageClassifier) -> npt.NDArray[Any]:
        """The images to calibrate on, `(n, 3, height, width)`."""
        preprocessing = classifier.encoder.preprocessing
        found = [piece.prepared for piece in pieces(self.calibration, preprocessing)]
        if not found:
            raise ConfigurationError(_nothing("no training image can be read to calibrate on"))
        return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class Judged:
    """One way of giving `n` images to the export: right answers of the classifier and of it."""

    way: str
    n: int
    right: int
    export_right: int
    changed: int
    max_probability_difference: float

    @property
    def passes(self) -> bool:
        """Whether accuracy falls by ALLOWED_DROP at most."""
        return self.right - self.export_right <= ALLOWED_DROP * self.n

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the keys of other gates."""
        return {
            "way": self.way,
            "max_probability_difference": self.max_probability_difference,
            "top1_agreement": 1 - self.changed / self.n,
            "tolerance": None,
            "accuracy": self.export_right / self.n,
            "passes": self.passes,
        }


def material(classifier: ImageClassifier, run: Path | None, *, calibrated: bool) -> Material:
    """From the run's parts. Raises ConfigurationError where they do not suffice."""
    if isinstance(classifier.head, MultiLabelProbe):
        msg = "int8 is judged by one label an image, and this head gives several. Take fp16."
        raise ConfigurationError(msg)
    if run is None:
        raise ConfigurationError(_nothing("the classifier has left its run"))
    known = [sample for sample in samples_of(run, "train") if sample.label is not None]
    order = np.random.default_rng(_SEED).permutation(len(known)).tolist()
    count = min(CALIBRATION_IMAGES, len(known) // 3) if calibrated else 0
    calibration = [known[row] for row in order[:count]]
    others = [known[row] for row in sorted(order[count:])]
    tested = [sample for sample in samples_of(run, "test") if sample.label is not None]
    part, judged = ("test", tested) if len(tested) >= LEAST_JUDGED else ("train", others)
    if len(judged) < LEAST_JUDGED or (calibrated and not calibration):
        found = f"{len(tested)} labelled test images and {len(known)} training images can be read"
        raise ConfigurationError(_nothing(found))
    return Material(calibration, spaced(judged, MAX_JUDGED), part)


def _nothing(found: str) -> str:
    return (
        f"{found}, and int8 is judged by its accuracy on {LEAST_JUDGED} labelled images or more of "
        "the run's own. Export from the run's directory with its images in place, or take "
        "--precision fp16."
    )


def judge(
    classifier: ImageClassifier,
    judged: list[Sample],
    answers: Callable[[Pictures], Mapping[str, Answers]],
) -> list[Judged]:
    """Each way of giving the images to the export, beside the classifier."""
    found: dict[str, list[Judged]] = {}
    for piece in pieces(judged, classifier.encoder.preprocessing):
        expected = classifier.predict_features(piece.features(classifier.encoder))
        labels = np.array([classifier.classes.index(label) for label in piece.labels])
        for way, given in answers(piece).items():
            found.setdefault(way, []).append(_judge(way, labels, expected, given.probabilities))
    return [_summed(parts) for parts in found.values()]


def _judge(
    way: str,
    labels: npt.NDArray[np.int64],
    expected: npt.NDArray[np.float64],
    found: npt.NDArray[np.floating],
) -> Judged:
    if found.shape != expected.shape or not np.isfinite(found).all():
        msg = f"{way}: probabilities with NaN or of another shape. Nothing was written."
        raise MismatchError(msg)
    own, other = expected.argmax(axis=1), found.argmax(axis=1)
    return Judged(
        way=way,
        n=len(labels),
        right=int((own == labels).sum()),
        export_right=int((other == labels).sum()),
        changed=int((own != other).sum()),
        max_probability_difference=float(np.abs(found - expected).max()),
    )


def _summed(parts: list[Judged]) -> Judged:
    return Judged(
        way=parts[0].way,
        n=sum(part.n for part in parts),
        right=sum(part.right for part in parts),
        export_right=sum(part.export_right for part in parts),
        changed=sum(part.changed for part in parts),
        max_probability_difference=max(part.max_probability_difference for part in parts),
    )


def require_accuracy(target: str, judged: list[Judged], part: str) -> None:
    """Raise MismatchError where accuracy falls by more than allowed."""
    for found in judged:
        if not found.passes:
            own, other = 100 * found.right / found.n, 100 * found.export_right / found.n
            msg = (
                f"the {target} export in int8 is less accurate: {other:.2f} % of {found.n:,} "
                f"images of {_PARTS[part]}, where the classifier has {own:.2f} % (with "
                f"{found.way}; {found.changed} answers differ). At most "
                f"{100 * ALLOWED_DROP:g} points may be lost. Nothing was written. Take "
                "--precision fp16."
            )
            raise MismatchError(msg)


def summary(judged: list[Judged], chosen: Material) -> dict[str, Any]:
    """What gate.json says of accuracy: of the worst way."""
    worst = min(judged, key=lambda found: found.export_right)
    return {
        "classifier": worst.right / worst.n,
        "export": worst.export_right / worst.n,
        "n": worst.n,
        "allowed_drop": ALLOWED_DROP,
        "changed": worst.changed,
        "judged_on": _PARTS[chosen.part],
        "calibration_images": len(chosen.calibration),
    }
