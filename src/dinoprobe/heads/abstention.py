"""When to answer and when not to: a threshold that keeps a target accuracy among the answers.

It is chosen on out-of-fold predictions: the most answers, the surest first, of whose accuracy the
one-sided 95 % lower bound (Clopper and Pearson 1934) reaches the target. Taking the point estimate
would miss the target on new images every other time. The bound is that of one number of answers,
and 40 are tried: in draws of 200 to 5,000 predictions the target was missed in at most 4 % of them,
but in 24 % where the accuracy lay just below it and confidence told nothing (docs/log.md).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import beta

from dinoprobe.errors import ConfigurationError, FormatError, HeadError
from dinoprobe.heads.calibration import centred_logits

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s

MEASURES = ("probability", "energy", "distance")
RISK = 0.05
"""That the bound of one number of answers is wrong."""
TRIED = 40
SMALLEST = float(np.finfo(np.float64).tiny)


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
            raise _damaged(f"{type(error).__name__} {error}") from error
        if read.by not in MEASURES or (read.by == "distance" and not has_novelty):
            raise _damaged(f"by {read.by!r}")
        if not all(map(math.isfinite, numbers.values())) or type(read.n) is not int:
            raise _damaged("a threshold, a share or a count that is none")
        return read


def check_abstention(by: str, target: float) -> None:
    """Raise ConfigurationError for a measure or a target that does not exist."""
    if by not in MEASURES:
        raise ConfigurationError(
            f"The measure to abstain by is {by!r}; expected one of {', '.join(MEASURES)}."
        )
    if not 0 < target < 1:
        raise ConfigurationError(f"The target accuracy is {target}; expected between 0 and 1.")


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


def fit_abstention(
    by: str, sure: Float64s, correct: npt.NDArray[np.bool_], target: float
) -> Abstention | None:
    """The rule that answers most and keeps the target; None where no threshold does.

    `sure` and `correct` `(n,)` are of out-of-fold predictions.
    """
    check_abstention(by, target)
    order = np.argsort(-sure, kind="stable")
    hits = correct[order].cumsum()
    kept = [n for n in _tried(len(sure), target) if lower_bound(int(hits[n - 1]), n) >= target]
    if not kept:
        return None
    threshold = float(sure[order[kept[-1] - 1]])
    answered = sure >= threshold
    return Abstention(
        by=by,
        threshold=threshold,
        target=target,
        coverage=float(answered.mean()),
        accuracy=float(correct[answered].mean()),
        n=len(sure),
    )


def lower_bound(hits: int, count: int) -> float:
    """What a share is above, but with a probability of `RISK` or less."""
    return float(beta.ppf(RISK, hits, count - hits + 1)) if hits else 0.0


def least_count(target: float) -> int:
    """How many answers, all of them right, are the fewest that can show the target."""
    return math.ceil(math.log(RISK) / math.log(target))


def _tried(n: int, target: float) -> list[int]:
    """Numbers of answers, evenly from the fewest that can show the target to all."""
    least = least_count(target)
    if least > n:
        return []
    return sorted({int(count) for count in np.linspace(least, n, TRIED).round()})


def _damaged(found: str) -> FormatError:
    return FormatError(
        f"Saved rule of abstention: {found}; expected what dinoprobe writes. Load an undamaged "
        f"copy, or train again."
    )
