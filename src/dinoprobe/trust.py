"""What became of the flag for novelty and of the rule of abstention, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.evaluation import wilson

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dinoprobe.evaluation import Interval
    from dinoprobe.heads import Abstention, Novelty

    Bools = npt.NDArray[np.bool_]

_NAMES = {
    "probability": "the best probability",
    "energy": "the energy of the logits",
    "distance": "the distance to the training images, negative,",
}


@dataclass(frozen=True, slots=True)
class NoveltyFigures:
    """Images that are unlike all training images.

    `share` of images like those was expected among them, as `n` left-out images say; `flagged` are
    so many, `flagged_share` of all. Accuracies are None where there are no such images.
    """

    method: str
    share: float
    n: int
    flagged: int
    flagged_share: float
    accuracy_flagged: float | None
    accuracy_others: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        sentence = (
            f"Unlike the training images: {self.flagged:,} images are flagged, "
            f"{_percent(self.flagged_share)} (of images like those: about {_percent(self.share)})"
        )
        if self.accuracy_flagged is None:
            return f"{sentence}."
        right = f"{sentence}; {_percent(self.accuracy_flagged)} of them are right"
        if self.accuracy_others is None:
            return f"{right}."
        return f"{right}, {_percent(self.accuracy_others)} of the others."


def judge_novelty(novelty: Novelty, flags: Bools, correct: Bools) -> NoveltyFigures:
    """Figures of the flags `(n,)` of answers `(n,)`."""
    return NoveltyFigures(
        method=novelty.method,
        share=novelty.share,
        n=novelty.n,
        flagged=int(flags.sum()),
        flagged_share=float(flags.mean()),
        accuracy_flagged=_mean(correct[flags]),
        accuracy_others=_mean(correct[~flags]),
    )


@dataclass(frozen=True, slots=True)
class AbstentionFigures:
    """The rule of abstention on labelled images, and on the `n` predictions that it comes from.

    `answered` images have a label, a share `coverage` of all, and `accuracy` of these are right,
    with the 95 % interval (Wilson); None where none is answered.
    """

    by: str
    threshold: float
    target: float
    n: int
    expected_coverage: float
    expected_accuracy: float
    answered: int
    coverage: float
    accuracy: float | None
    accuracy_interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        interval = self.accuracy_interval and list(self.accuracy_interval)
        return {**asdict(self), "accuracy_interval": interval}

    def __str__(self) -> str:
        start = (
            f"Target accuracy {100 * self.target:g} %: an answer where {_NAMES[self.by]} is "
            f"{self.threshold:.4g} or more, {_percent(self.expected_coverage)} of "
            f"{self.n:,} out-of-fold predictions, {_percent(self.expected_accuracy)} right; here "
        )
        if self.accuracy is None or self.accuracy_interval is None:
            return f"{start}none is answered."
        low, high = (100 * bound for bound in self.accuracy_interval)
        return (
            f"{start}{self.answered:,} images ({_percent(self.coverage)}), "
            f"{_percent(self.accuracy)} right (95 % interval {low:.1f} to {high:.1f})."
        )


def judge_abstention(rule: Abstention, answered: Bools, correct: Bools) -> AbstentionFigures:
    """Figures of a rule that answers these images `(n,)`."""
    count = int(answered.sum())
    right = int(correct[answered].sum())
    return AbstentionFigures(
        by=rule.by,
        threshold=rule.threshold,
        target=rule.target,
        n=rule.n,
        expected_coverage=rule.coverage,
        expected_accuracy=rule.accuracy,
        answered=count,
        coverage=float(answered.mean()),
        accuracy=_mean(correct[answered]),
        accuracy_interval=wilson(right, count) if count else None,
    )


def _mean(correct: Bools) -> float | None:
    return float(correct.mean()) if len(correct) else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
