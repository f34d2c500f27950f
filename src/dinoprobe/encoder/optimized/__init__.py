"""The frozen models rewritten for inference: the same numbers in fewer passes.

From a loaded transformers model, `fold` makes a module that takes images as `prepare` gives them
and returns pooled features. What is constant is multiplied out beforehand: normalisation into the
first projection, the affine part of each LayerNorm into the projection behind it, LayerScale into
the projection before it, the softmax's scale into the queries. In float32 it equals transformers to
1 - cosine <= 1e-9; in bfloat16 it is closer to float32 than transformers' own bfloat16, for pixels
enter as centred integers, which bfloat16 holds exactly, and the residual stream stays in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoprobe.encoder.optimized.convnext import FoldedConvNext
from dinoprobe.encoder.optimized.vit import FoldedViT
from dinoprobe.processor import can_pack

if TYPE_CHECKING:
    import torch

    from dinoprobe.preprocess import Preprocessing


def fold(
    model: torch.nn.Module,
    model_type: str,
    preprocessing: Preprocessing,
    *,
    pooling: str,
    dtype: torch.dtype,
    packed: bool = False,
    fused: bool = False,
) -> torch.nn.Module:
    """The module for these images and this pooling; its weights are copies in `dtype`, laid out for
    this CPU's kernels where `packed` (see `projection`). `fused` takes torch's fused attention.

    Takes `(n, 3, height, width)` uint8, or float32 in the exact mode, of the preprocessing's size;
    returns `(n, dimension)` float32.
    """
    options: dict[str, Any] = {"pooling": pooling, "dtype": dtype, "packed": packed}
    if model_type == "dinov3_convnext":
        return FoldedConvNext(model, preprocessing, **options).eval()
    return FoldedViT(model, preprocessing, **options, fused=fused).eval()


__all__ = ["FoldedConvNext", "FoldedViT", "can_pack", "fold"]
