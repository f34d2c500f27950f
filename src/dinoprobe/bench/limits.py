"""What the hardware allows: FLOPs of one image, and the matrix products this machine was seen to
do.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_SIDE = 1024
_TRIES = 9


def flops_of_image(config: Any, size: tuple[int, int]) -> float:
    """Multiplications and additions of one forward pass, all tokens of all layers, norms left out.

    Counted from the shapes: 2 per multiply-accumulate; ViT-S/16 at 224 has 9.4e9.
    """
    if str(config.model_type) == "dinov3_convnext":
        return _convnext_flops(config, size)
    patch = int(config.patch_size)
    patches = (size[0] // patch) * (size[1] // patch)
    tokens = 1 + int(getattr(config, "num_register_tokens", 0) or 0) + patches
    width, depth = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", 4 * width) or 4 * width)
    gated = bool(getattr(config, "use_gated_mlp", False))
    linear = 2 * tokens * (4 * width**2 + (3 if gated else 2) * width * inner)
    attention = 4 * tokens**2 * width
    return depth * (linear + attention) + 2 * patches * 3 * patch**2 * width


def _convnext_flops(config: Any, size: tuple[int, int]) -> float:
    total, before = 0.0, 3
    height, width = size
    for stage, (channels, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        stride = 4 if stage == 0 else 2
        height, width = height // stride, width // stride
        places = height * width
        total += 2 * places * channels * before * stride**2
        total += depth * 2 * places * (49 * channels + 8 * channels**2)
        before = channels
    return total


def matrix_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best matrix product seen: every core of a CPU at once, or the one GPU."""
    import torch

    if device.type != "cpu":
        return _gpu_ceiling(dtype, device)
    threads = torch.get_num_threads()
    best = max(_together(product, threads) for product in _products(dtype))
    return best * threads


def _products(dtype: torch.dtype) -> list[Callable[[], object]]:
    """torch's own product, and the one with a packed weight where this build has it."""
    import torch

    from dinoprobe.encoder.optimized import can_pack
    from dinoprobe.encoder.optimized.projection import Linear

    x = torch.randn(_SIDE, _SIDE).to(dtype)
    weight, bias = torch.randn(_SIDE, _SIDE), torch.zeros(_SIDE)
    found: list[Callable[[], object]] = [lambda: x @ x]
    if can_pack(torch.device("cpu"), dtype):
        layer = Linear((weight, bias), dtype, packed=True)
        found.append(lambda: layer(x))
    return found


def _together(product: Callable[[], object], threads: int) -> float:
    """FLOP/s of one thread while all work."""
    import torch

    from dinoprobe.engine.pipeline import single_threaded

    def work() -> float:
        times = []
        with torch.inference_mode():
            product()
            for _ in range(_TRIES):
                start = time.perf_counter()
                product()
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    with ThreadPoolExecutor(threads, initializer=single_threaded()) as pool:
        medians = [future.result() for future in [pool.submit(work) for _ in range(threads)]]
    return 2 * _SIDE**3 / statistics.median(medians)


def _gpu_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    import torch

    side = 8 * _SIDE
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(_TRIES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times)
