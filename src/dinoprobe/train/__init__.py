"""The recipe: open, embed, split, fit with selection, evaluate once on the test part, save.

Order matters twice: images are embedded before they are split, because identical images must stay
on one side and only their bytes tell; and the test part is read once, after everything is chosen.
"""

from dinoprobe.datasets import DataSettings
from dinoprobe.train.candidates import unfitted
from dinoprobe.train.config import CONFIG_SCHEMA, TrainConfig, read_train_config
from dinoprobe.train.prior import prior_shift
from dinoprobe.train.recipe import TrainedRun, train

__all__ = [
    "CONFIG_SCHEMA",
    "DataSettings",
    "TrainConfig",
    "TrainedRun",
    "prior_shift",
    "read_train_config",
    "train",
    "unfitted",
]
