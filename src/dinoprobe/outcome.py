"""What a classifier does on labelled images, and the files that say so.

`train` (its own test part) and `evaluate` (any other images) share this: evaluation.json,
predictions.csv, failures.csv and report.html come from one place.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.calibration import SetFigures, judge_sets
from dinoprobe.duplicates import WithoutLeaks, without_leaks
from dinoprobe.engine import write_failures
from dinoprobe.errors import HeadError
from dinoprobe.evaluation import Evaluation, evaluate
from dinoprobe.files import to_json, write_atomic
from dinoprobe.report import (
    Baseline,
    Compared,
    EpochPoint,
    ReportInput,
    SelectionPoint,
    render_report,
)
from dinoprobe.report import Prediction as Row
from dinoprobe.run import dataset_name, write_table
from dinoprobe.trust import AbstentionFigures, NoveltyFigures, judge_abstention, judge_novelty
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dinoprobe.audit import Suspect
    from dinoprobe.calibration import Calibration
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.duplicates import Leak
    from dinoprobe.learning_curve import LearningCurve
    from dinoprobe.types import Dataset, Failure, Features

MAX_INDENTED_CLASSES = 30  # a matrix of 1,000 classes takes a third of the bytes on one line
PRIOR_NOTE = (
    "Probabilities are for the class frequencies of --prior, and these images come as they are: "
    "balanced accuracy and the recalls judge them, log loss and calibration errors do not."
)
THUMBNAILS = 24
SUSPECT_THUMBNAILS = 12
THUMBNAIL_SIZE_PX = 128


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures, and one row and content hash for each labelled image, in the features' order."""

    evaluation: Evaluation
    predictions: tuple[Row, ...]
    hashes: tuple[str, ...]
    sets: SetFigures | None = None
    novelty: NoveltyFigures | None = None
    abstention: AbstentionFigures | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What became of sets, flags and abstention, for people."""
        found = (self.sets, self.novelty, self.abstention)
        return tuple(str(figures) for figures in found if figures is not None)

    def without(self, leaked: Sequence[Leak]) -> WithoutLeaks | None:
        """The accuracy without the test images that stand in another part, too."""
        return without_leaks(
            {row.key: row.true == row.predicted for row in self.predictions}, leaked
        )

    def confident_mistakes(self, limit: int = THUMBNAILS) -> list[Row]:
        """Wrong predictions, the most probable first."""
        wrong = [row for row in self.predictions if row.predicted != row.true]
        return sorted(wrong, key=lambda row: -row.probability)[:limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the files say beside the figures. `counts` are images by part and class."""

    dataset: Dataset
    protocol: str
    seed: int
    seconds: float
    command: str | None = None
    n_train: int = 0
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    notes: Sequence[str] = ()
    events: Sequence[Mapping[str, Any]] = ()
    baseline: Baseline | None = None
    suspects: Sequence[Suspect] = ()
    calibration: Calibration | None = None
    leaks: Sequence[Leak] = ()
    curve: LearningCurve | None = None


def judge(classifier: ImageClassifier, features: Features) -> Outcome:
    """Evaluate on features that all have labels. Raises HeadError for several labels an image."""
    if hasattr(classifier.head, "thresholds_"):
        raise HeadError(
            "The classifier gives several labels an image, and these figures are of one; expected "
            "a head with one. Judge it in Python: dinoprobe.multilabel.evaluate_labels."
        )
    probabilities = classifier.predict_features(features.X)
    labels = [str(label) for label in features.y]
    best = probabilities.argmax(axis=1)
    names = classifier.classes
    rows = zip(features.keys, labels, best, probabilities.max(axis=1), strict=True)
    predictions = tuple(Row(key, true, names[i], float(p)) for key, true, i, p in rows)
    evaluation = evaluate(labels, probabilities, names)
    sets = None
    if classifier.sets is not None:
        sets = judge_sets(classifier.sets, labels, probabilities, names)
    right = best == np.array([names.index(label) for label in labels])
    scores = classifier.novelty_scores(features.X)
    novelty, abstention = None, None
    if classifier.novelty is not None and scores is not None:
        novelty = judge_novelty(classifier.novelty, classifier.novelty.flags(scores), right)
    if classifier.abstention is not None:
        answered = classifier.abstention.answers(probabilities, scores)
        abstention = judge_abstention(classifier.abstention, answered, right)
    return Outcome(evaluation, predictions, features.hashes, sets, novelty, abstention)


def count_parts(
    labels: Sequence[object], splits: Sequence[str | None]
) -> dict[str, dict[str, int]]:
    """Images by part and class, parts in the order train, val, test."""
    counts = Counter((str(part), str(label)) for part, label in zip(splits, labels, strict=True))
    return {
        part: {label: n for (p, label), n in sorted(counts.items()) if p == part}
        for part in ("train", "val", "test")
        if any(p == part for p, _ in counts)
    }


def write_outcome(
    folder: Path, classifier: ImageClassifier, outcome: Outcome, context: Context
) -> None:
    """Write evaluation.json, predictions.csv, failures.csv and report.html."""
    indent = 2 if len(classifier.classes) <= MAX_INDENTED_CLASSES else None
    document = to_json(evaluation_document(classifier, outcome, context), indent=indent)
    write_atomic(folder / "evaluation.json", document + b"\n")
    header = ("key", "label", "predicted", "probability", "correct", "content_hash")
    rows = [
        (*row[:3], f"{row.probability:.6f}", int(row.true == row.predicted), content_hash)
        for row, content_hash in zip(outcome.predictions, outcome.hashes, strict=True)
    ]
    write_table(folder / "predictions.csv", header, rows)
    write_failures(folder / "failures.csv", context.failures)
    write_atomic(folder / "report.html", render_report(report_input(classifier, outcome, context)))


def evaluation_document(
    classifier: ImageClassifier, outcome: Outcome, context: Context
) -> dict[str, Any]:
    """The values of evaluation.json: the figures, and everything that they depend on."""
    return {
        "schema": "dinoprobe.evaluation/1",
        **outcome.evaluation.to_dict(),
        "calibration": context.calibration and context.calibration.to_dict(),
        **_trust(outcome),
        "without_leaks": _without(outcome, context),
        "learning_curve": context.curve and context.curve.to_dict(),
        "n_train": context.n_train,
        "failed": len(context.failures),
        "encoder": classifier.encoder.name,
        "fingerprint": classifier.encoder.fingerprint,
        "protocol": context.protocol,
        "seed": context.seed,
        "dataset": context.dataset.uri,
        "notes": list(context.notes),
        "versions": versions(),
        "created": _now(),
    }


def _without(outcome: Outcome, context: Context) -> dict[str, Any] | None:
    found = outcome.without(context.leaks)
    return found and found.to_dict()


def outcome_summary(
    schema: str, folder: Path, classifier: ImageClassifier, outcome: Outcome, context: Context
) -> dict[str, Any]:
    """The document of `--json`, in the part that `train` and `evaluate` share."""
    evaluation = outcome.evaluation
    return {
        "schema": schema,
        "run": str(folder),
        "report": str(folder / "report.html"),
        "accuracy": evaluation.accuracy,
        "interval": list(evaluation.accuracy_interval),
        "balanced_accuracy": evaluation.balanced_accuracy,
        **_trust(outcome),
        "without_leaks": _without(outcome, context),
        "n_test": evaluation.n,
        "n_train": context.n_train,
        "classes": list(classifier.classes),
        "failed": len(context.failures),
        "encoder": classifier.encoder.name,
        "fingerprint": classifier.encoder.fingerprint,
        "protocol": context.protocol,
        "seed": context.seed,
        "notes": list(context.notes),
        "seconds": round(context.seconds, 3),
    }


def _trust(outcome: Outcome) -> dict[str, Any]:
    return {
        "sets": outcome.sets and outcome.sets.to_dict(),
        "novelty": outcome.novelty and outcome.novelty.to_dict(),
        "abstention": outcome.abstention and outcome.abstention.to_dict(),
    }


def report_input(classifier: ImageClassifier, outcome: Outcome, context: Context) -> ReportInput:
    """What the report and the model card are made of."""
    return ReportInput(
        dataset=dataset_name(context.dataset.uri),
        encoder=_encoder_facts(classifier),
        evaluation=outcome.evaluation.to_dict(),
        head=_head_facts(classifier),
        run={
            "protocol": context.protocol,
            "seed": context.seed,
            "command": context.command,
            "created": _now(),
            "dataset_uri": context.dataset.uri,
            "dataset_digest": classifier.training.get("digest"),
            "device": str(classifier.encoder.device),
            "seconds": round(context.seconds, 1),
            "versions": versions(),
        },
        baseline=context.baseline,
        without_leaks=outcome.without(context.leaks),
        predictions=outcome.predictions,
        suspects=[Row(*suspect[:4]) for suspect in context.suspects],
        thumbnails=_thumbnails(context, outcome, classifier.encoder.preprocessing.bands),
        calibration=str(context.calibration or ""),
        sets=str(outcome.sets or ""),
        novelty=str(outcome.novelty or ""),
        abstention=str(outcome.abstention or ""),
        answered=_answered(outcome.abstention),
        selection=_selection(context.events),
        curve=context.curve,
        compared=_compared(context.events, classifier),
        epochs=_epochs(context.events),
        counts=context.counts,
        failures=context.failures,
        ignored=context.dataset.ignored,
        notes=context.notes,
    )


def _answered(figures: AbstentionFigures | None) -> tuple[float, float] | None:
    if figures is None or figures.accuracy is None:
        return None
    return figures.coverage, figures.accuracy


def _encoder_facts(classifier: ImageClassifier) -> dict[str, object]:
    encoder = classifier.encoder
    return {
        "id": encoder.reference.name,
        "commit": encoder.reference.commit,
        "model_type": encoder.model_type,
        "weights_digest": encoder.weights_digest,
        "hub_id": encoder.reference.name if encoder.reference.commit else None,
        "pooling": encoder.pooling,
        "preprocessing": encoder.preprocessing.to_dict(),
        "precision": encoder.precision,
        "dimension": encoder.dimension,
        "fingerprint": encoder.fingerprint,
    }


def _head_facts(classifier: ImageClassifier) -> dict[str, object]:
    facts = dict(classifier.training.get("head") or {})
    return {"name": facts.pop("name", type(classifier.head).__name__), **facts}


def _selection(events: Sequence[Mapping[str, Any]]) -> list[SelectionPoint]:
    return [
        SelectionPoint(event["strength"], event["accuracy"], option=event.get("option", "C"))
        for event in events
        if event["event"] == "selection"
    ]


def _compared(events: Sequence[Mapping[str, Any]], classifier: ImageClassifier) -> list[Compared]:
    kept = (classifier.training.get("head", {}).get("name"), classifier.encoder.pooling)
    return [
        Compared(
            event["head"],
            event["pooling"],
            event["accuracy"],
            event["log_loss"],
            event["behind"],
            event["standard_error"],
            (event["head"], event["pooling"]) == kept,
        )
        for event in events
        if event["event"] == "candidate"
    ]


def _epochs(events: Sequence[Mapping[str, Any]]) -> list[EpochPoint]:
    return [
        EpochPoint(event["epoch"], event["loss"]) for event in events if event["event"] == "epoch"
    ]


def _thumbnails(
    context: Context, outcome: Outcome, bands: tuple[int, ...] | None
) -> dict[str, bytes]:
    from dinoprobe.errors import ImageError
    from dinoprobe.preprocess import thumbnail

    wanted = {row.key for row in outcome.confident_mistakes()}
    wanted |= {suspect.key for suspect in context.suspects[:SUSPECT_THUMBNAILS]}
    found = {}
    for sample in context.dataset.samples:
        if sample.key in wanted:
            try:
                found[sample.key] = thumbnail(sample.source.read(), THUMBNAIL_SIZE_PX, bands=bands)
            except (ImageError, OSError):
                continue  # the file changed since it was embedded: the row stands without a picture
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
