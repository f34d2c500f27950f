"""Ridge regression on targets of 1 and -1, every strength judged on each row left out, closed form.

One eigendecomposition serves all strengths, and a row's prediction by the fit without it follows
from its leverage (Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", eq. 7.64):
50 strengths cost one rotation of the rows and one product each. The head of
google-research/big_vision `evaluators/fewshot_lsr.py`, there with one fixed strength.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dinoprobe.heads.base import LinearBase
from dinoprobe.heads.closed import (
    JUDGED_ROWS,
    Judged,
    check_path,
    check_temperature,
    choose,
    evenly,
    few_folds,
    in_words,
    judge_on_folds,
    kept_rows,
    prepare,
    some_weights,
    squared_loss_sums,
    total_weight,
)
from dinoprobe.heads.folds import assign_folds, check_fold_count
from dinoprobe.heads.selection import check_rule
from dinoprobe.heads.statistics import chunks, product_dtype
from dinoprobe.heads.threads import one_blas_thread
from dinoprobe.heads.training import training_rows
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s
    from dinoprobe.heads.closed import Floats, Prepared, Solutions
    from dinoprobe.heads.statistics import ClassStatistics
    from dinoprobe.heads.streamed import StreamedRows
    from dinoprobe.heads.training import TrainingRows
    from dinoprobe.heads.weights import ClassWeight

ALPHAS_PER_ROW = np.logspace(-4, 2, 13)
DEFAULT_ALPHA_PER_ROW = 0.1
SMALLEST_VARIANCE = 1e-7
"""Axes with less than this share of the largest variance are rounding."""


class RidgeProbe(LinearBase):
    """One-versus-rest least squares |Y - XW - b|² + alpha |W|², Y of 1 and -1, b free.

    A row's square counts as often as its weight says (`heads/weights.py`), and so does the row
    wherever an option is chosen; left out, it goes with its whole weight.
    Features are standardised inside; a two-class head has two rows, one the negative of the other.
    `alpha` skips the choice among `alphas` (None: 13 half decades from 1e-4 n to 100 n, n the sum
    of the weights). The choice goes by accuracy, then by squared loss, on up to 10,000 rows each
    left out in turn; or on validation folds where fit gets `groups` or `folds`. With `rule`
    "one-se" it is the largest within one standard error of the best. `temperature` None is fitted
    on the same scores.

    After fit: `alpha_`, `temperature_`; `selection_`, how alpha was chosen, in words;
    `cv_results_`, arrays `alpha`, `accuracy`, `squared_loss`, `standard_error` (of how far each is
    behind the best), None without a choice.
    """

    selects = ("alpha", "temperature")

    def __init__(
        self,
        alphas: Sequence[float] | None = None,
        *,
        alpha: float | None = None,
        temperature: float | None = None,
        rule: str = "best",
        class_weight: ClassWeight = None,
        cv: int | Any = 5,
        random_state: int = 0,
    ) -> None:
        self.alphas = alphas
        self.alpha = alpha
        self.temperature = temperature
        self.class_weight = class_weight
        self.rule = rule
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
        """Choose alpha and temperature, and fit all rows with them.

        `folds` are the validation fold of each row, -1 for a row that is always trained on;
        `groups` without folds make `cv` stratified ones, rows of one group together. `cv` also
        takes scikit-learn's splits. `sample_weight` says how often each row counts.
        """
        check_temperature(self.temperature)
        check_fold_count(self.cv)
        check_rule(self.rule)
        rows = training_rows(self, X, y, sample_weight, groups=groups, folds=folds)
        path = self._path(rows.count)
        with one_blas_thread():
            judging, how = self._folds(rows)
            none = np.full(len(rows.codes), -1)
            prepared = prepare(
                rows.X,
                rows.codes,
                len(self.classes_),
                none if judging is None else judging,
                rows.weights,
            )
            judged = self._judge(prepared, rows, judging, path)
            self._choose(judged, path, how, rows.count)
            self._solve(prepared)
        return self

    def fit_streamed(self, rows: StreamedRows) -> Self:
        """As `fit`, from statistics of rows that came block by block; `cv` is theirs.

        Raises HeadError for fewer than two classes, and for class weights.
        """
        check_temperature(self.temperature)
        check_rule(self.rule)
        with one_blas_thread():
            streamed = rows.for_head(self)
            prepared, judged = streamed.prepared, None
            path = self._path(prepared.total.count)
            if len(path) > 1 or self.temperature is None:
                judged = streamed.judge(
                    lambda fold: regressions(prepared.without(fold), path),
                    squared_loss_sums,
                    len(path),
                )
            self._choose(judged, path, streamed.in_words(), prepared.total.count)
            self._solve(prepared)
        return self

    def _solve(self, prepared: Prepared) -> None:
        """Set `coef_` and `intercept_`."""
        weight, intercept = regressions(prepared.total, [self.alpha_])[0]
        weight, intercept = weight / self.temperature_, intercept / self.temperature_
        own = prepared.design.to_feature_space(weight, intercept)
        self.set_linear(*own, temperature=self.temperature_)

    def _path(self, row_count: float) -> list[float]:
        default = (row_count * ALPHAS_PER_ROW).tolist()
        given = default if self.alphas is None else self.alphas
        given = given if self.alpha is None else [self.alpha]
        return check_path("alpha", given, example="alpha=1.0")

    def _folds(self, rows: TrainingRows) -> tuple[Codes | None, str]:
        """Folds, None where each row is left out in turn, and what judges, in words."""
        if rows.groups is None and rows.folds is None:
            return None, "leave-one-out scores"
        assigned, origin = assign_folds(
            rows.codes, rows.groups, rows.folds, self.cv, self.random_state
        )
        judging = few_folds(assigned)
        return judging, in_words(assigned, judging, rows.codes, origin)

    def _judge(
        self, prepared: Prepared, rows: TrainingRows, folds: Codes | None, path: list[float]
    ) -> Judged | None:
        if len(path) == 1 and self.temperature is not None:
            return None
        if folds is None:
            return judge_left_out(prepared, rows.codes, path, rows.weights)
        return judge_on_folds(
            prepared.design,
            rows.codes,
            folds,
            lambda fold: regressions(prepared.without(fold), path),
            squared_loss_sums,
            len(path) * len(self.classes_),
            rows.weights,
        )

    def _choose(self, judged: Judged | None, path: list[float], how: str, row_count: float) -> None:
        """Set what was chosen, and how."""
        default, temperature = DEFAULT_ALPHA_PER_ROW * row_count, self.temperature
        choice = choose(
            judged,
            path,
            default=default,
            temperature=temperature,
            how=how,
            by_log_loss=False,
            rule=self.rule,
        )
        self.alpha_, self.temperature_ = choice.strength, choice.temperature
        self.selection_, self.cv_results_ = choice.selection, None
        if choice.results is not None:
            self.cv_results_ = {"alpha": np.array(path), **choice.results}


def regressions(statistics: ClassStatistics, alphas: Sequence[float]) -> Solutions:
    """Weight `(d, k)` and intercept `(k,)` for each strength."""
    variances, axes, moments, shares = _decomposed(statistics)
    mean = statistics.mean
    path = []
    for alpha in alphas:
        weight = axes @ (moments / (variances + alpha)[:, None])
        path.append((weight, shares - mean @ weight))
    return path


def judge_left_out(
    prepared: Prepared, codes: Codes, alphas: Sequence[float], weights: Float64s | None = None
) -> Judged | None:
    """Each strength on up to `JUDGED_ROWS` rows, evenly spaced, each by the fit without it.

    Rows alone in their class do not judge. A row is left out with its whole weight.
    """
    counts = prepared.total.row_counts
    judged = evenly(np.flatnonzero(counts[codes] > 1), JUDGED_ROWS)
    if not len(judged):
        return None
    left_out = _LeftOut(prepared, codes, alphas, weights)
    kept = kept_rows(judged, len(codes), len(alphas) * len(counts))
    parts = list(chunks(judged))
    with ThreadPoolExecutor(min(len(parts), usable_cores())) as pool:
        found = list(pool.map(lambda rows: left_out.judge(rows, kept), parts))
    sums = np.sum([each for each, _ in found], axis=0)
    row_count = total_weight(judged, some_weights(weights, judged))
    accuracy, loss = sums / row_count
    scores = np.concatenate([each for _, each in found], axis=1)
    own = judged[kept[judged]]
    return Judged(accuracy, loss, scores, codes[own], row_count, some_weights(weights, own))


class _LeftOut:
    """Predictions of rows by the fit without them, from their leverages."""

    def __init__(
        self,
        prepared: Prepared,
        codes: Codes,
        alphas: Sequence[float],
        weights: Float64s | None,
    ) -> None:
        self.design, self.codes, self.row_weights = prepared.design, codes, weights
        self.dtype = product_dtype(prepared.design.X)
        self.count, self.alphas = prepared.total.count, np.array(alphas)
        variances, axes, moments, shares = _decomposed(prepared.total)
        self.variances, self.shares = variances, shares.astype(self.dtype)
        self.mean, self.axes = prepared.total.mean.astype(self.dtype), axes.astype(self.dtype)
        self.weights = [(moments / (variances + a)[:, None]).astype(self.dtype) for a in alphas]

    def judge(self, rows: Codes, kept: npt.NDArray[np.bool_]) -> tuple[Float64s, Floats]:
        """Correct answers and squared loss `(2, p)`, and scores `(p, m, k)` of the rows kept."""
        Z = (self.design.rows(rows) - self.mean) @ self.axes
        targets = np.full((len(rows), len(self.shares)), -1, dtype=self.dtype)
        targets[np.arange(len(rows)), self.codes[rows]] = 1
        own = some_weights(self.row_weights, rows)
        remainders = self._remainders(Z, own)
        sums = np.empty((2, len(self.alphas)))
        scores = []
        for column, weight in enumerate(self.weights):
            residuals = targets - Z @ weight
            residuals -= self.shares
            residuals /= remainders[:, column, None]
            left_out = np.subtract(targets, residuals, out=residuals)
            scores.append(left_out[kept[rows]])
            sums[:, column] = squared_loss_sums(left_out, self.codes[rows], own)
        return sums, np.stack(scores)

    def _remainders(self, Z: Floats, weights: Float64s | None) -> Floats:
        """1 - leverage `(b, p)`: what no axis holds, and alpha / (variance + alpha) of the rest.

        The leverage of a row grows with its weight.
        """
        shares = np.square(Z) / self.variances.astype(self.dtype)
        own = np.ones(len(Z)) if weights is None else weights
        if weights is not None:
            shares *= weights[:, None].astype(self.dtype)
        outside = np.maximum(1 - own / self.count - shares.sum(axis=1, dtype=np.float64), 0)
        kept = (self.alphas / (self.variances[:, None] + self.alphas)).astype(self.dtype)
        remainder = shares @ kept + outside[:, None].astype(self.dtype)
        return np.asarray(np.maximum(remainder, np.finfo(self.dtype).tiny))


def _decomposed(
    statistics: ClassStatistics,
) -> tuple[Float64s, Float64s, Float64s, Float64s]:
    """Variances times n `(r,)`, axes `(d, r)`, their moments with Y `(r, k)`, means of Y `(k,)`."""
    mean, count = statistics.mean, statistics.count
    scatter = statistics.gram - count * np.outer(mean, mean)
    variances, axes = np.linalg.eigh(scatter)
    largest = variances[-1] if len(variances) else 0.0
    used = variances > max(SMALLEST_VARIANCE * largest, np.finfo(np.float64).tiny)
    variances, axes = variances[used], axes[:, used]
    with_targets = 2 * (statistics.sums - statistics.counts[:, None] * mean)
    return variances, axes, axes.T @ with_targets.T, 2 * statistics.counts / count - 1
