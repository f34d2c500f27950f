"""From the model's tokens to one row per image.

The token sequence is `[CLS, registers, patches]` for the ViTs and `[pooled, patches]` for ConvNeXt
(transformers, modeling_dinov3_vit.py and modeling_dinov3_convnext.py). A mean never has registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

Pooling = Literal["cls", "mean", "cls+mean"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "cls+mean")


def choose_pooling(name: str, model_type: str) -> Pooling:
    """`auto` is cls+mean for the ViTs, as in DINOv3's own linear evaluation, and cls for ConvNeXt.

    ConvNeXt's pooled output already is the mean of its patch tokens, normalised.
    """
    if name == "auto":
        return "cls" if model_type == "dinov3_convnext" else "cls+mean"
    for pooling in POOLINGS:
        if name == pooling:
            return pooling
    msg = f"pooling '{name}' is not known. Use auto, {', '.join(POOLINGS)}."
    raise ConfigurationError(msg)


def pool(tokens: torch.Tensor, cls: torch.Tensor, skip: int, pooling: Pooling) -> torch.Tensor:
    """`(n, dimension)` float32 from `tokens` `(n, skip + patches, width)` and `cls` `(n, width)`.

    `skip` counts the tokens before the patches: CLS and registers. The mean is taken in float32.
    """
    import torch

    if pooling == "cls":
        return cls.float()
    mean = tokens[:, skip:].float().mean(dim=1)
    if pooling == "mean":
        return mean
    return torch.cat([cls.float(), mean], dim=1)
