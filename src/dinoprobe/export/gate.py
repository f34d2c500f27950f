"""The gate of an export: the file must answer as the classifier does, else it is not written.

At least 64 images go through both: the run's own test part where it is still there, and rendered
photographs for what is missing. The tolerance is of probabilities. Top-1 must agree wherever the
classifier's two best are farther apart than the tolerance; the share of all images is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Float64s = npt.NDArray[np.float64]

SAME_INPUT = 1e-4
"""Allowed where a float32 classifier and the file take the same numbers; 6e-6 was seen."""
OTHER_RESIZE = 0.02
"""Allowed where the file resizes by itself, one grey level off at most; 6e-3 was seen, with the
built-in encoder at 64 px, which follows a grey level more than DINOv3 does."""
OTHER_PRECISION = 0.03
"""Allowed where the classifier is in bfloat16 or int8 and the file in float32, or where the file
holds its weights in float16; 6e-3 was seen then."""


class Answers(NamedTuple):
    """What a file says of the images in one way of giving them: probabilities `(n, k)`, and how far
    they may be off.
    """

    probabilities: npt.NDArray[np.floating]
    tolerance: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One way of giving images to the file, beside the classifier."""

    way: str
    max_probability_difference: float
    top1_agreement: float
    tolerance: float
    differing: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether it is within the tolerance, and no answer differs that was clear."""
        return self.max_probability_difference <= self.tolerance and not self.differing

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "way": self.way,
            "max_probability_difference": self.max_probability_difference,
            "top1_agreement": self.top1_agreement,
            "tolerance": self.tolerance,
            "accuracy": None,
            "passes": self.passes,
        }


def tolerance_for(precision: str, *, same_input: bool) -> float:
    """How far probabilities may be off from a classifier's in this precision."""
    if precision != "float32":
        return OTHER_PRECISION
    return SAME_INPUT if same_input else OTHER_RESIZE


def widened(ways: Mapping[str, Answers], precision: str) -> dict[str, Answers]:
    """The same, with the tolerance of a file in this precision."""
    least = 0.0 if precision == "float32" else OTHER_PRECISION
    return {way: Answers(found, max(allowed, least)) for way, (found, allowed) in ways.items()}


def compare(
    keys: Sequence[str], expected: Float64s, ways: Mapping[str, Answers]
) -> list[Comparison]:
    """Each way of giving the images `keys` beside the classifier's probabilities `(n, k)`."""
    return [_compare(keys, expected, way, answers) for way, answers in ways.items()]


def _compare(keys: Sequence[str], expected: Float64s, way: str, answers: Answers) -> Comparison:
    found = np.asarray(answers.probabilities, dtype=np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        msg = (
            f"{way}: probabilities {found.shape} with NaN or of another shape, expected "
            f"{expected.shape} finite numbers. Nothing was written."
        )
        raise MismatchError(msg)
    agrees = found.argmax(axis=1) == expected.argmax(axis=1)
    best = np.sort(expected, axis=1)[:, -2:]
    is_clear = best[:, -1] - best[:, 0] > answers.tolerance
    differing = np.flatnonzero(~agrees & is_clear)
    return Comparison(
        way=way,
        max_probability_difference=float(np.abs(found - expected).max()),
        top1_agreement=float(agrees.mean()),
        tolerance=answers.tolerance,
        differing=tuple(keys[i] for i in differing.tolist()),
    )


def require(target: str, comparisons: Sequence[Comparison], image_count: int) -> None:
    """Raise MismatchError, with what differs and by how much, where a comparison does not pass."""
    for found in comparisons:
        if found.passes:
            continue
        first = f", first of {found.differing[0]}" if found.differing else ""
        msg = (
            f"the {target} export does not answer as the classifier does: with {found.way}, "
            f"probabilities differ by up to {found.max_probability_difference:.2g} on "
            f"{image_count} images, allowed {found.tolerance:g}, and the best label agrees on "
            f"{100 * found.top1_agreement:.1f} % of them{first}. Nothing was written. Train with "
            "--precision exact, or report this."
        )
        raise MismatchError(msg)
