"""One head among several, also over several poolings: chosen on folds, by the same rows.

Each candidate chooses its own hyper-parameters, is then fitted without each fold, and its
predictions of the folds are compared: by accuracy, and among those that chance does not tell from
the most accurate (within one standard error of the difference, from pairs of answers) by log loss
at the temperature that suits each. Log loss alone cost 1.4 points within one path of strengths;
accuracy alone 2.1 points between heads on 250 images of clothes, where 0.8 points are two images
(docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import HeadError
from dinoprobe.heads.calibration import at_temperature, fit_temperature
from dinoprobe.heads.closed import few_folds
from dinoprobe.heads.out_of_fold import OutOfFold, frozen_choice, out_of_fold
from dinoprobe.heads.selection import best_of, standard_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import ProbeBase

SMALLEST = 1e-15


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head that is not fitted, by its name, and the features that it gets, by theirs."""

    name: str
    head: ProbeBase
    pooling: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate fitted on all rows, and what it said of the rows of each fold without them.

    `accuracy` and `log_loss` (at its temperature) are over those; `behind` says how far it is
    behind the most accurate one, and `error` the standard error of that.
    """

    candidate: Candidate
    head: ProbeBase
    out_of_fold: OutOfFold
    accuracy: float
    log_loss: float
    behind: float = 0.0
    error: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "head": self.candidate.name,
            "pooling": self.candidate.pooling,
            "accuracy": self.accuracy,
            "log_loss": self.log_loss,
            "behind": self.behind,
            "standard_error": self.error,
        }


def search(
    candidates: Sequence[Candidate],
    views: Mapping[str, npt.NDArray[np.floating]],
    y: npt.NDArray[Any],
    folds: npt.ArrayLike,
    *,
    fit: Callable[[ProbeBase, npt.NDArray[np.floating]], ProbeBase],
    done: Callable[[Judged], None] = lambda _: None,
) -> tuple[Judged, list[Judged]]:
    """The chosen candidate, and all of them in their order.

    `views` are features `(n, d)` by pooling, `fit` fits a head on some of them, its own choice on
    the same folds; the first folds that hold 10,000 rows judge. Raises HeadError where no fold can
    judge: give a head then.
    """
    judging = few_folds(np.asarray(folds))
    found = []
    for candidate in candidates:
        X = views[candidate.pooling]
        fitted = fit(candidate.head, X)
        judged = _judged(candidate, fitted, out_of_fold(frozen_choice(fitted), X, y, judging))
        found.append(judged)
        done(judged)
    compared = _compared(found)
    return compared[chosen(compared)], compared


def chosen(found: Sequence[Judged]) -> int:
    """Of those as good as the most accurate, but for chance, the one with the least log loss."""
    tied = [row for row, judged in enumerate(found) if judged.behind <= judged.error + SMALLEST]
    return min(tied, key=lambda row: (found[row].log_loss, -found[row].accuracy, row))


def _judged(candidate: Candidate, head: ProbeBase, predictions: OutOfFold) -> Judged:
    if not len(predictions):
        raise HeadError(
            "No class has rows to train and to validate, so heads can not be compared. Add images, "
            "or name one head, such as prototype."
        )
    right = predictions.probabilities.argmax(axis=1) == predictions.codes
    tempered = at_temperature(predictions.probabilities, fit_temperature(predictions))
    own = tempered[np.arange(len(tempered)), predictions.codes]
    loss = float(-np.log(np.maximum(own, SMALLEST)).mean())
    return Judged(candidate, head, predictions, float(right.mean()), loss)


def _compared(found: Sequence[Judged]) -> list[Judged]:
    """The same with their distance from the most accurate one."""
    correct = np.stack(
        [j.out_of_fold.probabilities.argmax(axis=1) == j.out_of_fold.codes for j in found]
    )
    accuracy = np.array([judged.accuracy for judged in found])
    losses = np.array([judged.log_loss for judged in found])
    best = best_of(accuracy, losses)
    errors = standard_errors(accuracy, best, correct.shape[1], correct)
    return [
        Judged(
            judged.candidate,
            judged.head,
            judged.out_of_fold,
            judged.accuracy,
            judged.log_loss,
            float(accuracy[best] - judged.accuracy),
            float(error),
        )
        for judged, error in zip(found, errors, strict=True)
    ]
