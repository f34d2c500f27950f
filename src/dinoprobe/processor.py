"""What this machine's processor can do."""

from __future__ import annotations


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (avx512_bf16, AMX), and does not imitate it."""
    import torch

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)
