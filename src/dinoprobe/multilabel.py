"""Figures of several labels an image, each with its interval.

Average precision judges the order of the images for one class and needs no threshold; F1 judges the
labels that were given. Intervals come from images drawn again with replacement (Efron 1979), 500
times: there is no formula for these figures. As in `evaluation`, what is not defined is None, and
numpy suffices.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import DatasetError, HeadError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.evaluation import Float64s, Interval

RESAMPLES = 500
CHUNK_VALUES = 1 << 22
"""Weights of resampled images that are held at a time."""


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """One class: images that have the label, and that were given it; None where not defined."""

    label: str
    support: int
    predicted: int
    threshold: float
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class MultiLabelEvaluation:
    """Figures over `n` images, with 95 % intervals.

    `mean_average_precision` and `macro_f1` average the classes that some image has, `micro_f1`
    counts all labels of all images together; None where no image has a label. `exact` is the share
    of images all of whose labels are right.
    """

    n: int
    classes: tuple[str, ...]
    mean_average_precision: float | None
    mean_average_precision_interval: Interval | None
    micro_f1: float | None
    micro_f1_interval: Interval | None
    macro_f1: float | None
    macro_f1_interval: Interval | None
    exact: float
    per_class: tuple[LabelFigures, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
        return values


def evaluate_labels(
    truths: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> MultiLabelEvaluation:
    """Figures of probabilities `(n, k)` and thresholds `(k,)` against truths `(n, k)` of 0 and 1.

    A label is given from its threshold on. Raises DatasetError for no images, HeadError for other
    shapes or values, NonFiniteError.
    """
    Y, P, cuts = _checked(truths, probabilities, thresholds, len(classes))
    given = cuts <= P
    sums = _sums(np.ones((1, len(Y))), Y, given)
    precisions = _average_precisions(np.ones((1, len(Y))), Y, P)[0]
    resampled = _resampled(Y, P, given, seed)
    one = [_optional(value[0]) for value in _summaries(sums, precisions[None])]
    intervals = [_interval(values) for values in resampled]
    return MultiLabelEvaluation(
        n=len(Y),
        classes=tuple(classes),
        mean_average_precision=one[0],
        mean_average_precision_interval=intervals[0],
        micro_f1=one[1],
        micro_f1_interval=intervals[1],
        macro_f1=one[2],
        macro_f1_interval=intervals[2],
        exact=float((given == Y).all(axis=1).mean()),
        per_class=tuple(
            _one_class(label, sums[:, 0, column], cuts[column], precisions[column])
            for column, label in enumerate(classes)
        ),
    )


def average_precision(
    truths: npt.NDArray[np.bool_], scores: Float64s, weights: Float64s
) -> Float64s:
    """Σ (recall - recall before) precision over falling scores, `(b,)`, for weights `(b, n)`.

    Equal scores are one step. NaN where no weight is on a true row.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    ordered = weights[:, order]
    given = ordered.cumsum(axis=1)[:, ends]
    right = (ordered * truths[order]).cumsum(axis=1)[:, ends]
    positives = right[:, -1]
    found = np.diff(right, axis=1, prepend=0) * right / np.where(given > 0, given, 1)
    return np.asarray(
        np.where(positives > 0, found.sum(axis=1) / np.where(positives > 0, positives, 1), np.nan)
    )


def _average_precisions(weights: Float64s, Y: npt.NDArray[np.bool_], P: Float64s) -> Float64s:
    """Of each class, `(b, k)`."""
    columns = [average_precision(Y[:, j], P[:, j], weights) for j in range(Y.shape[1])]
    return np.stack(columns, axis=1)


def _sums(weights: Float64s, Y: npt.NDArray[np.bool_], given: npt.NDArray[np.bool_]) -> Float64s:
    """Labels that are right, given, and true, `(3, b, k)`."""
    return np.stack([weights @ each.astype(np.float64) for each in (Y & given, given, Y)])


def _summaries(sums: Float64s, precisions: Float64s) -> tuple[Float64s, Float64s, Float64s]:
    """Mean average precision, micro F1 and macro F1 `(b,)`; NaN where not defined."""
    right, given, true = sums
    present = true > 0
    f1 = 2 * right / np.where(given + true > 0, given + true, 1)
    total = given.sum(axis=1) + true.sum(axis=1)
    any_true = present.any(axis=1)
    count = np.maximum(present.sum(axis=1), 1)
    mean = np.where(present, precisions, 0).sum(axis=1) / count
    macro = np.where(present, f1, 0).sum(axis=1) / count
    micro = 2 * right.sum(axis=1) / np.where(total > 0, total, 1)
    return tuple(np.where(any_true, each, np.nan) for each in (mean, micro, macro))  # type: ignore[return-value]


def _resampled(
    Y: npt.NDArray[np.bool_], P: Float64s, given: npt.NDArray[np.bool_], seed: int
) -> tuple[Float64s, ...]:
    """The summaries of images drawn again, `(RESAMPLES,)` each."""
    rng, n = np.random.default_rng(seed), len(Y)
    size = max(1, CHUNK_VALUES // n)
    found = []
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        found.append(_summaries(_sums(weights, Y, given), _average_precisions(weights, Y, P)))
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))


def _interval(values: Float64s) -> Interval | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _optional(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _one_class(label: str, sums: Float64s, threshold: float, precision: float) -> LabelFigures:
    right, given, true = (int(count) for count in sums)
    return LabelFigures(
        label=label,
        support=true,
        predicted=given,
        threshold=float(threshold),
        average_precision=_optional(precision),
        precision=right / given if given else None,
        recall=right / true if true else None,
        f1=2 * right / (given + true) if given + true else None,
    )


def _checked(
    truths: npt.ArrayLike, probabilities: npt.ArrayLike, thresholds: npt.ArrayLike, k: int
) -> tuple[npt.NDArray[np.bool_], Float64s, Float64s]:
    Y, P = np.asarray(truths), np.asarray(probabilities, dtype=np.float64)
    cuts = np.asarray(thresholds, dtype=np.float64)
    if Y.ndim == 2 and len(Y) == 0:
        raise DatasetError("There are no labelled images to evaluate on; expected at least one.")
    if Y.ndim != 2 or P.shape != Y.shape or Y.shape[1] != k or cuts.shape != (k,):
        raise HeadError(
            f"Truths have the shape {Y.shape}, probabilities {P.shape}, thresholds {cuts.shape}; "
            f"expected (n, {k}), (n, {k}) and ({k},): one column for each class."
        )
    if not np.isin(Y, (0, 1)).all():
        raise HeadError("Truths hold other values than 0 and 1; give 1 where an image has a label.")
    if not np.isfinite(P).all():
        row = int(np.flatnonzero(~np.isfinite(P).all(axis=1))[0])
        raise NonFiniteError(
            f"Probabilities hold NaN or infinity, first in row {row}; expected finite numbers. "
            f"Check the features of that image."
        )
    return Y.astype(bool), P, cuts
