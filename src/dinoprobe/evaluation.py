"""Figures of a classifier on labelled images, each accuracy with its interval.

A figure that is not defined (the precision of a class that was never predicted, the recall of a
class without images) is None, never 0, so that averages and readers are not misled. numpy and scipy
only: reading a saved evaluation must not cost the import of torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import (
    ConfigurationError,
    DatasetError,
    FormatError,
    HeadError,
    NonFiniteError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Float64s = npt.NDArray[np.float64]
    Codes = npt.NDArray[np.intp]

RELIABILITY_BINS = 15
LOG_LOSS_FLOOR = 1e-15
WORST_CONFUSIONS = 10
KEPT_SHARES = tuple(step / 20 for step in range(2, 21))
SUM_TOLERANCE = 1e-4
ROUNDING = 1e-9
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class. Precision is None where it was never predicted, recall where it has no images."""

    label: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    recall_interval: Interval | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images whose top probability lies in (low, high]; means are None in an empty bin."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """So many images of class `true` were taken for class `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """Answering only from a top probability of `threshold`: the share answered, and wrong of it."""

    coverage: float
    risk: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over `n` images.

    Macro figures and `balanced_accuracy` average the classes with images; in `macro_precision` a
    class that was never predicted counts as 0. `top5_accuracy` is None up to 5 classes.
    `confusion[i][j]` counts images of class i predicted as class j, in the order of `classes`.
    `expected_calibration_error` is Σ count/n · |accuracy - confidence| over 15 bins of equal width
    on the top probability (Guo et al. 2017, equation 3). `log_loss` floors probabilities at 1e-15.
    `risk_coverage` are points of the curve of errors over the share of images that are answered,
    the surest first, and `risk_coverage_area` is its mean (Geifman and El-Yaniv 2017); empty and
    None in files from before there was a curve. Intervals are Wilson's at 95 %.
    """

    n: int
    classes: tuple[str, ...]
    accuracy: float
    accuracy_interval: Interval
    balanced_accuracy: float
    top5_accuracy: float | None
    macro_precision: float
    macro_recall: float
    macro_f1: float
    log_loss: float
    expected_calibration_error: float
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]
    worst_confusions: tuple[Confusion, ...]
    risk_coverage: tuple[RiskPoint, ...] = ()
    risk_coverage_area: float | None = None

    @property
    def n_per_class(self) -> dict[str, int]:
        """Images of each class."""
        return {figures.label: figures.support for figures in self.per_class}

    def answering(self, share: float) -> RiskPoint | None:
        """The point that answers at least this share, the smallest; None without one below all."""
        found = [p for p in self.risk_coverage if share <= p.coverage < 1]
        return min(found, key=lambda p: p.coverage, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold; tuples become lists."""
        plain: dict[str, Any] = _to_lists(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_dict` wrote down, or FormatError."""
        try:
            nested = {
                "per_class": tuple(_class_figures(entry) for entry in values["per_class"]),
                "reliability": tuple(ReliabilityBin(**entry) for entry in values["reliability"]),
                "worst_confusions": tuple(Confusion(**e) for e in values["worst_confusions"]),
                "confusion": tuple(tuple(row) for row in values["confusion"]),
                "risk_coverage": tuple(RiskPoint(**e) for e in values.get("risk_coverage", ())),
                "classes": tuple(values["classes"]),
                "accuracy_interval": _interval(values["accuracy_interval"]),
            }
            return cls(**{**values, **nested})
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"Saved evaluation: {type(error).__name__} {error}; expected what to_dict writes. "
                f"Evaluate again."
            ) from error


def evaluate(
    y_true: Sequence[str], probabilities: npt.ArrayLike, classes: Sequence[str]
) -> Evaluation:
    """Figures of `probabilities` `(n, k)`, columns in the order of `classes`, against the labels.

    Classes without images are allowed. Raises DatasetError for labels outside `classes` and for no
    images, HeadError for probabilities of another shape or that do not sum to 1, NonFiniteError.
    """
    P = _check_probabilities(probabilities, len(y_true), len(classes))
    codes = _encode(y_true, classes)
    predicted = P.argmax(axis=1)
    k = len(classes)
    confusion = np.bincount(codes * k + predicted, minlength=k * k).reshape(k, k)
    per_class = _per_class(confusion, classes)
    seen = [figures for figures in per_class if figures.support]
    correct = int(np.trace(confusion))
    recall = _mean([figures.recall for figures in seen])
    confidence, right = P.max(axis=1), predicted == codes
    reliability = reliability_bins(confidence, right)
    points, area = risk_coverage(confidence, right)
    return Evaluation(
        n=len(codes),
        classes=tuple(classes),
        accuracy=correct / len(codes),
        accuracy_interval=wilson(correct, len(codes)),
        balanced_accuracy=recall,
        top5_accuracy=_top5_accuracy(P, codes) if k > 5 else None,
        macro_precision=_mean([figures.precision for figures in seen]),
        macro_recall=recall,
        macro_f1=_mean([figures.f1 for figures in seen]),
        log_loss=_log_loss(P, codes),
        expected_calibration_error=expected_calibration_error(reliability),
        per_class=per_class,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        reliability=reliability,
        worst_confusions=_worst_confusions(confusion, classes),
        risk_coverage=points,
        risk_coverage_area=area,
    )


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval (low, high) of a share (Wilson 1927), without correction."""
    if not 0 <= successes <= n or n < 1 or not 0 < level < 1:
        raise ConfigurationError(
            f"wilson({successes}, {n}, {level}): expected 0 <= successes <= n, n from 1, and a "
            f"level between 0 and 1."
        )
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + (z / (2 * n)) ** 2) ** 0.5 / (1 + z * z / n)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return low, high


def reliability_bins(
    confidence: Float64s, correct: npt.NDArray[np.bool_], bin_count: int = RELIABILITY_BINS
) -> tuple[ReliabilityBin, ...]:
    """Bins of equal width over (0, 1]: how sure, and how often right."""
    edges = np.linspace(0, 1, bin_count + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bin_count - 1)
    counts = np.bincount(index, minlength=bin_count)
    filled = np.maximum(counts, 1)
    sure = np.bincount(index, confidence, minlength=bin_count) / filled
    right = np.bincount(index, correct, minlength=bin_count) / filled
    return tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(counts[i]),
            confidence=float(sure[i]) if counts[i] else None,
            accuracy=float(right[i]) if counts[i] else None,
        )
        for i in range(bin_count)
    )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean over images of their bin's |accuracy - confidence|."""
    n = sum(entry.count for entry in bins)
    gaps = (
        entry.count * abs(entry.accuracy - entry.confidence)
        for entry in bins
        if entry.accuracy is not None and entry.confidence is not None
    )
    return sum(gaps) / n


def risk_coverage(
    confidence: Float64s, correct: npt.NDArray[np.bool_]
) -> tuple[tuple[RiskPoint, ...], float]:
    """Points of the curve at `KEPT_SHARES` or more, and the mean of the risk over 1 … n answers.

    Equally sure images can not be told apart: a point answers all of them or none, and in the area
    each counts with their common share of errors, so that no order of files matters.
    """
    levels, level = np.unique(-confidence, return_inverse=True)
    counts = np.bincount(level)
    errors = np.bincount(level, ~correct)
    answered, wrong = counts.cumsum(), errors.cumsum()
    n = len(confidence)
    expected = np.repeat(errors / counts, counts).cumsum()
    area = float((expected / np.arange(1, n + 1)).mean())
    kept = np.searchsorted(answered, np.ceil(np.array(KEPT_SHARES) * n - ROUNDING))
    points = tuple(
        RiskPoint(float(answered[i] / n), float(wrong[i] / answered[i]), float(-levels[i]))
        for i in np.unique(kept)
    )
    return points, area


def _check_probabilities(probabilities: npt.ArrayLike, n: int, k: int) -> Float64s:
    P = np.asarray(probabilities, dtype=np.float64)
    if n == 0:
        raise DatasetError("There are no labelled images to evaluate on; expected at least one.")
    if P.shape != (n, k):
        raise HeadError(
            f"Probabilities have the shape {P.shape}; expected ({n}, {k}): one row for each label, "
            f"one column for each class."
        )
    if not np.isfinite(P).all():
        row = int(np.flatnonzero(~np.isfinite(P).all(axis=1))[0])
        raise NonFiniteError(
            f"Probabilities hold NaN or infinity, first in row {row}; expected finite numbers. "
            f"Check the features of that image."
        )
    off = (np.abs(P.sum(axis=1) - 1) > SUM_TOLERANCE) | (P < 0).any(axis=1)
    if off.any():
        row = int(off.argmax())
        raise HeadError(
            f"Row {row} of the probabilities sums to {P[row].sum():.6g} with a smallest value of "
            f"{P[row].min():.3g}; expected values from 0 that sum to 1. Pass predict_proba, not "
            f"scores."
        )
    return P


def _encode(y_true: Sequence[str], classes: Sequence[str]) -> Codes:
    codes = {label: code for code, label in enumerate(classes)}
    if len(codes) != len(classes):
        raise HeadError(f"Of {len(classes)} classes only {len(codes)} differ; expected each once.")
    unknown = sorted({str(label) for label in y_true if label not in codes})
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DatasetError(
            f"Labels that the classifier does not know: {', '.join(map(repr, unknown[:5]))}{more}; "
            f"expected some of its {len(classes)} classes. Leave those images out, or train with "
            f"them."
        )
    return np.array([codes[label] for label in y_true], dtype=np.intp)


def _per_class(confusion: Codes, classes: Sequence[str]) -> tuple[ClassFigures, ...]:
    supports, predictions = confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        _one_class(label, int(confusion[i, i]), int(supports[i]), int(predictions[i]))
        for i, label in enumerate(classes)
    )


def _one_class(label: str, correct: int, support: int, predicted: int) -> ClassFigures:
    return ClassFigures(
        label=label,
        support=support,
        predicted=predicted,
        precision=correct / predicted if predicted else None,
        recall=correct / support if support else None,
        recall_interval=wilson(correct, support) if support else None,
        f1=2 * correct / (support + predicted) if support + predicted else None,
    )


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value or 0.0 for value in values]))


def _top5_accuracy(P: Float64s, codes: Codes) -> float:
    """Share of images whose class is among the 5 most probable; ties go to earlier classes."""
    top = np.argsort(-P, axis=1, kind="stable")[:, :5]
    return float((top == codes[:, None]).any(axis=1).mean())


def _log_loss(P: Float64s, codes: Codes) -> float:
    own = P[np.arange(len(codes)), codes]
    return float(-np.log(np.clip(own, LOG_LOSS_FLOOR, 1)).mean())


def _worst_confusions(confusion: Codes, classes: Sequence[str]) -> tuple[Confusion, ...]:
    """The most frequent errors, at most 10, of equals the first in the order of classes."""
    errors = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-errors, axis=None, kind="stable")[:WORST_CONFUSIONS]
    pairs = (divmod(int(cell), len(classes)) for cell in order)
    return tuple(
        Confusion(classes[i], classes[j], int(errors[i, j])) for i, j in pairs if errors[i, j]
    )


def _class_figures(entry: Mapping[str, Any]) -> ClassFigures:
    interval = entry["recall_interval"]
    recall_interval = None if interval is None else _interval(interval)
    return ClassFigures(**{**entry, "recall_interval": recall_interval})


def _interval(values: Sequence[float]) -> Interval:
    low, high = values
    return float(low), float(high)


def _to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_lists(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_lists(entry) for entry in value]
    return value
