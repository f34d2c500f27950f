"""Where the model runs, in which precision, and whether it fits there.

float16 is refused on CPU: measured 27-53 GFLOP/s against 560-818 in bfloat16 on a CPU with
avx512_bf16 and no float16 arithmetic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ConfigurationError, EncoderError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Spread:
    """A model over several devices, by accelerate: `device_map` one of DEVICE_MAPS, or a mapping of
    module names to devices; `max_memory` in bytes by device, such as {0: 8e9, "cpu": 3e10}.
    """

    device_map: str | Mapping[str, Any]
    max_memory: Mapping[int | str, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.device_map, str) and self.device_map not in DEVICE_MAPS:
            msg = (
                f"device map '{self.device_map}' is not known. Use one of {', '.join(DEVICE_MAPS)}."
            )
            raise ConfigurationError(msg)
        if find_spec("accelerate") is None:
            raise MissingExtraError("a model over several devices (--device-map)", "big")
        _refuse_absent_devices(self.max_memory or {})


def _refuse_absent_devices(memory: Mapping[int | str, int]) -> None:
    import torch

    count = torch.cuda.device_count()
    absent = [device for device in memory if isinstance(device, int) and device >= count]
    if absent:
        msg = (
            f"--max-memory names device {absent[0]}, and {count} CUDA devices are here. Leave it "
            "out, or give cpu=... alone."
        )
        raise ConfigurationError(msg)


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


def model_bytes(parameters: int, dtype: str) -> int:
    """Bytes of the weights in `dtype`; images and activations come on top."""
    return parameters * _BYTES[dtype]


def refuse_too_large(
    name: str,
    parameters: int,
    dtype: str,
    device: torch.device,
    *,
    needed: int | None = None,
) -> None:
    """Raise EncoderError, before anything is loaded, where the weights can not fit on the device.

    `needed` is the bytes of two copies, where there will be two. The message says what would fit: a
    smaller precision, several devices, a smaller encoder.
    """
    twice = " for two copies of its weights" if needed is not None else ""
    needed, free = needed or model_bytes(parameters, dtype), free_bytes(device)
    if free is None or needed <= free:
        return
    ways = []
    if dtype == "float32" and needed <= 2 * free:
        ways.append("--dtype bfloat16")
    ways += ["--device-map auto (several devices, the rest in CPU memory or on disk; extra 'big')"]
    if device.type != "cpu":
        ways.append("--device cpu")
    msg = (
        f"{name} needs {gigabytes(needed)} in {dtype}{twice}; {device} has {gigabytes(free)} free. "
        f"Use {', '.join(ways)}, or a smaller encoder."
    )
    raise EncoderError(msg)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on the device, in bytes; None where it can not be told."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return _free_on_cpu() if device.type == "cpu" else None


def _free_on_cpu() -> int | None:
    """What Linux calls available, within the limit of the control group."""
    available = _meminfo()
    limits = [available] if available is not None else []
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        limits.append(limit - used + _reclaimable(group / "memory.stat"))
    except (OSError, ValueError):
        pass
    return min(limits) if limits else None


def _reclaimable(statistics: Path) -> int:
    """The cache of files that counts as used by a control group and gives way when asked."""
    lines = statistics.read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def gigabytes(count: int) -> str:
    """`13.4 GB`, with units of a thousand; below one, `86.4 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def parse_memory(text: str) -> dict[int | str, int]:
    """`0=8GB,1=8GB,cpu=30GB` as bytes by device. Raises ConfigurationError."""
    found: dict[int | str, int] = {}
    for part in text.split(","):
        device, separator, size = part.strip().partition("=")
        memory = parse_size(size)
        if not separator or memory is None or not (device.isdigit() or device in {"cpu", "mps"}):
            msg = f"--max-memory {text}: expected such as 0=8GB,cpu=30GB, a device and its memory."
            raise ConfigurationError(msg)
        found[int(device) if device.isdigit() else device] = memory
    return found


def parse_size(text: str) -> int | None:
    """Bytes of `8GB` or `512MiB`; None for anything else."""
    match = _SIZE.match(text.strip())
    if match is None:
        return None
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    power = "KMGT".index(unit.upper()) + 1 if unit else 0
    return int(float(number) * base**power)
