"""What a run is asked for: plain values that its config.json keeps, and that repeat it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import EncoderSettings
from dinoprobe.errors import ConfigurationError
from dinoprobe.heads import CALIBRATION_METHODS
from dinoprobe.preprocess import Augmentation
from dinoprobe.run import absolute
from dinoprobe.train.protocols import plan_of

if TYPE_CHECKING:
    from dinoprobe.encoder import Encoder

AUGMENTATIONS = {
    "crop+flip": Augmentation(),
    "imagenet": Augmentation(scale=(0.08, 1.0)),
    "crop": Augmentation(flip=0.0),
    "flip": Augmentation(scale=(1.0, 1.0)),
    "none": Augmentation(scale=(1.0, 1.0), flip=0.0),
}
DEFAULT_AUGMENTATION = "crop+flip"
CALIBRATIONS = ("auto", *CALIBRATION_METHODS, "none")
NO_SETS = "none"
NO_NOVELTY = "none"
CONFIG_SCHEMA = "dinoprobe.config/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Every option of `dinoprobe train`, resolved; config.json of a run holds it.

    `protocol` is one of PROTOCOLS, `head` one head in place of it; without both it is `auto`.
    `head_options` go to the head's constructor. `select` is the rule by which a strength is taken
    from a path ("best", or "one-se": one standard error). `on_the_fly` trains the linear head on
    images augmented as `augment` says (one of AUGMENTATIONS), the encoder inside the loop.
    `calibrate` is one of CALIBRATIONS, fitted out of fold; "auto" is the plan's own way. `sets` is
    the method of prediction sets ("lac", "aps", or "none"), `coverage` the share of images whose
    label they hold, of each class with `sets_per_class`. `prior` are the class frequencies that
    probabilities are for: None as in training, "uniform", or a share for each label; sets are then
    per class, for only these hold at any frequencies. `novelty` is the measure that flags images
    unlike the training images ("mahalanobis", "knn", or "none"), and `novelty_share` of images like
    these, too. `target_accuracy` is to be kept by not answering some images, the least sure by
    `abstain_by`. `learning_curve` measures the accuracy at smaller sizes of the training part.
    `store` is a place for features, None for the default; `memory` is how many bytes of them may be
    in memory, None for half of what is free (`train/memory.py`).
    """

    data: DataSettings
    encoder: EncoderSettings
    protocol: str | None = None
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    select: str = "best"
    on_the_fly: bool = False
    augment: str | None = None
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
    learning_curve: bool = False
    memory: int | None = None
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


def read_train_config(path: str | Path) -> TrainConfig:
    """The configuration in a run's config.json. Raises ConfigurationError."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path}: not readable as JSON ({error}). Give a run's config.json."
        raise ConfigurationError(msg) from error
    if not isinstance(values, dict) or values.pop("schema", None) != CONFIG_SCHEMA:
        msg = f"{path}: its schema is not {CONFIG_SCHEMA}. Give a run's config.json."
        raise ConfigurationError(msg)
    return TrainConfig.from_dict(values)


def _check_types(config: TrainConfig) -> None:
    """Raise TypeError for a value that JSON allows and the recipe does not."""
    expected: dict[str, tuple[type, ...]] = {
        "protocol": (str, NoneType),
        "head": (str, NoneType),
        "select": (str,),
        "augment": (str, NoneType),
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
        "learning_curve": (bool,),
        "memory": (int, NoneType),
        "bundle_encoder": (bool,),
        "store": (str, NoneType),
    }
    for name, types in expected.items():
        value = getattr(config, name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{name} is {value!r}, expected {types[0].__name__}")
    if config.seed < 0 or (config.batch_size is not None and config.batch_size < 1):
        raise ValueError("seed and batch_size are whole numbers from 0 and from 1")
    if config.memory is not None and config.memory < 1:
        raise ValueError(f"memory is {config.memory}, expected bytes")
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
        data=replace(
            config.data,
            source=absolute(config.data.source),
            labels=config.data.labels and absolute(config.data.labels),
            split=config.data.split and absolute(config.data.split),
        ),
        encoder=replace(
            config.encoder, name=encoder.name, pooling=encoder.pooling, **_precision(encoder)
        ),
        protocol=plan_of(config).id,
        calibrate=calibration_method(config),
        sets_per_class=wants_sets_per_class(config),
        store=config.store and absolute(config.store),
    )


def asked_encoder(config: TrainConfig) -> EncoderSettings:
    """The encoder with the pooling of the protocol, where the user names none."""
    pooling = plan_of(config).pooling
    if config.encoder.pooling != "auto" or pooling is None:
        return config.encoder
    return replace(config.encoder, pooling=pooling)


def _precision(encoder: Encoder) -> dict[str, Any]:
    """The type that was taken, which then needs no test; int8 has no type of torch."""
    if encoder.precision == "int8":
        return {"dtype": "auto", "precision": "int8"}
    return {"dtype": encoder.precision, "precision": "auto"}


def wants_sets_per_class(config: TrainConfig) -> bool:
    """Whether each class is covered: asked for, or where the frequencies are not those of rows."""
    return config.sets_per_class or (config.prior is not None and config.sets != NO_SETS)


def augmentation(config: TrainConfig) -> str:
    """The name of the augmentation of on-the-fly training."""
    return config.augment or plan_of(config).augment or DEFAULT_AUGMENTATION


def calibration_method(config: TrainConfig) -> str:
    """How probabilities are calibrated: one of CALIBRATIONS but "auto"."""
    if config.calibrate != "auto":
        return config.calibrate
    return "temperature" if plan_of(config).calibrated else "none"


def wants_calibration(config: TrainConfig) -> bool:
    """Whether a scaling is fitted."""
    return calibration_method(config) != "none"


def wants_sets(config: TrainConfig) -> bool:
    """Whether thresholds are taken: never on the fly, for the heads of the folds differ from it."""
    return config.sets != NO_SETS and not plan_of(config).on_the_fly


def wants_predictions(config: TrainConfig) -> bool:
    """Whether out-of-fold predictions serve more than the search for doubtful labels."""
    has_target = config.target_accuracy is not None
    return wants_calibration(config) or wants_sets(config) or has_target
