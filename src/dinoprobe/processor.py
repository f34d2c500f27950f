"""What this machine's processor can do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable_cores() -> int:
    """Cores that this process may use; `DINOPROBE_CORES` says less, for one of several processes
    that share a machine.
    """
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    share = os.environ.get("DINOPROBE_CORES", "")
    return max(1, min(cores, int(share))) if share.isdecimal() else cores


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (avx512_bf16, AMX), and does not imitate it."""
    import torch

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operator, for a model on this device in this precision.

    In bfloat16 it needs a processor with AVX-512 or newer.
    """
    import torch

    if device.type != "cpu" or not torch._C._has_mkldnn:  # noqa: SLF001
        return False
    operators = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(has_bfloat16))
