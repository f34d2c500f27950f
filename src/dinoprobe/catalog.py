"""The published DINOv3 checkpoints by short name.

Ids and statistics are those of the model cards of facebook/dinov3-*. The satellite checkpoints were
trained with statistics of their own, though the files on the hub carry ImageNet's.
"""

from __future__ import annotations

import difflib

SAT493M_MEAN = (0.430, 0.411, 0.296)
SAT493M_STD = (0.213, 0.156, 0.143)

BUILTIN_NAMES = ("builtin",)

_VITS = ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16")
_CONVNEXTS = ("convnext-tiny", "convnext-small", "convnext-base", "convnext-large")
_SATELLITE = ("vitl16", "vit7b16")

HUB_IDS: dict[str, str] = {
    **{name: f"facebook/dinov3-{name}-pretrain-lvd1689m" for name in (*_VITS, *_CONVNEXTS)},
    **{f"{name}-sat493m": f"facebook/dinov3-{name}-pretrain-sat493m" for name in _SATELLITE},
}


def is_satellite(hub_id: str) -> bool:
    """Whether this checkpoint was trained with the SAT-493M statistics."""
    return hub_id.startswith("facebook/dinov3-") and hub_id.endswith("-sat493m")


def is_dinov3_licensed(hub_id: str) -> bool:
    """Whether weights of this id are published under the DINOv3 licence."""
    return "dinov3" in hub_id.lower()


def nearest_names(name: str) -> list[str]:
    """Up to three known encoder names that look like this one."""
    return difflib.get_close_matches(name.lower(), [*BUILTIN_NAMES, *HUB_IDS], n=3, cutoff=0.5)
