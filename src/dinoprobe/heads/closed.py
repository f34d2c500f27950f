"""What the heads in closed form share: rows ready for them, and a path of strengths on folds.

Features are standardised once, over all rows. Where there are fewer rows than features, rows are
rotated into the axes that they span, which loses nothing and makes a fit cost no more than rows
(1,000 rows of 4,096 features: six eigendecompositions of 1,000 in place of 4,096).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import HeadError
from dinoprobe.heads.axes import principal_axes
from dinoprobe.heads.base import for_features
from dinoprobe.heads.folds import split_folds
from dinoprobe.heads.selection import in_words as rule_in_words
from dinoprobe.heads.selection import standard_errors, strongest_within
from dinoprobe.heads.statistics import (
    ClassStatistics,
    centered,
    chunks,
    merged,
    moments,
    product_dtype,
    statistics_of_folds,
)
from dinoprobe.heads.temperature import fit_temperature
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s

    Floats = npt.NDArray[np.floating]
    Score = Callable[[Floats, Codes, Float64s | None], tuple[float, float]]
    Solutions = list[tuple[Float64s, Float64s]]

JUDGED_ROWS = 10_000
"""Folds judge until this many rows have: a strength's neighbours then differ by 0.2 points or less
for luck, and five folds of 50,000 rows would cost five eigendecompositions for no other answer."""
ROUNDING = 1e-12
"""Accuracies that differ by less are equal: sums of weights are not exact."""
KEPT_ROWS = 5_000
KEPT_VALUES = 2**25
"""Validation scores kept for the temperature, which is one number: rows, and values in all."""


@dataclass(frozen=True, slots=True)
class Design:
    """Standardised rows `(n, r)` by block, and the way back to features as they came.

    With `axes` `(d, r)`, X holds rotated rows; without, features as they came. `scale` is infinite
    for constant features; `varying` counts the others.
    """

    X: Floats
    center: Float64s
    scale: Float64s
    axes: Float64s | None

    @property
    def varying(self) -> int:
        """Features that are not constant."""
        return int(np.isfinite(self.scale).sum())

    def rows(self, rows: Codes) -> Floats:
        """Some rows, standardised, `(b, r)`."""
        if self.axes is not None:
            return self.X[rows]
        result = np.empty((len(rows), self.X.shape[1]), product_dtype(self.X))
        return centered(self.X, rows, self.center, self.scale, result)

    def to_feature_space(self, weight: Float64s, intercept: Float64s) -> tuple[Float64s, Float64s]:
        """Weight `(k, d)` and intercept `(k,)` for features as they came, from `(r, k)`."""
        spanned = weight if self.axes is None else self.axes @ weight
        return for_features((spanned / self.scale[:, None]).T, intercept, self.center)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A design with the statistics of all rows in its coordinates, and of each fold in any.

    `raw` are those of all rows in features as they came; None for rotated rows.
    """

    design: Design
    parts: dict[int, ClassStatistics]
    total: ClassStatistics
    raw: ClassStatistics | None

    def without(self, fold: int) -> ClassStatistics:
        """Statistics of the rows outside a fold."""
        moved = self.parts[fold].moved(self.total.pivot, self.total.unit)
        return self.total.without(moved)


@dataclass(frozen=True, slots=True)
class Judged:
    """Mean accuracy and loss `(p,)` of each strength over `row_count` rows, more strength last.

    `scores` `(p, m, k)` are those of some of the rows, `weights` `(m,)` theirs, None where all
    count once.
    """

    accuracy: Float64s
    loss: Float64s
    scores: Floats
    codes: Codes
    row_count: float
    weights: Float64s | None = None

    def best(self, *, by_log_loss: bool) -> int:
        """The most accurate strength; of equals the one with the smaller loss.

        With `by_log_loss` that is the log loss of the scores that were kept, each strength at the
        temperature that suits it: at 1, scores of separable rows all have none.
        """
        equal = np.flatnonzero(self.accuracy >= self.accuracy.max() - ROUNDING)
        if not by_log_loss or len(equal) == 1:
            return int(equal[self.loss[equal].argmin()])
        return int(min(equal, key=lambda column: self.tempered_loss(int(column))))

    def standard_errors(self, best: int) -> Float64s:
        """Of how far each strength is behind `best`, `(p,)`, from the rows that were kept."""
        correct = self.scores.argmax(axis=2) == self.codes
        return standard_errors(best, self.row_count, correct, self.weights)

    def tempered_loss(self, column: int) -> float:
        """Mean log loss of a strength's kept scores, at their temperature."""
        scores = self.scores[column] / self.temperature(column)
        loss = log_loss_sums(scores, self.codes, self.weights)[1]
        return loss / total_weight(self.codes, self.weights)

    def temperature(self, column: int) -> float:
        """The temperature that suits a strength's kept scores."""
        return fit_temperature(self.scores[column], self.codes, self.weights)


def prepare(
    X: Floats, codes: Codes, class_count: int, folds: Codes, weights: Float64s | None = None
) -> Prepared:
    """Rows and the statistics of their folds, ready for any strength."""
    if len(X) < X.shape[1]:
        return _rotated(X, codes, class_count, folds, weights)
    empty = ClassStatistics.around(X, class_count)
    parts = statistics_of_folds(X, codes, folds, like=empty, weights=weights)
    raw = merged(parts)
    center, scale = raw.standardization()
    center = center.astype(X.dtype).astype(np.float64)
    return Prepared(Design(X, center, scale, None), parts, raw.moved(center, scale), raw)


def _rotated(
    X: Floats, codes: Codes, class_count: int, folds: Codes, weights: Float64s | None
) -> Prepared:
    center, scale = moments(X, weights)
    Z = ((X - center) / scale).astype(product_dtype(X))
    axes = principal_axes(Z)[1]
    rotated = Z @ axes.astype(Z.dtype)
    rank = axes.shape[1]
    plain = ClassStatistics(np.zeros(rank), np.ones(rank), class_count)
    parts = statistics_of_folds(rotated, codes, folds, like=plain, weights=weights)
    return Prepared(Design(rotated, center, scale, axes), parts, merged(parts), None)


def judge_on_folds(
    design: Design,
    codes: Codes,
    folds: Codes,
    solve: Callable[[int], Solutions],
    score: Score,
    values_per_row: int,
    weights: Float64s | None = None,
) -> Judged | None:
    """Each strength on the rows of each fold, fitted without them; None where no fold can judge.

    `solve` gives weight `(r, k)` and intercept `(k,)` of each strength without a fold, `score` the
    correct answers and the summed loss of scores `(b, k)`, which it may overwrite; there are
    `values_per_row` scores, strengths times classes. `weights` `(n,)` are those of the rows.
    """
    parts = [(int(folds[rows[0]]), rows) for _, rows in split_folds(folds, codes)]
    return judge_parts(design, codes, parts, solve, score, values_per_row, weights)


def judge_parts(
    design: Design,
    codes: Codes,
    parts: Sequence[tuple[int, Codes]],
    solve: Callable[[int], Solutions],
    score: Score,
    values_per_row: int,
    weights: Float64s | None = None,
) -> Judged | None:
    """As `judge_on_folds`, from each fold and the rows of the design that judge in it."""
    if not parts:
        return None
    dtype = product_dtype(design.X)
    judged = np.concatenate([rows for _, rows in parts])
    kept = kept_rows(judged, len(codes), values_per_row)

    def solved(part: tuple[int, Codes]) -> Solutions:
        return [(weight.astype(dtype), bias.astype(dtype)) for weight, bias in solve(part[0])]

    def judge(rows: Codes, path: Solutions) -> tuple[Float64s, list[Floats]]:
        return _judge_rows(design, (codes, weights), rows, path, score, kept)

    with ThreadPoolExecutor(usable_cores()) as pool:
        solutions = zip(parts, pool.map(solved, parts), strict=True)
        jobs = [
            pool.submit(judge, rows, path)
            for (_, all_rows), path in solutions
            for rows in chunks(all_rows)
        ]
        found = [job.result() for job in jobs]
    sums = np.sum([each for each, _ in found], axis=0)
    row_count = total_weight(judged, some_weights(weights, judged))
    accuracy, loss = sums / row_count
    scores = np.stack([np.concatenate(each) for each in zip(*(s for _, s in found), strict=True)])
    own = judged[kept[judged]]
    return Judged(accuracy, loss, scores, codes[own], row_count, some_weights(weights, own))


def some_weights(weights: Float64s | None, rows: Codes) -> Float64s | None:
    """The weights of some rows, None where all count once."""
    return None if weights is None else weights[rows]


def total_weight(rows: Codes, weights: Float64s | None) -> float:
    """How many rows there are, each times its weight."""
    return float(len(rows) if weights is None else weights.sum())


def kept_rows(judged: Codes, row_count: int, values_per_row: int) -> npt.NDArray[np.bool_]:
    """Which rows `(n,)` keep their scores: evenly spaced ones of those that are judged."""
    limit = min(KEPT_ROWS, KEPT_VALUES // values_per_row + 1, len(judged))
    kept = np.zeros(row_count, dtype=bool)
    kept[evenly(np.sort(judged), limit)] = True
    return kept


def evenly(rows: Codes, limit: int) -> Codes:
    """At most so many of these rows, evenly spaced."""
    spaced = np.linspace(0, len(rows) - 1, min(limit, len(rows)))
    return rows[spaced.astype(np.intp)]


def _judge_rows(
    design: Design,
    labelled: tuple[Codes, Float64s | None],
    rows: Codes,
    path: Solutions,
    score: Score,
    kept: npt.NDArray[np.bool_],
) -> tuple[Float64s, list[Floats]]:
    """Correct answers and loss `(2, p)` of a chunk of rows, and the scores of those to keep."""
    sums = np.empty((2, len(path)))
    scores: list[Floats] = []
    features, truth = design.rows(rows), labelled[0][rows]
    weights = some_weights(labelled[1], rows)
    for column, (weight, intercept) in enumerate(path):
        found = features @ weight
        found += intercept
        scores.append(found[kept[rows]])
        sums[:, column] = score(found, truth, weights)
    return sums, scores


def few_folds(folds: Codes) -> Codes:
    """The same folds, up to the one with which `JUDGED_ROWS` rows have judged; -1 from there."""
    numbers, counts = np.unique(folds[folds >= 0], return_counts=True)
    needed = numbers[np.cumsum(counts) - counts < JUDGED_ROWS]
    return np.where(np.isin(folds, needed), folds, -1)


def in_words(folds: Codes, judging: Codes, codes: Codes, origin: str) -> str:
    """Which folds judge: "5 stratified folds", "1 of 5 stratified folds"."""
    count, all_count = (sum(1 for _ in split_folds(each, codes)) for each in (judging, folds))
    of = "" if count == all_count else f" of {all_count}"
    return f"{count}{of} {origin} fold{'s' if all_count > 1 else ''}"


def log_loss_sums(
    logits: Floats, codes: Codes, weights: Float64s | None = None
) -> tuple[float, float]:
    """Correct answers and summed log loss; the logits are overwritten."""
    correct = _weighted_sum(logits.argmax(axis=1) == codes, weights)
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(codes)), codes].astype(np.float64)
    np.exp(logits, out=logits)
    return correct, _weighted_sum(np.log(logits.sum(axis=1), dtype=np.float64) - own, weights)


def squared_loss_sums(
    scores: Floats, codes: Codes, weights: Float64s | None = None
) -> tuple[float, float]:
    """Correct answers and summed squared distance from targets of 1 and -1; overwrites scores."""
    correct = _weighted_sum(scores.argmax(axis=1) == codes, weights)
    scores += 1
    scores[np.arange(len(codes)), codes] -= 2
    losses = np.square(scores, out=scores).sum(axis=1, dtype=np.float64)
    return correct, _weighted_sum(losses, weights)


def _weighted_sum(values: npt.NDArray[Any], weights: Float64s | None) -> float:
    return float(values.sum() if weights is None else values @ weights)


@dataclass(frozen=True, slots=True)
class Choice:
    """A strength and a temperature, how the strength was chosen, in words, and what was judged.

    `results` are arrays `(p,)`: `accuracy`, the loss, and `standard_error`, of how far a strength
    is behind the best.
    """

    strength: float
    temperature: float
    selection: str
    results: dict[str, Float64s] | None


def choose(
    judged: Judged | None,
    values: Sequence[float],
    *,
    default: float,
    temperature: float | None,
    how: str,
    by_log_loss: bool,
    rule: str = "best",
) -> Choice:
    """One of the strengths that were judged, by `rule`, and the temperature of its scores.

    One strength counts as given. Without a judgement the strength is `default`, the temperature 1.
    """
    given = len(values) == 1
    if judged is None:
        selection = "given" if given else by_default(default)
        return Choice(values[0] if given else default, temperature or 1.0, selection, None)
    best = judged.best(by_log_loss=by_log_loss)
    errors = judged.standard_errors(best)
    taken = best
    if rule == "one-se":
        taken = strongest_within(judged.accuracy, best, errors, strongest_last=True)
    edge = ", at the edge of the path" if taken in (0, len(values) - 1) else ""
    fitted = temperature or judged.temperature(taken)
    if given:
        return Choice(values[0], fitted, "given", None)
    loss = {"log_loss" if by_log_loss else "squared_loss": judged.loss}
    results = {"accuracy": judged.accuracy, **loss, "standard_error": errors}
    return Choice(values[taken], fitted, how + rule_in_words(rule) + edge, results)


def by_default(value: float) -> str:
    """Why a value was not chosen, in words."""
    return f"default, {value:g}: no class has rows to train and to validate"


def check_path(
    name: str, values: Sequence[float], *, most: float = float("inf"), example: str
) -> list[float]:
    """Strengths in rising order, or HeadError unless all lie in (0, most]."""
    found = sorted(float(value) for value in values)
    if not found or not all(0 < value <= most and np.isfinite(value) for value in found):
        limit = "positive, finite numbers" if np.isinf(most) else f"numbers above 0, up to {most:g}"
        raise HeadError(f"{name} is {found}; expected {limit}, such as {example}.")
    return found


def check_temperature(temperature: Any) -> None:
    """HeadError unless it is None or a positive number."""
    if temperature is not None and not 0 < float(temperature) < float("inf"):
        raise HeadError(
            f"temperature is {temperature}; expected a number above 0, or None to fit it."
        )
