"""The recipe: open, embed, split, fit with selection, evaluate once on the test part, save.

Order matters twice: images are embedded before they are split, because identical images must stay
on one side and only their bytes tell; and the test part is read once, after everything is chosen.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from dinoprobe.audit import Suspect, suspicious_labels
from dinoprobe.classifier import ImageClassifier, training_digest
from dinoprobe.datasets import open_dataset, write_split
from dinoprobe.encoder import EncoderSettings, open_encoder
from dinoprobe.engine import embed
from dinoprobe.errors import ConfigurationError, DinoprobeError, HeadError
from dinoprobe.files import write_json
from dinoprobe.heads import (
    KNNProbe,
    LinearProbe,
    LogisticProbe,
    SklearnProbe,
    check_options,
    head_from_name,
    with_random_state,
)
from dinoprobe.online import fit_online
from dinoprobe.outcome import (
    Context,
    Outcome,
    count_parts,
    judge,
    outcome_summary,
    report_input,
    write_outcome,
)
from dinoprobe.partition import check_labels, dealt_folds, partition, selection_folds
from dinoprobe.preprocess import Augmentation
from dinoprobe.report import render_card
from dinoprobe.run import absolute, check_out, new_run, write_metrics, write_suspects
from dinoprobe.store import FeatureStore
from dinoprobe.types import NoProgress
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.encoder import Encoder
    from dinoprobe.engine import Embedding
    from dinoprobe.heads import ProbeBase
    from dinoprobe.partition import Partition
    from dinoprobe.report import Baseline
    from dinoprobe.types import Dataset, Failure, Features, Progress

AUGMENTATIONS = {
    "crop+flip": Augmentation(),
    "crop": Augmentation(flip=0.0),
    "flip": Augmentation(scale=(1.0, 1.0)),
    "none": Augmentation(scale=(1.0, 1.0), flip=0.0),
}
CONFIG_SCHEMA = "dinoprobe.config/1"
SCHEMA = "dinoprobe.train/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the images are, and which columns of a table to take."""

    source: str
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None

    def open(self) -> Dataset:
        """The dataset. Raises DatasetError."""
        return open_dataset(
            self.source,
            path_column=self.path_column,
            label_column=self.label_column,
            split_column=self.split_column,
            group_column=self.group_column,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Every option of `dinoprobe train`, resolved; config.json of a run holds it.

    `head_options` go to the head's constructor. `on_the_fly` trains the linear head on images
    augmented as `augment` says (one of AUGMENTATIONS), the encoder inside the loop. `store` is a
    place for features, None for the default.
    """

    data: DataSettings
    encoder: EncoderSettings
    head: str = "logistic"
    head_options: dict[str, Any] = field(default_factory=dict)
    on_the_fly: bool = False
    augment: str = "crop+flip"
    seed: int = 0
    test_fraction: float = 0.2
    batch_size: int | None = None
    store: str | None = None
    bundle_encoder: bool = False
    out: str | None = None
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`. Raises ConfigurationError for an unknown or a missing key."""
        try:
            data = DataSettings(**values["data"])
            encoder = EncoderSettings.from_dict(values["encoder"])
            config = cls(**{**values, "data": data, "encoder": encoder})
            _check_types(config)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            msg = f"the configuration does not fit: {error}. Expected a run's config.json."
            raise ConfigurationError(msg) from error
        return config


def _check_types(config: TrainConfig) -> None:
    """Raise TypeError for a value that JSON allows and the recipe does not."""
    expected: dict[str, tuple[type, ...]] = {
        "head": (str,),
        "augment": (str,),
        "head_options": (dict,),
        "seed": (int,),
        "test_fraction": (float,),
        "batch_size": (int, NoneType),
        "store": (str, NoneType),
    }
    for name, types in expected.items():
        value = getattr(config, name)
        if not isinstance(value, types):
            raise TypeError(f"{name} is {value!r}, expected {types[0].__name__}")
    if not 0 < config.test_fraction < 1:
        raise ValueError(f"test_fraction is {config.test_fraction}, expected between 0 and 1")
    for name, value in (("source", config.data.source), ("name", config.encoder.name)):
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, expected str")
    if not isinstance(config.encoder.size_px, int | None):
        raise TypeError(f"size_px is {config.encoder.size_px!r}, expected int")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """What `train` made: `path` is the run directory, `summary` the document of `--json`."""

    path: Path
    classifier: ImageClassifier
    outcome: Outcome
    context: Context
    suspects: tuple[Suspect, ...]
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fitted head with the events of fitting it, and the images it could not use."""

    head: ProbeBase
    events: list[dict[str, Any]]
    failures: list[Failure]
    suspects: list[Suspect]


def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
    baseline: Baseline | None = None,
) -> TrainedRun:
    """Train, evaluate and save one classifier.

    `say` gets sentences for the user while it runs, `baseline` is shown beside the result. Raises
    DatasetError, HeadError, ConfigurationError, and what `open_encoder` and `embed` raise.
    """
    start = time.perf_counter()
    check_out(config.out)
    check_head(config)
    dataset = config.data.open()
    check_labels(dataset)
    say(f"{len(dataset):,} images of {len(dataset.classes):,} classes in {dataset.uri}")
    encoder = open_encoder(config.encoder)
    embedding = embed(
        dataset,
        encoder,
        store=FeatureStore(config.store),
        batch_size=config.batch_size or "auto",
        progress=progress or NoProgress(),
    )
    features = embedding.features
    parts = partition(features, seed=config.seed, test_fraction=config.test_fraction)
    notes = (*dataset.notes, *encoder.notes, *embedding.notes, *parts.notes)
    for note in notes:
        say(note)
    training = features.select(parts.rows("train", "val"))
    fit = _fit(config, encoder, dataset, training, parts, say)
    classifier = ImageClassifier(
        encoder, fit.head, training=_training(config, training, parts, fit)
    )
    context = Context(
        dataset=dataset,
        protocol=_protocol(config, parts, fit.head),
        seed=config.seed,
        seconds=time.perf_counter() - start,
        command=config.command,
        n_train=len(training),
        counts=count_parts(features.y.tolist(), parts.splits),
        failures=merged_failures(features.failures, fit.failures),
        notes=notes,
        events=fit.events,
        baseline=baseline,
        suspects=fit.suspects,
    )
    outcome = judge(classifier, features.select(parts.rows("test")))
    return _save(resolved(config, encoder), classifier, embedding, parts, fit, context, outcome)


def resolved(config: TrainConfig, encoder: Encoder) -> TrainConfig:
    """The configuration with nothing left to the place, the machine or the day."""
    return replace(
        config,
        data=replace(config.data, source=absolute(config.data.source)),
        encoder=replace(
            config.encoder, name=encoder.name, pooling=encoder.pooling, dtype=encoder.precision
        ),
        store=config.store and absolute(config.store),
    )


def check_head(config: TrainConfig) -> None:
    """Raise ConfigurationError for a head or options that can not work, before anything is read."""
    head = head_from_name(config.head, **head_options(config))
    if config.on_the_fly and not isinstance(head, LinearProbe):
        msg = f"head '{config.head}' can not be trained on the fly. Use --head linear for that."
        raise ConfigurationError(msg)
    if config.augment not in AUGMENTATIONS:
        msg = f"augment is '{config.augment}', expected one of {', '.join(AUGMENTATIONS)}."
        raise ConfigurationError(msg)
    if config.on_the_fly and isinstance(head, LinearProbe) and head.standardize:
        msg = "standardize needs all features at once, which on-the-fly training never has."
        raise ConfigurationError(msg)
    if isinstance(head, (LinearProbe, LogisticProbe, KNNProbe)):
        check_options(head)


def head_options(config: TrainConfig) -> dict[str, Any]:
    """The options of the head; k of `knn` is chosen on folds unless it is given."""
    return {"k": "auto", **config.head_options} if config.head == "knn" else config.head_options


def _fit(
    config: TrainConfig,
    encoder: Encoder,
    dataset: Dataset,
    training: Features,
    parts: Partition,
    say: Callable[[str], None],
) -> _Fit:
    kept = [parts.splits[i] for i in parts.rows("train", "val")]
    folds = selection_folds(training, kept, seed=config.seed)
    head = seeded(head_from_name(config.head, **head_options(config)), config)
    if isinstance(head, LinearProbe) and config.on_the_fly:
        augmentation = AUGMENTATIONS[config.augment]
        fitted, events, failures = _fit_online(head, encoder, dataset, training, augmentation, say)
    else:
        fitted, failures = fit_head(head, training, folds), []
        events = _events(fitted, say)
    suspects = suspicious_labels(
        frozen_choice(fitted), training, dealt_folds(training, seed=config.seed)
    )
    return _Fit(fitted, events, failures, suspects)


def _fit_online(
    probe: LinearProbe,
    encoder: Encoder,
    dataset: Dataset,
    training: Features,
    augmentation: Augmentation,
    say: Callable[[str], None],
) -> tuple[LinearProbe, list[dict[str, Any]], list[Failure]]:
    wanted = set(training.keys)
    samples = [sample for sample in dataset.samples if sample.key in wanted]
    events: list[dict[str, Any]] = []

    def on_epoch(epoch: int, loss: float) -> None:
        events.append({"event": "epoch", "epoch": epoch, "loss": loss})
        say(f"epoch {epoch}/{probe.epochs}: loss {loss:.4g}")

    fitted, failures = fit_online(samples, encoder, probe, augmentation, on_epoch=on_epoch)
    return fitted, events, failures


def seeded(head: ProbeBase, config: TrainConfig) -> ProbeBase:
    """The head with `random_state` from the seed, where it has one that was not given."""
    if "random_state" in config.head_options:
        return head
    if isinstance(head, SklearnProbe):
        return with_random_state(head, config.seed)
    if "random_state" in head.get_params(deep=False):
        head.set_params(random_state=config.seed)
    return head


def fit_head(head: ProbeBase, training: Features, folds: npt.NDArray[np.intp]) -> ProbeBase:
    """Fit on all rows; a head that selects hyper-parameters does so on these folds and no others.

    Raises HeadError, also for what scikit-learn refuses.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if isinstance(head, (LogisticProbe, KNNProbe)):
                fitted: ProbeBase = head.fit(training.X, training.y, folds=folds)
            else:
                fitted = head.fit(training.X, training.y)
        except DinoprobeError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            msg = f"the head can not be fitted on these features: {error}"
            raise HeadError(msg) from error
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        fitted.converged_ = False
    return fitted


def frozen_choice(head: ProbeBase) -> ProbeBase:
    """An unfitted copy whose selected hyper-parameters are fixed."""
    copy: ProbeBase = clone(head)
    if isinstance(head, LogisticProbe):
        copy.set_params(C=head.C_)
    elif isinstance(head, KNNProbe):
        copy.set_params(k=head.k_)
    return copy


def _events(head: ProbeBase, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What was measured while fitting, for metrics.jsonl and the report."""
    losses = enumerate(getattr(head, "loss_history_", ()), start=1)
    events: list[dict[str, Any]] = [
        {"event": "epoch", "epoch": epoch, "loss": float(loss)} for epoch, loss in losses
    ]
    for event in events:
        say(f"epoch {event['epoch']}: loss {event['loss']:.4g}")
    if not getattr(head, "converged_", True):
        say("The head did not converge: its figures may still move with more iterations.")
    results = getattr(head, "cv_results_", None) or {"C": (), "accuracy": (), "log_loss": ()}
    for C, accuracy, loss in zip(*(results[k] for k in ("C", "accuracy", "log_loss")), strict=True):
        judged = {"accuracy": float(accuracy), "log_loss": float(loss)}
        events.append({"event": "selection", "strength": float(C), **judged})
    return events


def _training(
    config: TrainConfig, training: Features, parts: Partition, fit: _Fit
) -> dict[str, Any]:
    labels = [str(label) for label in training.y]
    return {
        "digest": training_digest(training.keys, training.hashes, labels),
        "n": len(training),
        "head": {"name": config.head, **_chosen(fit.head)},
        "seed": config.seed,
        "protocol": _protocol(config, parts, fit.head),
        "versions": versions(),
    }


def _chosen(head: ProbeBase) -> dict[str, Any]:
    found = {
        "strength": getattr(head, "C_", None),
        "k": getattr(head, "k_", None),
        "selection": getattr(head, "selection_", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _how(selection: str, what: str) -> str:
    """How a hyper-parameter was found, from a head's `selection_`."""
    if not selection:
        return "on cached features"
    if selection == "given":
        return f"{what} as given"
    if selection.startswith("default"):
        return f"{what} by {selection}"
    return f"{what} chosen on {selection.replace('given folds', 'folds of the training part')}"


def _protocol(config: TrainConfig, parts: Partition, head: ProbeBase) -> str:
    """One sentence on how the figures came about."""
    selection = str(getattr(head, "selection_", ""))
    how = _how(selection, "k" if isinstance(head, KNNProbe) else "strength")
    if config.on_the_fly:
        how = f"trained on images augmented by {config.augment}"
    if "val" in parts.splits:
        how = how.replace("1 given fold", "the validation part")
    split = "given split" if parts.given else f"split made by seed {config.seed}"
    return f"{config.head} head, {how}; {split}; test part used once"


def merged_failures(*lists: Sequence[Failure]) -> tuple[Failure, ...]:
    """All failures, the first one of each key."""
    found: dict[str, Failure] = {}
    for failure in (failure for failures in lists for failure in failures):
        found.setdefault(failure.key, failure)
    return tuple(found.values())


def _save(
    config: TrainConfig,
    classifier: ImageClassifier,
    embedding: Embedding,
    parts: Partition,
    fit: _Fit,
    context: Context,
    outcome: Outcome,
) -> TrainedRun:
    evaluation = outcome.evaluation
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
        write_suspects(staged.folder / "suspects.csv", fit.suspects)
        write_metrics(staged.folder / "metrics.jsonl", fit.events)
        write_outcome(staged.folder, classifier, outcome, context)
        classifier.save(
            staged.folder / "classifier", bundle_encoder=config.bundle_encoder, card=card
        )
    return TrainedRun(
        path=staged.path,
        classifier=classifier,
        outcome=outcome,
        context=context,
        suspects=tuple(fit.suspects),
        summary=_summary(staged.path, config, classifier, outcome, context, embedding),
    )


def _split_rows(features: Features, parts: Partition) -> Iterator[tuple[str | None, ...]]:
    return zip(
        features.keys, features.y, parts.splits, features.groups, features.hashes, strict=True
    )


def _summary(
    run: Path,
    config: TrainConfig,
    classifier: ImageClassifier,
    outcome: Outcome,
    context: Context,
    embedding: Embedding,
) -> dict[str, Any]:
    return {
        **outcome_summary(SCHEMA, run, classifier, outcome, context),
        "head": config.head,
        "embedded": embedding.embedded,
        "cached": embedding.cached,
    }
