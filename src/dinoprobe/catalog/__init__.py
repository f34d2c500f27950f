"""The published checkpoints: names, shapes, statistics, licences, and vectors to check them by.

Data only, without torch: `dinoprobe models` and `--help` read it.
"""

from dinoprobe.catalog.checkpoints import (
    CHECKPOINTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SAT493M_MEAN,
    SAT493M_STD,
    STATISTICS,
    Checkpoint,
    Family,
)
from dinoprobe.catalog.golden import GOLDEN, GOLDEN_IMAGE_SIZE, GOLDEN_IMAGE_URL, Golden
from dinoprobe.catalog.names import (
    BUILTIN_NAMES,
    HUB_IDS,
    by_hub_id,
    by_timm_name,
    is_dinov3_licensed,
    is_satellite,
    nearest_names,
)

__all__ = [
    "BUILTIN_NAMES",
    "CHECKPOINTS",
    "GOLDEN",
    "GOLDEN_IMAGE_SIZE",
    "GOLDEN_IMAGE_URL",
    "HUB_IDS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SAT493M_MEAN",
    "SAT493M_STD",
    "STATISTICS",
    "Checkpoint",
    "Family",
    "Golden",
    "by_hub_id",
    "by_timm_name",
    "is_dinov3_licensed",
    "is_satellite",
    "nearest_names",
]
