"""The frequencies of DINOv3's rotary position embedding, as transformers or as Meta have them.

Meta's files store the periods rounded to bfloat16; transformers computes them anew in float32
(modeling_dinov3_vit.py, DINOv3ViTRopePositionEmbedding). The difference is within the tolerance of
the published vectors, so float32 is the default; `meta-bf16` repeats Meta's own code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    import torch

ROPES = ("float32", "meta-bf16")


def set_rope(model: torch.nn.Module, rope: str) -> None:
    """Round the periods to bfloat16 where `rope` is `meta-bf16`, in place.

    Raises EncoderError where the embedding was moved off the device.
    """
    import torch

    if rope == "float32":
        return
    embedding: Any = model.rope_embeddings
    frequencies: torch.Tensor = embedding.inv_freq
    if frequencies.is_meta:
        msg = "rope 'meta-bf16' needs the position embedding in memory. Give more --max-memory."
        raise EncoderError(msg)
    periods = (1.0 / frequencies.float()).to(torch.bfloat16).float()
    embedding.inv_freq = (1.0 / periods).to(frequencies)
