"""The recipe itself, from a configuration to a run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dinoprobe.calibration import tested
from dinoprobe.classifier import ImageClassifier, training_digest
from dinoprobe.datasets import write_split
from dinoprobe.duplicates import near_duplicates, pixels_of, too_many
from dinoprobe.encoder import open_encoder
from dinoprobe.engine import embed
from dinoprobe.errors import DatasetError, HeadError
from dinoprobe.files import write_json
from dinoprobe.heads import prior_shares
from dinoprobe.mapped import folder_of
from dinoprobe.outcome import (
    PRIOR_NOTE,
    Context,
    Outcome,
    count_parts,
    judge,
    outcome_summary,
    report_input,
    write_outcome,
)
from dinoprobe.partition import check_labels, partition, set_aside
from dinoprobe.quantize import int8_for
from dinoprobe.report import render_card
from dinoprobe.run import (
    check_note,
    check_out,
    new_run,
    write_curve,
    write_leaks,
    write_metrics,
    write_suspects,
    write_table,
)
from dinoprobe.store import FeatureStore
from dinoprobe.train.candidates import unfitted
from dinoprobe.train.checks import check_config
from dinoprobe.train.config import CONFIG_SCHEMA, TrainConfig, asked_encoder, resolved
from dinoprobe.train.curve import learning_curve
from dinoprobe.train.few_shot import SHOT_COLUMNS, few_shot_figures, shot_rows
from dinoprobe.train.fit import Fit, chosen, fit, protocol
from dinoprobe.train.memory import within_memory
from dinoprobe.train.protocols import plan_of
from dinoprobe.types import NoProgress
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dinoprobe.audit import Suspect
    from dinoprobe.calibration import Calibration
    from dinoprobe.duplicates import NearPair
    from dinoprobe.encoder import Encoder
    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.engine import Embedding
    from dinoprobe.learning_curve import LearningCurve
    from dinoprobe.partition import Partition
    from dinoprobe.report import Baseline
    from dinoprobe.train.few_shot import ShotFigures
    from dinoprobe.types import Dataset, Failure, Features, Progress

SCHEMA = "dinoprobe.train/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """What `train` made: `path` is the run directory, `summary` the document of `--json`."""

    path: Path
    classifier: ImageClassifier
    outcome: Outcome
    context: Context
    suspects: tuple[Suspect, ...]
    few_shot: tuple[ShotFigures, ...]
    summary: dict[str, Any]


def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    transfer: Transfer | None = None,
    say: Callable[[str], None] = lambda _: None,
    baseline: Baseline | None = None,
) -> TrainedRun:
    """Train, evaluate and save one classifier.

    `say` gets sentences for the user while it runs, `transfer` the bytes of a download, `baseline`
    is shown beside the result. Raises DatasetError, HeadError, ConfigurationError, and what
    `open_encoder` and `embed` raise.
    """
    start = time.perf_counter()
    check_out(config.out)
    check_config(config)
    settings = asked_encoder(config)
    dataset = config.data.open()
    check_labels(dataset)
    if config.prior is not None:
        prior_shares(config.prior, dataset.classes)
    say(f"{len(dataset):,} images of {len(dataset.classes):,} classes in {dataset.uri}")
    int8 = int8_for(
        dataset, settings, say=say, progress=progress, transfer=transfer, seed=config.seed
    )
    encoder = open_encoder(settings, say=say, transfer=transfer, int8=int8)
    config, folder = within_memory(config, len(dataset), encoder, say)
    embedding = embed(
        dataset,
        encoder,
        store=FeatureStore(config.store, folder=folder),
        batch_size=config.batch_size or "auto",
        progress=progress or NoProgress(),
    )
    features = embedding.features
    pairs, more = _near_pairs(features, dataset, encoder)
    parts = partition(features, seed=config.seed, test_fraction=config.test_fraction, pairs=pairs)
    checked = check_note(config.out, dataset.uri)
    notes = (*dataset.notes, *encoder.notes, *embedding.notes, *more, *parts.notes)
    notes = notes if checked is None else (*notes, checked)
    for note in notes:
        say(note)
    training = features.select(parts.rows("train", "val"))
    fitted = fit(config, encoder, dataset, training, parts, say)
    prior_notes = [PRIOR_NOTE] if fitted.shift else []
    trust = fitted.trust
    pooling = fitted.training.pooling or encoder.pooling
    classifier = ImageClassifier(
        encoder.with_pooling(pooling),
        fitted.head,
        training=_training(config, training, parts, fitted),
        sets=trust.sets,
        novelty=trust.novelty,
        abstention=trust.abstention,
    )
    context = Context(
        dataset=dataset,
        protocol=protocol(config, parts, fitted),
        seed=config.seed,
        seconds=time.perf_counter() - start,
        command=config.command,
        n_train=len(training),
        counts=count_parts(features.y.tolist(), parts.splits),
        failures=merged_failures(features.failures, fitted.failures),
        notes=(*notes, *prior_notes, *trust.notes),
        events=fitted.events,
        baseline=baseline,
        suspects=fitted.suspects,
        leaks=parts.leaks,
        curve=_curve(config, fitted, parts, say),
    )
    whole = features.select(parts.rows("test"))
    test = whole.pooled(pooling)
    outcome = judge(classifier, test)
    if trust.calibration is not None:
        calibration = _tested(fitted, trust.calibration, classifier, test)
        context = replace(context, calibration=calibration)
    shots = few_shot_figures(
        plan_of(config),
        (training.X, training.y),
        (whole.X, whole.y),
        seed=config.seed,
        say=say,
    )
    final = _Final(resolved(config, encoder), classifier, fitted, context, outcome, shots)
    return _save(final, embedding, parts)


@dataclass(frozen=True, slots=True)
class _Final:
    """What a run ends with."""

    config: TrainConfig
    classifier: ImageClassifier
    fitted: Fit
    context: Context
    outcome: Outcome
    few_shot: list[ShotFigures]


def _curve(
    config: TrainConfig, fitted: Fit, parts: Partition, say: Callable[[str], None]
) -> LearningCurve | None:
    """The learning curve of the head and pooling that were kept, where it was asked for."""
    if not config.learning_curve:
        return None
    near = [parts.near[row] for row in parts.rows("train", "val")]
    try:
        head = unfitted(config, fitted.name)
        return learning_curve(head, fitted.training, near=near, seed=config.seed, say=say)
    except (DatasetError, HeadError) as error:  # the run itself is whole without it
        say(f"No learning curve: {error}")
        return None


def _near_pairs(
    features: Features, dataset: Dataset, encoder: Encoder
) -> tuple[list[NearPair], list[str]]:
    """Nearly identical images, and a note where there are too many images to look for them."""
    if folder_of(features.X) is not None:
        return [], ["Nearly identical images were not looked for: features are not in memory."]
    if too_many(features):
        note = (
            f"{len(features):,} images are too many to look for nearly identical ones among them."
        )
        return [], [note]
    read = pixels_of(features, dataset, encoder.preprocessing)
    return near_duplicates(features, read, set_aside(features)), []


def _tested(
    fitted: Fit, calibration: Calibration, classifier: ImageClassifier, test: Features
) -> Calibration:
    """Errors on the test part, at the class frequencies that it has."""
    labels = [str(label) for label in test.y]
    probabilities = classifier.predict_features(test.X)
    if fitted.shift is not None:
        probabilities = fitted.shift.back(probabilities)
    return tested(calibration, labels, probabilities, fitted.judged)


def _training(
    config: TrainConfig, training: Features, parts: Partition, fitted: Fit
) -> dict[str, Any]:
    labels = [str(label) for label in training.y]
    prior = {} if fitted.shift is None else {"prior": fitted.shift.shares(fitted.head)}
    return {
        **prior,
        "digest": training_digest(training.keys, training.hashes, labels),
        "n": len(training),
        "head": {"name": fitted.name, **chosen(fitted.head)},
        "seed": config.seed,
        "protocol": protocol(config, parts, fitted),
        "versions": versions(),
    }


def merged_failures(*lists: Sequence[Failure]) -> tuple[Failure, ...]:
    """All failures, the first one of each key."""
    found: dict[str, Failure] = {}
    for failure in (failure for failures in lists for failure in failures):
        found.setdefault(failure.key, failure)
    return tuple(found.values())


def _save(final: _Final, embedding: Embedding, parts: Partition) -> TrainedRun:
    classifier, outcome, context = final.classifier, final.outcome, final.context
    config, evaluation = final.config, outcome.evaluation
    classifier.figures = {
        "accuracy": evaluation.accuracy,
        "interval": list(evaluation.accuracy_interval),
        "n_test": evaluation.n,
        "protocol": context.protocol,
    }
    card = render_card(report_input(classifier, outcome, context), bundled=config.bundle_encoder)
    with new_run(config.out, context.dataset.uri) as staged:
        write_json(staged.folder / "config.json", {"schema": CONFIG_SCHEMA, **config.to_dict()})
        write_split(staged.folder / "split.csv", _split_rows(embedding.features, parts))
        write_suspects(staged.folder / "suspects.csv", final.fitted.suspects)
        if context.curve is not None:
            write_curve(staged.folder / "learning_curve.csv", context.curve)
        write_leaks(staged.folder / "leaks.csv", context.leaks)
        write_metrics(staged.folder / "metrics.jsonl", final.fitted.events)
        if final.few_shot:
            write_table(staged.folder / "few_shot.csv", SHOT_COLUMNS, shot_rows(final.few_shot))
        write_outcome(staged.folder, classifier, outcome, context)
        classifier.save(
            staged.folder / "classifier", bundle_encoder=config.bundle_encoder, card=card
        )
    return TrainedRun(
        path=staged.path,
        classifier=classifier,
        outcome=outcome,
        context=context,
        suspects=tuple(final.fitted.suspects),
        few_shot=tuple(final.few_shot),
        summary=_summary(staged.path, final, embedding),
    )


def _split_rows(features: Features, parts: Partition) -> Iterator[tuple[str | None, ...]]:
    return zip(
        features.keys, features.y, parts.splits, features.groups, features.hashes, strict=True
    )


def _summary(run: Path, final: _Final, embedding: Embedding) -> dict[str, Any]:
    classifier, context, fitted = final.classifier, final.context, final.fitted
    return {
        **outcome_summary(SCHEMA, run, classifier, final.outcome, context),
        "protocol_id": final.config.protocol,
        "head": fitted.name,
        "pooling": classifier.encoder.pooling,
        "candidates": fitted.candidates,
        "few_shot": [figures.to_dict() for figures in final.few_shot],
        "calibration": context.calibration and context.calibration.to_dict(),
        "prior": classifier.training.get("prior"),
        "learning_curve": context.curve and context.curve.to_dict(),
        "backend": classifier.encoder.backend,
        "precision": classifier.encoder.precision,
        "embedded": embedding.embedded,
        "cached": embedding.cached,
    }
