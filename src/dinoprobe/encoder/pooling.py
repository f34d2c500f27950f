"""From the model's tokens to one row per image.

The token sequence is `[CLS, registers, patches]` for the ViTs and `[pooled, patches]` for ConvNeXt
(transformers, modeling_dinov3_vit.py and modeling_dinov3_convnext.py). A mean never has registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.errors import ConfigurationError
from dinoprobe.pooling import CLS, MEAN, blocks_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def choose_pooling(name: str, model_type: str, depth: int) -> str:
    """The pooling of this name for a model of `depth` blocks.

    `auto` is cls+mean for the ViTs, as in DINOv3's own linear evaluation, and cls for ConvNeXt,
    whose pooled output already is the mean of its patch tokens, normalised. Raises
    ConfigurationError for an unknown name, and for blocks that the model has not.
    """
    is_convnext = model_type == "dinov3_convnext"
    if name == "auto":
        return "cls" if is_convnext else "cls+mean"
    blocks = blocks_of(name)
    if blocks > 1 and is_convnext:
        msg = f"pooling '{name}': blocks of a ConvNeXt have no CLS. Use cls, mean or cls+mean."
        raise ConfigurationError(msg)
    if blocks > depth:
        msg = f"pooling '{name}': this model has {depth} blocks. Use {depth} or fewer."
        raise ConfigurationError(msg)
    return name


def pool(
    tokens: torch.Tensor, skip: int, pooling: str, earlier: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """`(n, dimension)` float32 from the last block's `tokens` `(n, skip + patches, width)`.

    `skip` counts the tokens before the patches: CLS and registers. `earlier` holds the CLS of
    earlier blocks, `(n, width)` each, the oldest first. The mean is taken in float32.
    """
    import torch

    parts = parts_of(pooling)
    rows = [row.float() for row in earlier]
    if CLS in parts:
        rows.append(tokens[:, 0].float())
    if MEAN in parts:
        rows.append(tokens[:, skip:].float().mean(dim=1))
    return torch.cat(rows, dim=1)
