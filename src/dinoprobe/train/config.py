"""What a run is asked for: plain values that its config.json keeps, and that repeat it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from types import NoneType
from typing import TYPE_CHECKING, Any

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import EncoderSettings
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
from dinoprobe.preprocess import Augmentation
from dinoprobe.run import absolute

if TYPE_CHECKING:
    from dinoprobe.encoder import Encoder
    from dinoprobe.heads import ProbeBase

AUGMENTATIONS = {
    "crop+flip": Augmentation(),
    "crop": Augmentation(flip=0.0),
    "flip": Augmentation(scale=(1.0, 1.0)),
    "none": Augmentation(scale=(1.0, 1.0), flip=0.0),
}
DEFAULT_AUGMENTATION = "crop+flip"
CALIBRATED_HEADS = ("logistic",)
CALIBRATIONS = ("auto", *CALIBRATION_METHODS, "none")
NO_SETS = "none"
NO_NOVELTY = "none"
CONFIG_SCHEMA = "dinoprobe.config/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Every option of `dinoprobe train`, resolved; config.json of a run holds it.

    `head_options` go to the head's constructor. `select` is the rule by which a strength is taken
    from a path ("best", or "one-se": one standard error). `on_the_fly` trains the linear head on
    images augmented as `augment` says (one of AUGMENTATIONS), the encoder inside the loop.
    `calibrate` is one of CALIBRATIONS, fitted out of fold; "auto" is a temperature for
    CALIBRATED_HEADS. `sets` is the method of prediction sets ("lac", "aps", or "none"), `coverage`
    the share of images whose label they hold, of each class with `sets_per_class`. `prior` are the
    class frequencies that probabilities are for: None as in training, "uniform", or a share for
    each label; sets are then per class, for only these hold at any frequencies. `novelty` is the
    measure that flags images unlike the training images ("mahalanobis", "knn", or "none"), and
    `novelty_share` of images like these, too. `target_accuracy` is to be kept by not answering some
    images, the least sure by `abstain_by`. `store` is a place for features, None for the default.
    """

    data: DataSettings
    encoder: EncoderSettings
    head: str = "logistic"
    head_options: dict[str, Any] = field(default_factory=dict)
    select: str = "best"
    on_the_fly: bool = False
    augment: str = DEFAULT_AUGMENTATION
    calibrate: str = "auto"
    sets: str = "lac"
    coverage: float = 0.9
    sets_per_class: bool = False
    prior: str | dict[str, float] | None = None
    novelty: str = "mahalanobis"
    novelty_share: float = 0.01
    target_accuracy: float | None = None
    abstain_by: str = "probability"
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
        "select": (str,),
        "augment": (str,),
        "head_options": (dict,),
        "seed": (int,),
        "test_fraction": (float,),
        "batch_size": (int, NoneType),
        "on_the_fly": (bool,),
        "calibrate": (str,),
        "sets": (str,),
        "coverage": (float,),
        "sets_per_class": (bool,),
        "prior": (str, dict, NoneType),
        "novelty": (str,),
        "novelty_share": (float,),
        "target_accuracy": (float, NoneType),
        "abstain_by": (str,),
        "bundle_encoder": (bool,),
        "store": (str, NoneType),
    }
    for name, types in expected.items():
        value = getattr(config, name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{name} is {value!r}, expected {types[0].__name__}")
    if config.seed < 0 or (config.batch_size is not None and config.batch_size < 1):
        raise ValueError("seed and batch_size are whole numbers from 0 and from 1")
    if not 0 < config.test_fraction < 1:
        raise ValueError(f"test_fraction is {config.test_fraction}, expected between 0 and 1")
    for name, value in (("source", config.data.source), ("name", config.encoder.name)):
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, expected str")
    _check_encoder(config.encoder)


def _check_encoder(settings: EncoderSettings) -> None:
    """Raise TypeError for a value of the encoder's settings that is of another type."""
    expected: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("pooling", "device", "dtype", "precision", "backend", "rope"), (str,)),
        **dict.fromkeys(("normalize", "device_map", "max_memory", "resize"), (str, NoneType)),
        "exact": (bool,),
        "compiled": (bool,),
        "size_px": (int, NoneType),
    }
    for name, types in expected.items():
        value = getattr(settings, name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{name} is {value!r}, expected {types[0].__name__}")


def resolved(config: TrainConfig, encoder: Encoder) -> TrainConfig:
    """The configuration with nothing left to the place, the machine or the day."""
    return replace(
        config,
        data=replace(config.data, source=absolute(config.data.source)),
        encoder=replace(
            config.encoder, name=encoder.name, pooling=encoder.pooling, **_precision(encoder)
        ),
        calibrate=calibration_method(config),
        sets_per_class=wants_sets_per_class(config),
        store=config.store and absolute(config.store),
    )


def _precision(encoder: Encoder) -> dict[str, Any]:
    """The type that was taken, which then needs no test; int8 has no type of torch."""
    if encoder.precision == "int8":
        return {"dtype": "auto", "precision": "int8"}
    return {"dtype": encoder.precision, "precision": "auto"}


def check_head(config: TrainConfig) -> None:
    """Raise ConfigurationError for a head or options that can not work, before anything is read."""
    _check_rule(config)
    head = head_from_name(config.head, **head_options(config))
    if config.on_the_fly and not isinstance(head, LinearProbe | LinearGridProbe):
        msg = (
            f"head '{config.head}' can not be trained on the fly. Use --head linear or "
            "linear-grid for that."
        )
        raise ConfigurationError(msg)
    if config.augment != DEFAULT_AUGMENTATION and not config.on_the_fly:
        msg = "augment belongs to on-the-fly training. Add --on-the-fly --head linear."
        raise ConfigurationError(msg)
    if config.augment not in AUGMENTATIONS:
        msg = f"augment is '{config.augment}', expected one of {', '.join(AUGMENTATIONS)}."
        raise ConfigurationError(msg)
    if config.on_the_fly and getattr(head, "standardize", False):
        msg = "standardize needs all features at once, which on-the-fly training never has."
        raise ConfigurationError(msg)
    if config.calibrate not in CALIBRATIONS:
        msg = f"calibrate is '{config.calibrate}', expected one of {', '.join(CALIBRATIONS)}."
        raise ConfigurationError(msg)
    asked = config.calibrate in CALIBRATION_METHODS
    if asked and (config.on_the_fly or not isinstance(head, LinearBase)):
        how = "trained on the fly" if config.on_the_fly else "without logits"
        msg = f"head '{config.head}', {how}, can not be calibrated. Leave out --calibrate."
        raise ConfigurationError(msg)
    if config.prior is not None:
        _check_prior(config, head)
    if config.sets != NO_SETS:
        check_sets(config.sets, config.coverage)
    if config.novelty != NO_NOVELTY:
        check_novelty(config.novelty, config.novelty_share)
    _check_abstention(config, has_logits=isinstance(head, LinearBase))
    if not isinstance(head, SklearnProbe):
        check_options(head)


def _check_prior(config: TrainConfig, head: ProbeBase) -> None:
    if not isinstance(head, LinearBase | KNNProbe):
        msg = f"head '{config.head}' has no bias that could take a prior. Leave out --prior."
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


def _check_rule(config: TrainConfig) -> None:
    """Raise ConfigurationError for a rule that is unknown, or that the head has no use for."""
    if config.select not in RULES:
        msg = f"select is '{config.select}', expected one of {', '.join(RULES)}."
        raise ConfigurationError(msg)
    able = [name for name, kind in HEADS.items() if "rule" in signature(kind).parameters]
    if config.select != RULES[0] and config.head not in able:
        msg = f"head '{config.head}' has no path of strengths to select from by '{config.select}'."
        raise ConfigurationError(f"{msg} Leave out --select, or use --head {' or '.join(able)}.")


def _check_abstention(config: TrainConfig, *, has_logits: bool) -> None:
    if config.target_accuracy is None:
        if config.abstain_by != "probability":
            msg = f"abstain_by is '{config.abstain_by}', without a target. Add --target-accuracy."
            raise ConfigurationError(msg)
        return
    check_abstention(config.abstain_by, config.target_accuracy)
    if config.on_the_fly:
        msg = (
            "a target accuracy needs predictions out of fold, which training on the fly never "
            "has. Leave out --target-accuracy, or --on-the-fly."
        )
        raise ConfigurationError(msg)
    if config.abstain_by == "energy" and not has_logits:
        msg = f"head '{config.head}' has no logits. Use --abstain-by probability or distance."
        raise ConfigurationError(msg)
    if config.abstain_by == "distance" and config.novelty == NO_NOVELTY:
        msg = "abstain_by 'distance' needs a measure of novelty. Leave out --novelty none."
        raise ConfigurationError(msg)


def wants_sets_per_class(config: TrainConfig) -> bool:
    """Whether each class is covered: asked for, or where the frequencies are not those of rows."""
    return config.sets_per_class or (config.prior is not None and config.sets != NO_SETS)


def calibration_method(config: TrainConfig) -> str:
    """How probabilities are calibrated: one of CALIBRATIONS but "auto"."""
    if config.calibrate != "auto":
        return config.calibrate
    return "temperature" if config.head in CALIBRATED_HEADS else "none"


def wants_calibration(config: TrainConfig) -> bool:
    """Whether a scaling is fitted."""
    return calibration_method(config) != "none"


def wants_sets(config: TrainConfig) -> bool:
    """Whether thresholds are taken: never on the fly, for the heads of the folds differ from it."""
    return config.sets != NO_SETS and not config.on_the_fly


def wants_predictions(config: TrainConfig) -> bool:
    """Whether out-of-fold predictions serve more than the search for doubtful labels."""
    has_target = config.target_accuracy is not None
    return wants_calibration(config) or wants_sets(config) or has_target


def head_options(config: TrainConfig) -> dict[str, Any]:
    """The options of the head; k of `knn` is chosen on folds unless it is given."""
    options = {} if config.select == RULES[0] else {"rule": config.select}
    if config.head == "knn":
        options["k"] = "auto"
    return {**options, **config.head_options}
