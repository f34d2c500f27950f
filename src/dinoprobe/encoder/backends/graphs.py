"""A folded model as something that can be called: a torch module, or a graph compiled elsewhere.

Graphs are kept in the user's cache, `graphs/KEY/`: making one takes seconds, reading it a tenth of
that. The key is a hash over the weights' digest, the architecture, the preprocessing, the pooling
and the versions that made it, so a stale graph is never found; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, final

from dinoprobe.errors import FormatError
from dinoprobe.files import read_json, staged_folder, user_cache, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from dinoprobe.encoder.backends.choice import Choice
    from dinoprobe.preprocess import Preprocessing

GRAPH_VERSION = 1
RECORD = "graph.json"


class Built(Protocol):
    """Images `(n, 3, height, width)` as `prepare` gives them, to features `(n, dimension)` float32;
    from several threads.
    """

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be built: the model, for images of this preprocessing's size and arithmetic.

    `identity` is what changes the numbers of the graph apart from `preprocessing` and `pooling`, as
    JSON values. `int8` is the folder of a graph that was quantised before.
    """

    model: torch.nn.Module
    model_type: str
    preprocessing: Preprocessing
    pooling: str
    identity: Mapping[str, Any]
    int8: Path | None = None


def build(plan: Plan, choice: Choice) -> Built:
    """The thing to call, from the cache where it has been made before."""
    if choice.backend == "torch":
        module = folded(plan, choice.precision)
        if choice.compiled:
            compile_layers(module)
        return module
    if choice.backend == "onnxruntime":
        from dinoprobe.encoder.backends import onnxruntime

        return FirstAlone(onnxruntime.Graph(stored(plan, made_by(choice), onnxruntime.write)))
    from dinoprobe.encoder.backends import openvino

    if choice.precision == "int8" and plan.int8 is not None:
        return FirstAlone(openvino.Graph(plan.int8, "int8"))
    folder = stored(plan, made_by(choice), openvino.write)
    return FirstAlone(openvino.Graph(folder, choice.precision))


@final
class FirstAlone:
    """Lets the first call through by itself, and all others at once.

    At its first use OpenVINO's binding (2026.4) sets up tables in C++ with a lock of its own, for
    which it lets go of the interpreter's: two threads there at once wait for each other for ever.
    """

    _lock = Lock()

    def __init__(self, built: Built) -> None:
        self._built = built
        self._started = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The features."""
        if self._started:
            return self._built(images)
        with self._lock:
            features = self._built(images)
            self._started = True
        return features


def made_by(choice: Choice) -> str:
    """The backend with the version that makes its graphs."""
    if choice.backend == "openvino":
        from dinoprobe.encoder.backends import openvino

        return openvino.version()
    if choice.backend == "onnxruntime":
        from dinoprobe.encoder.backends import onnxruntime

        return onnxruntime.version()
    return choice.backend


def folded(plan: Plan, precision: str, *, packed: bool | None = None) -> torch.nn.Module:
    """The torch module; weights are laid out for this CPU where they can be, unless told."""
    import torch

    from dinoprobe.encoder.optimized import can_pack, fold

    dtype = getattr(torch, precision)
    device = next(plan.model.parameters()).device
    return fold(
        plan.model,
        plan.model_type,
        plan.preprocessing,
        pooling=plan.pooling,
        dtype=dtype,
        packed=can_pack(device, dtype) if packed is None else packed,
        fused=device.type != "cpu",
    )


def compile_layers(model: torch.nn.Module) -> None:
    """Have torch compile each repeated layer, in place, when it first runs.

    Layers share one compilation, so this takes seconds where the whole model takes minutes.
    """
    import torch

    for part in model.modules():
        if isinstance(part, torch.nn.ModuleList):
            for layer in part:
                if not isinstance(layer, torch.nn.ModuleList) and not _has_lists(layer):
                    layer.compile()


def _has_lists(layer: torch.nn.Module) -> bool:
    """Whether it is a stage, whose layers are compiled and not it."""
    import torch

    return any(isinstance(part, torch.nn.ModuleList) for part in layer.modules())


def stored(plan: Plan, maker: str, write: Callable[[Plan, Path], None]) -> Path:
    """The folder of this graph, made by `write` where it is not there or not whole."""
    folder = user_cache() / "graphs" / key(plan, maker)
    if not is_whole(folder):
        keep(folder, lambda staging: write(plan, staging))
    return folder


def keep(
    folder: Path, write: Callable[[Path], None], record: Mapping[str, Any] | None = None
) -> None:
    """Fill `folder` by `write`, all or nothing: beside its place, synced, renamed.

    graph.json holds `record` and the size of each file.
    """
    with staged_folder(folder, is_whole) as staging:
        write(staging)
        sizes = {path.name: path.stat().st_size for path in staging.iterdir()}
        write_json(staging / RECORD, {**(record or {}), "files": sizes})


def is_whole(folder: Path) -> bool:
    """Whether every file of the record is there in its size."""
    try:
        sizes = read_json(folder / RECORD)["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, FormatError, KeyError, TypeError, AttributeError):
        return False


def key(plan: Plan, maker: str) -> str:
    """32 hex digits."""
    described = {
        "version": GRAPH_VERSION,
        "maker": maker,
        "identity": dict(plan.identity),
        "preprocessing": plan.preprocessing.to_dict(),
        "pooling": plan.pooling,
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def example(preprocessing: Preprocessing) -> torch.Tensor:
    """One image `(1, 3, height, width)` of the kind that the graph is made for."""
    import torch

    height, width = preprocessing.size
    if preprocessing.arithmetic == "exact":
        return torch.full((1, 3, height, width), 0.5)
    return torch.full((1, 3, height, width), 128, dtype=torch.uint8)
