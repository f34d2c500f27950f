"""One head among several, also over several poolings: chosen on folds, by the same rows.

Each candidate chooses its own hyper-parameters, is then fitted without each fold, and its
predictions of the folds are compared: by accuracy, and among those that chance does not tell from
the most accurate (within one standard error of the difference, from pairs of answers) by log loss
at the temperature that suits each. Log loss alone cost 1.4 points within one path of strengths;
accuracy alone 2.1 points between heads on 250 images of clothes, where 0.8 points are two images
(docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import HeadError
from dinoprobe.heads.calibration import at_temperature, fit_temperature
from dinoprobe.heads.closed import few_folds
from dinoprobe.heads.out_of_fold import OutOfFold, frozen_choice, out_of_fold
from dinoprobe.heads.selection import best_of, standard_errors
from dinoprobe.heads.weights import class_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s, ProbeBase

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
    the same folds; the first folds that hold 10,000 rows judge. Where heads have class weights,
    rows count by them in the comparison as in each fit. Raises HeadError where no fold can judge:
    give a head then.
    """
    judging = few_folds(np.asarray(folds))
    weights = _class_weights(candidates, y)
    found = []
    for candidate in candidates:
        X = views[candidate.pooling]
        fitted = fit(candidate.head, X)
        predictions = out_of_fold(frozen_choice(fitted), X, y, judging)
        judged = _judged(candidate, fitted, replace(predictions, class_weights=weights))
        found.append(judged)
        done(judged)
    compared = _compared(found)
    return compared[chosen(compared)], compared


def chosen(found: Sequence[Judged]) -> int:
    """Of those as good as the most accurate, but for chance, the one with the least log loss."""
    tied = [row for row, judged in enumerate(found) if judged.behind <= judged.error + SMALLEST]
    return min(tied, key=lambda row: (found[row].log_loss, -found[row].accuracy, row))


def _class_weights(candidates: Sequence[Candidate], y: npt.NDArray[Any]) -> Float64s | None:
    """Those of the first head that has any, for all of them; None where rows count once."""
    options = (getattr(candidate.head, "class_weight", None) for candidate in candidates)
    option = next((option for option in options if option is not None), None)
    classes, codes = np.unique(y, return_inverse=True)
    return class_weights(codes, len(classes), option, classes=classes)


def _judged(candidate: Candidate, head: ProbeBase, predictions: OutOfFold) -> Judged:
    if not len(predictions):
        raise HeadError(
            "No class has rows to train and to validate, so heads can not be compared. Add images, "
            "or name one head, such as prototype."
        )
    right = predictions.probabilities.argmax(axis=1) == predictions.codes
    tempered = at_temperature(predictions.probabilities, fit_temperature(predictions))
    own = tempered[np.arange(len(tempered)), predictions.codes]
    losses = -np.log(np.maximum(own, SMALLEST))
    accuracy = float(np.average(right, weights=predictions.weights))
    loss = float(np.average(losses, weights=predictions.weights))
    return Judged(candidate, head, predictions, accuracy, loss)


def _compared(found: Sequence[Judged]) -> list[Judged]:
    """The same with their distance from the most accurate one."""
    correct = np.stack(
        [j.out_of_fold.probabilities.argmax(axis=1) == j.out_of_fold.codes for j in found]
    )
    accuracy = np.array([judged.accuracy for judged in found])
    losses = np.array([judged.log_loss for judged in found])
    best = best_of(accuracy, losses)
    weights = found[0].out_of_fold.weights
    row_count = correct.shape[1] if weights is None else float(weights.sum())
    errors = standard_errors(best, row_count, correct, weights)
    return [
        replace(judged, behind=float(accuracy[best] - judged.accuracy), error=float(error))
        for judged, error in zip(found, errors, strict=True)
    ]
