"""The nearest class mean by cosine: for a few images a class.

Rows are not centred: at 1 to 20 shots centring lost 0 to 1.4 points on digits and the built-in
encoder's features and 1 to 3 on a mixture, standardising 3 to 22 on the former (docs/log.md). Only
where one mean is far longer than what differs from it, which leaves angles to rounding, the mean of
the class means is taken off first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dinoprobe.heads.base import LinearBase
from dinoprobe.heads.closed import (
    Design,
    by_default,
    check_temperature,
    few_folds,
    in_words,
    judge_on_folds,
    log_loss_sums,
    some_weights,
)
from dinoprobe.heads.folds import assign_folds, check_fold_count
from dinoprobe.heads.statistics import chunks, class_sums
from dinoprobe.heads.threads import one_blas_thread
from dinoprobe.heads.training import training_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s
    from dinoprobe.heads.closed import Judged, Solutions
    from dinoprobe.heads.training import TrainingRows

DEFAULT_TEMPERATURE = 0.07
"""As of k-NN in facebookresearch/dinov3; where no fold can judge, as with one row a class."""
LONGEST_MEAN = 30
"""Times the deviation. Cosines then differ by about 1 / 30², float32 rounds at 6e-8."""


class PrototypeProbe(LinearBase):
    """Class means of length 1; the score is a row's product with them, in units of the rows' size.

    The best score is the best cosine. A row that is longer than the training rows are in the mean
    square gets sharper probabilities: so the head stays linear. Classes count alike however many
    rows they have, so there are no class weights. `temperature` None is fitted on
    scores of `cv` validation folds.

    After fit: `temperature_`; `selection_`, how it was chosen, in words; `cv_results_`, arrays
    `temperature`, `accuracy`, `log_loss` of one value each, None without folds.
    """

    selects = ("temperature",)

    def __init__(
        self, *, temperature: float | None = None, cv: int | Any = 5, random_state: int = 0
    ) -> None:
        self.temperature = temperature
        self.cv = cv
        self.random_state = random_state

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        groups: Sequence[Any] | None = None,
        folds: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Keep the class means, and fit the temperature on folds; see `LDAProbe.fit`."""
        check_temperature(self.temperature)
        check_fold_count(self.cv)
        rows = training_rows(self, X, y, sample_weight, groups=groups, folds=folds)
        codes = rows.codes
        with one_blas_thread():
            assigned, origin = assign_folds(
                codes, rows.groups, rows.folds, self.cv, self.random_state
            )
            judging = np.full_like(assigned, -1) if self.temperature else few_folds(assigned)
            design = _design(rows, len(self.classes_))
            parts = _sums_of_folds(design, rows, judging, len(self.classes_))
            total = np.sum(list(parts.values()), axis=0)
            judged = judge_on_folds(
                design,
                codes,
                judging,
                lambda fold: _prototypes(total - parts[fold]),
                log_loss_sums,
                len(self.classes_),
                rows.weights,
            )
            self._choose(judged, in_words(assigned, judging, codes, origin))
            weight, intercept = _prototypes(total)[0]
            weight = weight / self.temperature_
            own = design.to_feature_space(weight, intercept)
            self.set_linear(*own, temperature=self.temperature_)
        return self

    def _choose(self, judged: Judged | None, how: str) -> None:
        """Set the temperature, and how it was found."""
        self.cv_results_ = None
        if self.temperature is not None:
            self.temperature_, self.selection_ = float(self.temperature), "given"
        elif judged is None:
            self.temperature_ = DEFAULT_TEMPERATURE
            self.selection_ = by_default(DEFAULT_TEMPERATURE)
        else:
            self.temperature_ = judged.temperature(0)
            self.selection_ = how
            self.cv_results_ = {
                "temperature": np.array([self.temperature_]),
                "accuracy": judged.accuracy,
                "log_loss": np.array([judged.tempered_loss(0)]),
            }


def _design(rows: TrainingRows, class_count: int) -> Design:
    """Rows divided by their size, and centred where the mean is too long to tell angles."""
    X, d = rows.X, rows.X.shape[1]
    plain = Design(X, np.zeros(d), np.ones(d), None)
    sums = _with_counts(plain, rows, np.arange(len(X)), class_count)
    center = (sums[:, :-1] / sums[:, -1:]).mean(axis=0).astype(X.dtype).astype(np.float64)
    centered = Design(X, center, np.ones(d), None)
    length, deviation = _size(plain, rows.weights), _size(centered, rows.weights)
    if np.linalg.norm(center) <= LONGEST_MEAN * deviation:
        return Design(X, np.zeros(d), np.full(d, length or 1.0), None)
    return Design(X, center, np.full(d, deviation or 1.0), None)


def _size(design: Design, weights: Float64s | None) -> float:
    """Root of the mean squared length of the rows."""
    all_rows = np.arange(len(design.X))
    squares = np.concatenate(
        [np.square(design.rows(rows), dtype=np.float64).sum(axis=1) for rows in chunks(all_rows)]
    )
    return float(np.sqrt(np.average(squares, weights=weights)))


def _sums_of_folds(
    design: Design, rows: TrainingRows, folds: Codes, class_count: int
) -> dict[int, Float64s]:
    return {
        int(fold): _with_counts(design, rows, np.flatnonzero(folds == fold), class_count)
        for fold in np.unique(folds)
    }


def _with_counts(design: Design, training: TrainingRows, rows: Codes, class_count: int) -> Float64s:
    """Sums of the rows of each class and, in the last column, their weight `(k, d + 1)`."""
    result = np.zeros((class_count, design.X.shape[1] + 1))
    for some in chunks(rows):
        present, local = np.unique(training.codes[some], return_inverse=True)
        weights = some_weights(training.weights, some)
        result[present, :-1] += class_sums(design.rows(some), local, weights)
        result[present, -1] += np.bincount(local, weights)
    return result


def _prototypes(sums: Float64s) -> Solutions:
    """Weight `(d, k)` of length 1, intercept 0; minus infinity for a class without rows."""
    with np.errstate(divide="ignore"):
        intercept = np.minimum(np.log(sums[:, -1]), 0)
    lengths = np.linalg.norm(sums[:, :-1], axis=1, keepdims=True)
    return [((sums[:, :-1] / np.where(lengths > 0, lengths, 1)).T, intercept)]
