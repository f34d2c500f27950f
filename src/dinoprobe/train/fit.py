"""Fitting a head on the training part, and saying how it was chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.audit import Suspect, suspicious_labels
from dinoprobe.heads import (
    LinearGridProbe,
    LinearProbe,
    frozen_choice,
    out_of_fold,
)
from dinoprobe.mapped import folder_of
from dinoprobe.online import fit_online
from dinoprobe.partition import dealt_folds, selection_folds
from dinoprobe.train.candidates import Choice, choose, unfitted
from dinoprobe.train.config import AUGMENTATIONS, TrainConfig, augmentation, wants_predictions
from dinoprobe.train.memory import held_out
from dinoprobe.train.prior import prior_in_words, prior_shift
from dinoprobe.train.protocols import plan_of
from dinoprobe.train.trust import Trust, trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dinoprobe.encoder import Encoder
    from dinoprobe.heads import OutOfFold, ProbeBase
    from dinoprobe.partition import Partition
    from dinoprobe.preprocess import Augmentation
    from dinoprobe.train.prior import Shift
    from dinoprobe.types import Dataset, Failure, Features


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted head with its name, the training part as it was pooled for it, and its events.

    `failures` are images that it could not use, `candidates` what it was chosen among.
    """

    name: str
    head: ProbeBase
    training: Features
    candidates: list[dict[str, Any]]
    events: list[dict[str, Any]]
    failures: list[Failure]
    suspects: list[Suspect]
    judged: OutOfFold
    shift: Shift | None
    trust: Trust


def fit(
    config: TrainConfig,
    encoder: Encoder,
    dataset: Dataset,
    training: Features,
    parts: Partition,
    say: Callable[[str], None],
) -> Fit:
    """Fit the plan of `config` on the training part `training`, every choice on folds of it.

    Raises HeadError, and ConfigurationError for options that do not fit each other.
    """
    rows = parts.rows("train", "val")
    kept, near = [parts.splits[i] for i in rows], [parts.near[i] for i in rows]
    folds = selection_folds(training, kept, seed=config.seed, near=near)
    dealt = _calibrating(config, training, near)
    if "val" not in kept and folder_of(training.X) is not None:
        folds = dealt
    if plan_of(config).on_the_fly:
        choice, events, failures = _online(config, encoder, dataset, training, folds, say)
    else:
        choice, failures = choose(config, training, folds, say), []
        events = [*choice.events, *_events(choice.head, say)]
    fitted, training = choice.head, choice.training
    frozen = frozen_choice(fitted)

    def left_out(parts_of: npt.NDArray[np.intp]) -> OutOfFold:
        if choice.predictions is not None and np.array_equal(parts_of, folds):
            return choice.predictions
        return out_of_fold(frozen, training.X, training.y, parts_of)

    judged = audited = left_out(dealt)
    suspects = suspicious_labels(audited, training.keys)
    if "val" in kept and wants_predictions(config):
        judged = left_out(folds)
    shift = prior_shift(config.prior, fitted, training.y)
    trust = trusted(config, fitted, judged, training, shift)
    for note in trust.notes:
        say(note)
    if shift is not None:
        shift.apply(fitted)
    candidates = [candidate.to_dict() for candidate in choice.judged]
    return Fit(
        choice.name, fitted, training, candidates, events, failures, suspects, judged, shift, trust
    )


def _calibrating(
    config: TrainConfig, training: Features, near: Sequence[str | None]
) -> npt.NDArray[np.intp]:
    """Folds whose predictions are audited and calibrated: five, or one where rows are many."""
    if config.memory is not None and folder_of(training.X) is not None:
        return held_out(training, near, seed=config.seed, memory_bytes=config.memory)
    return dealt_folds(training, seed=config.seed, near=near)


def _online(
    config: TrainConfig,
    encoder: Encoder,
    dataset: Dataset,
    training: Features,
    folds: npt.NDArray[np.intp],
    say: Callable[[str], None],
) -> tuple[Choice, list[dict[str, Any]], list[Failure]]:
    """The one head of a plan that trains on augmented images."""
    ((name, _),) = plan_of(config).heads
    head = unfitted(config, name)
    assert isinstance(head, LinearProbe | LinearGridProbe)  # noqa: S101 - as check_config saw to
    held = folds == 0 if isinstance(head, LinearGridProbe) else np.zeros(len(folds), dtype=bool)
    fitted, events, failures = _fit_online(
        head, encoder, dataset, (training, held), AUGMENTATIONS[augmentation(config)], say
    )
    return Choice(name, fitted, training), events, failures


def _fit_online(
    probe: LinearProbe | LinearGridProbe,
    encoder: Encoder,
    dataset: Dataset,
    part: tuple[Features, npt.NDArray[np.bool_]],
    augmented: Augmentation,
    say: Callable[[str], None],
) -> tuple[LinearProbe | LinearGridProbe, list[dict[str, Any]], list[Failure]]:
    """Train on the images of the part's features that are not held out to choose a layer by."""
    training, held = part
    wanted = {key for key, out in zip(training.keys, held, strict=True) if not out}
    validation = training.select(np.flatnonzero(held))
    samples = [sample for sample in dataset.samples if sample.key in wanted]
    events: list[dict[str, Any]] = []

    def on_epoch(epoch: int, loss: float) -> None:
        events.append({"event": "epoch", "epoch": epoch, "loss": loss})
        say(f"epoch {epoch}/{probe.epochs}: loss {loss:.4g}")

    fitted, failures = fit_online(
        samples, encoder, probe, augmented, on_epoch=on_epoch, validation=validation
    )
    return fitted, events + _selection_events(fitted), failures


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
    return events + _selection_events(head)


def _selection_events(head: ProbeBase) -> list[dict[str, Any]]:
    results = getattr(head, "cv_results_", None)
    if not results:
        return []
    option, *judged = results
    return [
        {"event": "selection", "option": option, "strength": float(value)}
        | {name: float(results[name][row]) for name in judged}
        for row, value in enumerate(results[option])
    ]


def chosen(head: ProbeBase) -> dict[str, Any]:
    """The hyper-parameters that were chosen, and how, as JSON values."""
    names = {"C": "strength"}
    found = {names.get(name, name): getattr(head, f"{name}_", None) for name in head.selects}
    found["selection"] = getattr(head, "selection_", None)
    if (temperature := getattr(head, "temperature_", 1.0)) != 1.0:
        found["temperature"] = temperature
    return {name: value for name, value in found.items() if value is not None}


def _how(selection: str, what: str) -> str:
    """How a hyper-parameter was found, from a head's `selection_`."""
    if not selection:
        return "on cached features"
    if selection == "given":
        return f"{what} as given"
    if selection.startswith("default"):
        return f"{what} by {selection}"
    return f"{what} chosen on {selection}"


def protocol(config: TrainConfig, parts: Partition, fitted: Fit) -> str:
    """One sentence on how the figures came about."""
    head, plan = fitted.head, plan_of(config)
    selection = str(getattr(head, "selection_", ""))
    names = {"C": "strength", "alpha": "strength", "lr": "learning rate"}
    if "val" in parts.splits:
        selection = selection.replace("1 given fold", "the validation part")
    selection = re.sub(r"given (folds?)", r"\1 of the training part", selection)
    how = _how(selection, " ".join(names.get(name, name) for name in head.selects[:1]))
    if plan.on_the_fly:
        trained = f"trained on images augmented by {augmentation(config)}"
        how = f"{trained}, {how}" if selection else trained
    if config.prior is not None:
        how += f"; probabilities for {prior_in_words(config.prior)}"
    split = "given split" if parts.given else f"split made by seed {config.seed}"
    what = f"{fitted.name} head"
    if fitted.candidates:
        what += f" on {fitted.training.pooling}, the best of {len(fitted.candidates)} out of fold"
    if plan.id:
        what = f"{plan.id}: {what}"
    return f"{what}, {how}; {split}; test part used once"
