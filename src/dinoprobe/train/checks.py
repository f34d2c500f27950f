"""What is refused before anything is read: heads and options that can not work together."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from dinoprobe.errors import ConfigurationError, HeadError
from dinoprobe.heads import (
    CALIBRATION_METHODS,
    HEADS,
    RULES,
    KNNProbe,
    LinearBase,
    LinearGridProbe,
    LinearProbe,
    SklearnProbe,
    check_abstention,
    check_novelty,
    check_options,
    check_sets,
    head_from_name,
    prior_shares,
)
from dinoprobe.train.config import (
    AUGMENTATIONS,
    CALIBRATIONS,
    NO_NOVELTY,
    NO_SETS,
)
from dinoprobe.train.protocols import plan_of, with_options

if TYPE_CHECKING:
    from dinoprobe.heads import ProbeBase
    from dinoprobe.train.config import TrainConfig
    from dinoprobe.train.protocols import Protocol


def check_config(config: TrainConfig) -> None:
    """Raise ConfigurationError for heads or options that can not work."""
    plan = plan_of(config)
    named = [*plan.heads, *plan.few_shot_heads]
    _check_rule(config, [name for name, _ in named])
    heads = {name: head_from_name(name, **with_options(config, name, own)) for name, own in named}
    if config.head is None:
        _check_accepted(config, plan)
    if config.calibrate not in CALIBRATIONS:
        msg = f"calibrate is '{config.calibrate}', expected one of {', '.join(CALIBRATIONS)}."
        raise ConfigurationError(msg)
    for name, head in heads.items():
        _check_head(config, plan, name, head)
    if config.sets != NO_SETS:
        check_sets(config.sets, config.coverage)
    if config.novelty != NO_NOVELTY:
        check_novelty(config.novelty, config.novelty_share)


def _check_head(config: TrainConfig, plan: Protocol, name: str, head: ProbeBase) -> None:
    _check_augmentation(config, plan, name, head)
    asked = config.calibrate in CALIBRATION_METHODS
    if asked and (plan.on_the_fly or not isinstance(head, LinearBase)):
        how = "trained on the fly" if plan.on_the_fly else "without logits"
        msg = f"head '{name}', {how}, can not be calibrated. Leave out --calibrate."
        raise ConfigurationError(msg)
    if config.prior is not None:
        _check_prior(config, name, head)
    _check_abstention(config, plan, name, has_logits=isinstance(head, LinearBase))
    if not isinstance(head, SklearnProbe):
        check_options(head)


def _check_augmentation(config: TrainConfig, plan: Protocol, name: str, head: ProbeBase) -> None:
    if config.on_the_fly and config.head is None:
        msg = "a protocol says itself whether it trains on the fly. Leave out --on-the-fly."
        raise ConfigurationError(msg)
    if plan.on_the_fly and not isinstance(head, LinearProbe | LinearGridProbe):
        msg = (
            f"head '{name}' can not be trained on the fly. Use --head linear or linear-grid for "
            "that."
        )
        raise ConfigurationError(msg)
    if config.augment is not None and not plan.on_the_fly:
        msg = "augment belongs to on-the-fly training. Add --on-the-fly --head linear."
        raise ConfigurationError(msg)
    if config.augment not in {None, *AUGMENTATIONS}:
        msg = f"augment is '{config.augment}', expected one of {', '.join(AUGMENTATIONS)}."
        raise ConfigurationError(msg)
    if plan.on_the_fly and config.learning_curve:
        msg = "a learning curve fits many heads, and needs features. Leave out --on-the-fly."
        raise ConfigurationError(msg)
    if plan.on_the_fly and getattr(head, "standardize", False):
        msg = "standardize needs all features at once, which on-the-fly training never has."
        raise ConfigurationError(msg)


def _check_accepted(config: TrainConfig, plan: Protocol) -> None:
    """Raise ConfigurationError for an option that not all of a protocol's heads take."""
    for option in config.head_options:
        without = [n for n, _ in plan.heads if option not in signature(HEADS[n]).parameters]
        if without:
            msg = (
                f"protocol '{plan.name}' tries {', '.join(without)} too, without an option "
                f"'{option}'. Name one head with --head, or leave the option out."
            )
            raise ConfigurationError(msg)


def _check_prior(config: TrainConfig, name: str, head: ProbeBase) -> None:
    if not isinstance(head, LinearBase | KNNProbe):
        msg = f"head '{name}' has no bias that could take a prior. Leave out --prior."
        raise ConfigurationError(msg)
    if config.target_accuracy is not None:
        msg = (
            "a target accuracy is that of images as they come, and a prior stands for other "
            "frequencies. Leave out --target-accuracy, or --prior."
        )
        raise ConfigurationError(msg)
    try:
        prior = config.prior or ""
        prior_shares(prior, list(prior) if isinstance(prior, dict) else ["any"])
    except HeadError as error:
        raise ConfigurationError(str(error)) from error


def _check_rule(config: TrainConfig, names: list[str]) -> None:
    """Raise ConfigurationError for a rule that is unknown, or that no head has a use for."""
    if config.select not in RULES:
        msg = f"select is '{config.select}', expected one of {', '.join(RULES)}."
        raise ConfigurationError(msg)
    able = [name for name, kind in HEADS.items() if "rule" in signature(kind).parameters]
    if config.select != RULES[0] and not set(names) & set(able):
        msg = f"head '{names[0]}' has no path of strengths to select from by '{config.select}'."
        raise ConfigurationError(f"{msg} Leave out --select, or use --head {' or '.join(able)}.")


def _check_abstention(config: TrainConfig, plan: Protocol, name: str, *, has_logits: bool) -> None:
    if config.target_accuracy is None:
        if config.abstain_by != "probability":
            msg = f"abstain_by is '{config.abstain_by}', without a target. Add --target-accuracy."
            raise ConfigurationError(msg)
        return
    check_abstention(config.abstain_by, config.target_accuracy)
    if plan.on_the_fly:
        msg = (
            "a target accuracy needs predictions out of fold, which training on the fly never "
            "has. Leave out --target-accuracy, or --on-the-fly."
        )
        raise ConfigurationError(msg)
    if config.abstain_by == "energy" and not has_logits:
        msg = f"head '{name}' has no logits. Use --abstain-by probability or distance."
        raise ConfigurationError(msg)
    if config.abstain_by == "distance" and config.novelty == NO_NOVELTY:
        msg = "abstain_by 'distance' needs a measure of novelty. Leave out --novelty none."
        raise ConfigurationError(msg)
