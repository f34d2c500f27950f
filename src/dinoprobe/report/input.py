"""What a report is made of: plain data from the caller, and the figures read from it.

Only `Figures.from_evaluation` knows the keys of `Evaluation.to_dict()`. A key that is absent,
null or not finite becomes None, and the report leaves that part out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dinoprobe.duplicates import WithoutLeaks
    from dinoprobe.learning_curve import LearningCurve
    from dinoprobe.types import Failure

Interval = tuple[float, float]


class Prediction(NamedTuple):
    """What the classifier said of one test image; `probability` is that of `predicted`."""

    key: str
    true: str
    predicted: str
    probability: float


class Baseline(NamedTuple):
    """Another classifier on the same test images, for comparison."""

    name: str
    accuracy: float
    interval: Interval | None = None


class SelectionPoint(NamedTuple):
    """Mean cross-validation accuracy of the head at one strength of regularisation.

    `option` is the head's name for the strength: C, alpha or shrinkage.
    """

    strength: float
    accuracy: float
    deviation: float | None = None
    option: str = "C"


class Compared(NamedTuple):
    """One head on one pooling among those that were compared out of fold.

    `log_loss` is that at its temperature; `behind` the best accuracy, `error` of that.
    """

    head: str
    pooling: str
    accuracy: float
    log_loss: float
    behind: float
    error: float
    is_kept: bool


class EpochPoint(NamedTuple):
    """Mean loss over one epoch of training, and on the validation images if there are any."""

    epoch: int
    loss: float
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """Everything a report shows. Only `dataset`, `encoder` and `evaluation` are required.

    `evaluation` is `Evaluation.to_dict()`. `encoder`, `head` and `run` are open mappings: the
    report puts the keys that it knows first, and shows all others as they are. It knows

    - encoder: `id` (a name, a hub id or a folder), `commit`, `weights_digest`, `pooling`,
      `preprocessing`, `fingerprint`, `dimension`, `precision`, `model_type`,
      `hub_id` (None when not from the hub);
    - head: `name`, `strength`, `alpha`, `shrinkage`, `temperature`;
    - run: `protocol`, `seed`, `command`, `created`, `dataset_uri`, `dataset_digest`, `device`,
      `seconds`, `versions` (a mapping of library to version).

    `without_leaks` is the accuracy without test images that stand in another part.
    `suspects` are training images with their label as `true`, the most doubtful first.
    `counts` are images by split and class, `ignored` files that are not images by reason.
    `calibration`, `sets`, `novelty` and `abstention` are sentences, `answered` is the share of
    images that the classifier's own rule answers, and its accuracy there. `thumbnails` are small
    JPEG, PNG or WebP files by key.
    """

    dataset: str
    encoder: Mapping[str, object]
    evaluation: Mapping[str, Any]
    head: Mapping[str, object] = field(default_factory=dict)
    run: Mapping[str, object] = field(default_factory=dict)
    baseline: Baseline | None = None
    without_leaks: WithoutLeaks | None = None
    predictions: Sequence[Prediction] = ()
    suspects: Sequence[Prediction] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    calibration: str = ""
    sets: str = ""
    novelty: str = ""
    abstention: str = ""
    answered: tuple[float, float] | None = None
    selection: Sequence[SelectionPoint] = ()
    epochs: Sequence[EpochPoint] = ()
    curve: LearningCurve | None = None
    compared: Sequence[Compared] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


class ClassFigures(NamedTuple):
    """The figures of one class; `number` is its place among the classes, from 1."""

    number: int
    name: str
    precision: float | None
    recall: float | None
    recall_interval: Interval | None
    f1: float | None
    support: int


class Bin(NamedTuple):
    """One bin of the reliability diagram."""

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


class Kept(NamedTuple):
    """The accuracy among the surest images, a share `coverage` of all, from `threshold` on."""

    coverage: float
    accuracy: float
    threshold: float


class Confused(NamedTuple):
    """How often one class was taken for another."""

    true: str
    predicted: str
    images: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of an evaluation, with None where it has none."""

    n: int
    accuracy: float | None
    interval: Interval | None
    balanced_accuracy: float | None
    top5_accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    log_loss: float | None
    calibration_error: float | None
    classes: tuple[str, ...]
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]
    worst_confusions: tuple[Confused, ...]
    kept: tuple[Kept, ...]

    @classmethod
    def from_evaluation(cls, evaluation: Mapping[str, Any]) -> Figures:
        """The figures in `Evaluation.to_dict()`."""
        classes = tuple(str(name) for name in evaluation.get("classes") or ())
        confusion = tuple(tuple(int(c) for c in row) for row in evaluation.get("confusion") or ())
        return cls(
            n=int(evaluation.get("n") or 0),
            accuracy=_number(evaluation.get("accuracy")),
            interval=_interval(evaluation.get("accuracy_interval")),
            balanced_accuracy=_number(evaluation.get("balanced_accuracy")),
            top5_accuracy=_number(evaluation.get("top5_accuracy")),
            precision=_number(evaluation.get("macro_precision")),
            recall=_number(evaluation.get("macro_recall")),
            f1=_number(evaluation.get("macro_f1")),
            log_loss=_number(evaluation.get("log_loss")),
            calibration_error=_number(evaluation.get("expected_calibration_error")),
            classes=classes,
            per_class=_per_class(evaluation.get("per_class") or ()),
            confusion=confusion,
            reliability=_reliability(evaluation.get("reliability") or ()),
            worst_confusions=_worst(evaluation.get("worst_confusions") or (), classes, confusion),
            kept=tuple(
                Kept(float(row["coverage"]), 1 - float(row["risk"]), float(row["threshold"]))
                for row in evaluation.get("risk_coverage") or ()
            ),
        )

    @property
    def correct(self) -> int | None:
        """How many images were classified correctly."""
        return None if self.accuracy is None else round(self.accuracy * self.n)

    @property
    def majority(self) -> float | None:
        """The accuracy of always answering the most frequent class of the test images."""
        most = max((row.support for row in self.per_class), default=0)
        return most / self.n if self.n and most else None


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _interval(value: Sequence[object] | None) -> Interval | None:
    if value is None or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else (low, high)


def _per_class(rows: Sequence[Mapping[str, Any]]) -> tuple[ClassFigures, ...]:
    return tuple(
        ClassFigures(
            number=number,
            name=str(row["label"]),
            precision=_number(row.get("precision")),
            recall=_number(row.get("recall")),
            recall_interval=_interval(row.get("recall_interval")),
            f1=_number(row.get("f1")),
            support=int(row.get("support") or 0),
        )
        for number, row in enumerate(rows, start=1)
    )


def _reliability(rows: Sequence[Mapping[str, Any]]) -> tuple[Bin, ...]:
    bins = []
    for row in rows:
        confidence, accuracy = _number(row.get("confidence")), _number(row.get("accuracy"))
        if row.get("count") and confidence is not None and accuracy is not None:
            lower, upper = float(row["low"]), float(row["high"])
            bins.append(Bin(lower, upper, int(row["count"]), confidence, accuracy))
    return tuple(bins)


def _worst(
    rows: Sequence[Mapping[str, Any]],
    classes: tuple[str, ...],
    confusion: tuple[tuple[int, ...], ...],
) -> tuple[Confused, ...]:
    """Every error of the matrix, the most frequent first; without a matrix, those in `rows`."""
    if len(classes) == len(confusion) > 0:
        pairs = [
            Confused(classes[i], classes[j], images)
            for i, row in enumerate(confusion)
            for j, images in enumerate(row)
            if images and i != j
        ]
    else:
        pairs = [Confused(str(r["true"]), str(r["predicted"]), int(r["count"])) for r in rows]
    return tuple(sorted(pairs, key=lambda pair: -pair.images))
