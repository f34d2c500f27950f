"""What is decided by probabilities: which labels stand in a set, and whether to answer at all.

Thresholds come from predictions that a head did not learn from (`heads/conformal.py`,
`heads/abstention.py`); to use them takes NumPy alone, so that an exported file decides as a
classifier does, without torch or SciPy.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import ConfigurationError, FormatError, HeadError

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64s = npt.NDArray[np.float64]

SET_METHODS = ("lac", "aps")
MEASURES = ("probability", "energy", "distance")
SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """What decides which labels stand in a set.

    `method` "lac" takes the labels above one probability: the smallest sets in the mean (Sadinle et
    al. 2019). "aps" adds labels from the most probable down until a sum of probabilities is
    reached, so that sets grow where the head is unsure (Romano et al. 2020). Its score is the sum
    before the label, without the label's own part: no random choice at the edge is needed, the same
    image has the same set, and sure answers are alone in theirs. `thresholds` are the largest
    scores that conform, one, or one for each class; infinity where `n` rows were too few for any.
    """

    method: str
    coverage: float
    thresholds: tuple[float, ...]
    n: int

    def conforming(self, probabilities: Float64s) -> npt.NDArray[np.bool_]:
        """Which labels conform, `(n, k)`; none of a row may."""
        return np.asarray(scores(probabilities, self.method) <= np.array(self.thresholds))

    def members(self, probabilities: Float64s) -> npt.NDArray[np.bool_]:
        """The sets `(n, k)`: what conforms, and the most probable label in any case.

        With "lac" a head that is right more often than `coverage` would leave sets empty else.
        """
        found = self.conforming(probabilities)
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values; null stands for infinity."""
        thresholds = [value if math.isfinite(value) else None for value in self.thresholds]
        return {
            "method": self.method,
            "coverage": self.coverage,
            "thresholds": thresholds,
            "n": self.n,
        }

    @classmethod
    def from_dict(cls, values: Any, class_count: int) -> PredictionSets:
        """The inverse of `to_dict`. Raises FormatError for anything else."""
        try:
            thresholds = tuple(
                math.inf if value is None else float(value) for value in values["thresholds"]
            )
            read = cls(values["method"], float(values["coverage"]), thresholds, values["n"])
            check_sets(read.method, read.coverage)
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged_sets(f"{type(error).__name__} {error}") from error
        if len(thresholds) not in {1, class_count}:
            raise _damaged_sets(f"{len(thresholds)} thresholds for {class_count} classes")
        if any(math.isnan(value) for value in thresholds) or type(read.n) is not int:
            raise _damaged_sets("a threshold or a count that is no number")
        return read


def check_sets(method: str, coverage: float) -> None:
    """Raise ConfigurationError for a method or a coverage that does not exist."""
    if method not in SET_METHODS:
        raise ConfigurationError(
            f"The sets' method is {method!r}; expected one of {', '.join(SET_METHODS)}."
        )
    if not 0 < coverage < 1:
        raise ConfigurationError(f"The sets' coverage is {coverage}; expected between 0 and 1.")


def scores(probabilities: Float64s, method: str) -> Float64s:
    """How little each label conforms, `(n, k)`: from 0 up to 1."""
    if method == "lac":
        return np.asarray(1 - probabilities)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sums = np.zeros_like(probabilities)
    sums[:, 1:] = np.take_along_axis(probabilities, order, axis=1).cumsum(axis=1)[:, :-1]
    found = np.empty_like(sums)
    np.put_along_axis(found, order, sums, axis=1)
    return found


@dataclass(frozen=True, slots=True)
class Abstention:
    """The rule: answer where the confidence by `by` is `threshold` or more.

    `target` is the accuracy that was asked for; `coverage` of `n` out-of-fold predictions were
    answered with it, `accuracy` of these right.
    """

    by: str
    threshold: float
    target: float
    coverage: float
    accuracy: float
    n: int

    def answers(self, probabilities: Float64s, novelty: Float64s | None) -> npt.NDArray[np.bool_]:
        """Which of the rows of probabilities `(n, k)` and scores of novelty `(n,)` are answered."""
        return np.asarray(confidence(self.by, probabilities, novelty) >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, *, has_novelty: bool) -> Abstention:
        """The inverse of `to_dict`. Raises FormatError, also for a distance without its measure."""
        try:
            names = ("threshold", "target", "coverage", "accuracy")
            numbers = {name: float(values[name]) for name in names}
            read = cls(by=str(values["by"]), n=values["n"], **numbers)
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged_rule(f"{type(error).__name__} {error}") from error
        if read.by not in MEASURES or (read.by == "distance" and not has_novelty):
            raise _damaged_rule(f"by {read.by!r}")
        if not all(map(math.isfinite, numbers.values())) or type(read.n) is not int:
            raise _damaged_rule("a threshold, a share or a count that is none")
        return read


def confidence(by: str, probabilities: Float64s, novelty: Float64s | None) -> Float64s:
    """How sure an answer is, the larger the surer, `(n,)`.

    "energy" is the logarithm of the summed exponentials of the logits (Liu et al. 2020), which are
    centred to a mean of 0: a constant that moves them all says nothing, and probabilities are all
    that is needed. "distance" is the score of novelty, negative; HeadError without one.
    """
    if by == "distance":
        if novelty is None:
            raise HeadError(
                "To abstain by distance takes scores of novelty, and there are none. Fit a measure "
                "of novelty, or abstain by probability."
            )
        return -novelty
    if by == "energy":
        sure = np.maximum(probabilities, SMALLEST)
        return np.asarray((centred_logits(sure) - np.log(sure))[:, 0])
    return np.asarray(probabilities.max(axis=1))


def centred_logits(probabilities: Float64s) -> Float64s:
    """Logits `(n, k)` whose mean over the classes is 0, as far as these have any probability."""
    logits = logits_of(probabilities)
    present = np.isfinite(logits)
    sums = np.where(present, logits, 0).sum(axis=1, keepdims=True)
    return np.asarray(logits - sums / present.sum(axis=1, keepdims=True))


def logits_of(probabilities: Float64s) -> Float64s:
    """Their logarithms; minus infinity for 0."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def _damaged_sets(found: str) -> FormatError:
    return FormatError(
        f"Saved prediction sets: {found}; expected what dinoprobe writes. Load an undamaged copy, "
        f"or train again."
    )


def _damaged_rule(found: str) -> FormatError:
    return FormatError(
        f"Saved rule of abstention: {found}; expected what dinoprobe writes. Load an undamaged "
        f"copy, or train again."
    )
