"""Where the model runs and in which precision.

float16 is refused on CPU: measured 27-53 GFLOP/s against 560-818 in bfloat16 on a CPU with
avx512_bf16 and no float16 arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises ConfigurationError for what is not there."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"device '{name}' is not known. Use auto, cpu, cuda, cuda:N or mps."
        raise ConfigurationError(msg) from error
    _refuse_absent(device, name)
    return device


def _refuse_absent(device: torch.device, name: str) -> None:
    import torch

    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if device.type == "mps":
        count = int(torch.backends.mps.is_available())
    if (device.index or 0) >= count:
        found = f"{count} device(s) of this type" if count else "none of this type"
        msg = f"device '{name}' was asked for and {found} is there. Use --device cpu or auto."
        raise ConfigurationError(msg)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, else float32. Raises ConfigurationError."""
    import torch

    if name not in DTYPES:
        raise ConfigurationError(f"dtype '{name}' is not known. Use one of {', '.join(DTYPES)}.")
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name == "float16" and device.type == "cpu":
        msg = "dtype 'float16' is slower than float32 on a CPU. Use bfloat16 or float32."
        raise ConfigurationError(msg)
    chosen: torch.dtype = getattr(torch, name)
    return chosen
