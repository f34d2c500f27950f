"""Several labels an image, or none: one logistic regression for each class against the rest.

All classes are solved together (`heads/binary_solver.py`) along a path of strengths. Validation
folds choose one strength for all classes, and from the same out-of-fold probabilities a threshold
for each, since 0.5 is seldom right for a rare one.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score

from dinoprobe.errors import HeadError
from dinoprobe.heads.base import check_rows, linear_logits
from dinoprobe.heads.binary_fits import BinaryFits
from dinoprobe.heads.closed import by_default, check_path, few_folds, in_words
from dinoprobe.heads.folds import assign_folds, check_fold_count, folds_of_splits
from dinoprobe.heads.label_sets import LabelSets, label_sets, rarest_codes
from dinoprobe.heads.threads import one_blas_thread
from dinoprobe.heads.thresholds import F1, check_target, choose_threshold
from dinoprobe.heads.weights import check_sample_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float32s, Float64s
    from dinoprobe.heads.closed import Floats

DEFAULT_C = 0.1
SCORINGS = ("average_precision", "log_loss")
LOG_LOSS_FLOOR = 1e-15


class MultiLabelProbe(BaseEstimator):
    """L2-penalised logistic regression of each class against the rest, and thresholds.

    Each class minimises the mean of its log loss + |w|² / (2 C n) over features that are
    standardised inside, as `OneVsRestClassifier(LogisticRegression(C=C))` of scikit-learn does.
    `C` skips the choice among `Cs` (None: 10 half decades from 1e-4 to 3.16), which goes by the
    mean of the classes' `scoring` on validation folds: "average_precision" or "log_loss".
    `thresholds` "f1" gives each class the threshold of the largest F1 out of fold, a number the
    smallest that reaches this precision there.

    `y` is an indicator matrix `(n, k)` of 0 and 1, `classes` its columns' names, or a list of the
    labels of each row. A class that has no row, or all, gets a constant probability, its share with
    half a row added to either side, with a UserWarning. After fit: `classes_`, `C_`, `selection_`,
    how it was chosen, in words; `cv_results_`, arrays `C`, `average_precision`, `log_loss` (None
    without a choice); `thresholds_` `(k,)`, 2 for a class that is never given; `constant_classes_`;
    `coef_` `(k, d)` and `intercept_` `(k,)` for features as they come; `converged_`.
    """

    classes_: npt.NDArray[Any]
    coef_: Float32s
    intercept_: Float32s
    thresholds_: Float64s

    def __init__(
        self,
        Cs: Sequence[float] | None = None,
        *,
        C: float | None = None,
        scoring: str = "average_precision",
        thresholds: str | float = F1,
        cv: int | Any = 5,
        random_state: int = 0,
        max_iter: int = 1000,
    ) -> None:
        self.Cs = Cs
        self.C = C
        self.scoring = scoring
        self.thresholds = thresholds
        self.cv = cv
        self.random_state = random_state
        self.max_iter = max_iter

    def fit(
        self,
        X: npt.ArrayLike,
        y: Any,
        classes: Sequence[Any] | None = None,
        groups: Sequence[Any] | None = None,
        folds: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Choose the strength, fit all rows with it, and choose the thresholds.

        `folds` and `groups` are those of `LogisticProbe.fit`; folds are dealt by the rarest label
        of each row. Raises HeadError for labels, folds or weights that can not be used.
        """
        Cs = self._check_options()
        rows = check_rows(self, X)
        sets = label_sets(y, len(rows), classes)
        weights = None
        if sample_weight is not None:
            weights = check_sample_weight(sample_weight, len(rows))
        with one_blas_thread():
            work = BinaryFits(rows, sets.truths, weights, self.max_iter)
            scores, judged = self._judge(work, Cs, groups, folds, sets)
            self._fit_thresholds(work, Cs, scores, judged)
            self._fit_all(work, sets)
        return self

    def decision_function(self, X: npt.ArrayLike) -> Float64s:
        """Log odds `(n, k)`."""
        return linear_logits(self, X)

    def predict_proba(self, X: npt.ArrayLike) -> Float64s:
        """The probability of each class by itself `(n, k)`; rows do not sum to 1."""
        return np.asarray(expit(self.decision_function(X)))

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """1 `(n, k)` where a class reaches its threshold, else 0."""
        return (self.predict_proba(X) >= self.thresholds_).astype(np.int64)

    def predict_labels(self, X: npt.ArrayLike) -> list[tuple[Any, ...]]:
        """The labels of each row, in the order of `classes_`."""
        names = self.classes_.tolist()
        return [
            tuple(name for name, given in zip(names, row, strict=True) if given)
            for row in self.predict(X)
        ]

    def _check_options(self) -> list[float]:
        """The path, in rising order."""
        check_target(self.thresholds)
        check_fold_count(self.cv)
        if self.scoring not in SCORINGS:
            raise HeadError(f"scoring is {self.scoring!r}; expected one of {', '.join(SCORINGS)}.")
        given = np.logspace(-4, 0.5, 10).tolist() if self.Cs is None else self.Cs
        return check_path("C", given if self.C is None else [self.C], example="C=0.1")

    def _judge(
        self,
        work: BinaryFits,
        Cs: list[float],
        groups: Sequence[Any] | None,
        folds: npt.ArrayLike | None,
        sets: LabelSets,
    ) -> tuple[Floats, Codes]:
        """Out-of-fold scores `(p, m, k)` of each strength, and the rows `(m,)` that they are of."""
        codes = rarest_codes(sets.truths)
        if folds is None:
            folds = folds_of_splits(self.cv, codes, groups)
        assigned, origin = assign_folds(codes, groups, folds, self.cv, self.random_state)
        judging = few_folds(assigned)
        judged = np.flatnonzero(judging >= 0)
        self.selection_ = in_words(assigned, judging, codes, origin)
        return work.out_of_fold(Cs, judging, judged), judged

    def _fit_thresholds(
        self, work: BinaryFits, Cs: list[float], scores: Floats, judged: Codes
    ) -> None:
        """Set what is read from the scores: `C_`, `selection_`, `cv_results_`, `thresholds_`."""
        self.cv_results_, best = None, 0
        truths, weights = work.truths[judged], work.some_weights(judged)
        if not len(judged):
            self.C_ = Cs[0] if len(Cs) == 1 else DEFAULT_C
            self.selection_ = "given" if len(Cs) == 1 else by_default(DEFAULT_C)
            self.thresholds_ = np.full(truths.shape[1], 0.5)
            return
        if len(Cs) > 1:
            figures = np.array([_figures(each, truths, weights) for each in scores])
            best = int(
                figures[:, 1].argmin() if self.scoring == "log_loss" else figures[:, 0].argmax()
            )
            self.cv_results_ = {
                "C": np.array(Cs), "average_precision": figures[:, 0], "log_loss": figures[:, 1]
            }  # fmt: skip
            self.selection_ += ", at the edge of the path" if best in (0, len(Cs) - 1) else ""
        else:
            self.selection_ = "given"
        self.C_ = Cs[best]
        probabilities = expit(scores[best].astype(np.float64))
        self.thresholds_ = np.array(
            [
                choose_threshold(
                    probabilities[:, column], truths[:, column], self.thresholds, weights
                )
                for column in range(truths.shape[1])
            ]
        )

    def _fit_all(self, work: BinaryFits, sets: LabelSets) -> None:
        weights, converged = work.solve([self.C_], np.arange(len(work.Z)), tol=work.tol)
        self.coef_, self.intercept_ = work.to_feature_space(weights[0])
        self.classes_ = sets.classes
        self.converged_ = bool(converged.all())
        self.constant_classes_ = sets.classes[work.constant(np.arange(len(work.Z)))]
        if len(self.constant_classes_):
            warnings.warn(
                f"{len(self.constant_classes_)} classes have no row with, or no row without them, "
                f"the first is {self.constant_classes_[0]!r}: their probability is constant.",
                UserWarning,
                stacklevel=3,
            )
        if not self.converged_:
            warnings.warn(
                f"MultiLabelProbe: {(~converged).sum()} classes stopped before the gradient was "
                f"below {work.tol:g} at C = {self.C_:g}. Raise max_iter, or take a smaller C.",
                ConvergenceWarning,
                stacklevel=3,
            )


def _figures(scores: Floats, truths: Floats, weights: Float64s | None) -> tuple[float, float]:
    """Means over the classes: of average precision, of classes that some row has, and log loss."""
    positive = np.flatnonzero(truths.any(axis=0))
    precisions = [
        average_precision_score(truths[:, column], scores[:, column], sample_weight=weights)
        for column in positive
    ]
    own = np.where(truths > 0, expit(scores), expit(-scores)).astype(np.float64)
    losses = -np.log(np.maximum(own, LOG_LOSS_FLOOR)).mean(axis=1)
    average = float(np.mean(precisions)) if precisions else 0.0
    return average, float(np.average(losses, weights=weights))
