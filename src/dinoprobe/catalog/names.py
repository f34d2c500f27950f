"""From what a user writes to a published checkpoint, and back."""

from __future__ import annotations

import difflib

from dinoprobe.catalog.checkpoints import CHECKPOINTS, Checkpoint

BUILTIN_NAMES = ("builtin",)

HUB_IDS: dict[str, str] = {name: entry.hub_id for name, entry in CHECKPOINTS.items()}
_BY_HUB_ID = {entry.hub_id.lower(): entry for entry in CHECKPOINTS.values()}
_BY_TIMM_NAME = {name: entry for entry in CHECKPOINTS.values() for name in entry.timm}


def by_hub_id(hub_id: str) -> Checkpoint | None:
    """The published checkpoint of this repository; of timm's copies too (`timm/NAME`)."""
    owner, _, name = hub_id.partition("/")
    if owner == "timm":
        return by_timm_name(name)
    return _BY_HUB_ID.get(hub_id.lower())


def by_timm_name(name: str) -> Checkpoint | None:
    """The checkpoint of timm's name, such as vit_base_patch16_dinov3.lvd1689m."""
    return _BY_TIMM_NAME.get(name)


def is_satellite(hub_id: str) -> bool:
    """Whether this checkpoint was trained with the SAT-493M statistics."""
    entry = by_hub_id(hub_id)
    return entry is not None and entry.weights == "sat493m"


def is_dinov3_licensed(hub_id: str) -> bool:
    """Whether weights of this id are published under the DINOv3 licence."""
    return "dinov3" in hub_id.lower()


def nearest_names(name: str) -> list[str]:
    """Up to three known encoder names that look like this one."""
    return difflib.get_close_matches(name.lower(), [*BUILTIN_NAMES, *HUB_IDS], n=3, cutoff=0.5)
