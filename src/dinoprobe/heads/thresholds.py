"""From which probability on a label is given, for each class, from rows that were not fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.errors import HeadError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s

NEVER = 2.0
"""The threshold of a class that is never given."""
DEFAULT = 0.5
F1 = "f1"


class Cuts(NamedTuple):
    """Given labels and true ones among them `(m,)` at each cut, most rows last; true ones in all.

    `thresholds` lie halfway to the next probability, so that rounding moves no row over them.
    """

    thresholds: Float64s
    given: Float64s
    right: Float64s
    positives: float


def check_target(target: Any) -> None:
    """HeadError unless it is "f1" or a precision between 0 and 1."""
    is_number = isinstance(target, int | float) and not isinstance(target, bool)
    if target != F1 and not (is_number and 0 < target < 1):
        raise HeadError(
            f'thresholds is {target!r}; expected "f1", or the precision that each class shall '
            f"have, a number between 0 and 1 such as 0.9."
        )


def choose_threshold(
    probabilities: Float64s,
    truths: npt.NDArray[Any],
    target: str | float,
    weights: Float64s | None = None,
) -> float:
    """The threshold of one class from its probabilities and truths `(m,)`.

    "f1" is the one of the largest F1; a number the smallest whose precision is at least that, so
    that recall is the largest: NEVER where none is. 0.5 without a true row.
    """
    counts = np.ones(len(truths)) if weights is None else weights
    if not (truths * counts).any():
        return DEFAULT
    cuts = _cuts(probabilities, truths, counts)
    if target == F1:
        return float(cuts.thresholds[(2 * cuts.right / (cuts.given + cuts.positives)).argmax()])
    enough = np.flatnonzero(cuts.right >= float(target) * cuts.given)
    return float(cuts.thresholds[enough[-1]]) if len(enough) else NEVER


def _cuts(probabilities: Float64s, truths: npt.NDArray[Any], counts: Float64s) -> Cuts:
    """One cut below each probability that occurs; equal ones can not be told apart."""
    levels, level = np.unique(-probabilities, return_inverse=True)
    given = np.bincount(level, counts).cumsum()
    right = np.bincount(level, counts * truths).cumsum()
    levels = -levels
    following = np.append(levels[1:], 0.0)
    return Cuts((levels + following) / 2, given, right, float(right[-1]))
