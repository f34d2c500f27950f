"""The device of a model while it runs: where images go, a stream for each thread, full float32."""

from __future__ import annotations

from contextlib import nullcontext
from threading import local
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

_streams = local()


def input_device(model: torch.nn.Module) -> tuple[torch.device, bool]:
    """Where pixel values go, and whether accelerate has spread the model over several places."""
    import torch

    places = getattr(model, "hf_device_map", None)
    if not places or (set(places) == {""} and places[""] != "disk"):
        return next(model.parameters()).device, False
    first = next((place for place in places.values() if place not in {"cpu", "disk"}), "cpu")
    return torch.device(first), True


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """On CUDA a stream for each thread: one copies its batch while the other one computes."""
    import torch

    if device.type != "cuda":
        return nullcontext()
    streams = vars(_streams).setdefault("found", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    chosen: AbstractContextManager[Any] = torch.cuda.stream(streams[device])
    return chosen


def full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions without TF32 on CUDA, where it is cuDNN's default: float32 means float32."""
    import torch

    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags
