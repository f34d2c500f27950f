"""OpenVINO on a CPU: 95 % of the float32 and 80 to 90 % of the bfloat16 ceiling, where torch's own
kernels leave softmax, norms and copies between the products.

One stream of one thread per core, each with a request of its own, is the fastest shape; a single
batch that has the machine to itself gets one stream over all cores. The telemetry package that the
wheel brings along is kept from loading.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import metadata
from threading import Lock, local
from typing import TYPE_CHECKING, Any, final

from dinoprobe.processor import has_fast_bfloat16, usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from dinoprobe.encoder.backends.graphs import Plan

FILE = "model.xml"


def version() -> str:
    """What made a graph: a newer OpenVINO makes its own."""
    return f"openvino {metadata.version('openvino')}"


def load() -> Any:
    """The module `openvino`, without its telemetry."""
    with without_telemetry():
        import openvino
    return openvino


@contextmanager
def without_telemetry() -> Iterator[None]:
    """OpenVINO and NNCF import `openvino_telemetry` where they find it, and do without where not.

    It would send statistics of use to a server.
    """
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def write(plan: Plan, folder: Path) -> None:
    """The float32 graph with a free batch size, as FILE and its .bin."""
    load().save_model(converted(plan), folder / FILE, compress_to_fp16=False)


def converted(plan: Plan) -> Any:
    """The graph in memory, from the folded module in float32."""
    from dinoprobe.encoder.backends.graphs import example, folded

    return convert(folded(plan, "float32", packed=False), example(plan.preprocessing))


def convert(module: torch.nn.Module, images: torch.Tensor) -> Any:
    """The graph in memory of what `module` makes of `images`, with a free batch size."""
    import warnings

    import torch

    openvino = load()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each shape that it takes as constant
        return openvino.convert_model(module, example_input=images, input=[-1, *images.shape[1:]])


def core() -> Any:
    """OpenVINO's core: one, which lives as long as the process.

    Its CPU plugin gives the thread that compiles first a stack for signals, and takes the memory
    away where the last core goes, in whatever thread that is. The next Ctrl-C then kills the
    process in the kernel, before Python hears of it.
    """
    with _core_lock:
        if not _cores:
            _cores.append(load().Core())
        return _cores[0]


_core_lock = Lock()
_cores: list[Any] = []


@final
class Graph:
    """A graph of `folder`, compiled for this CPU in `precision`: float32, bfloat16 or int8."""

    def __init__(self, folder: Path, precision: str) -> None:
        self._path = folder / FILE
        # what an int8 graph leaves in floating point is bfloat16 where the CPU has it
        wants_half = precision == "bfloat16" or (precision == "int8" and has_fast_bfloat16())
        self._hint = "bf16" if wants_half else "f32"
        self._compiled: dict[bool, Any] = {}
        self._lock = Lock()
        self._requests = local()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images; called by a thread that torch gives one core, on one stream."""
        import torch

        request = self._request(alone=torch.get_num_threads() > 1)
        result = request.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(next(iter(result.values())).copy())

    def _request(self, *, alone: bool) -> Any:
        """This thread's request, on the model that was compiled for such threads."""
        requests = vars(self._requests).setdefault("found", {})
        if alone not in requests:
            requests[alone] = self._model(alone=alone).create_infer_request()
        return requests[alone]

    def _model(self, *, alone: bool) -> Any:
        with self._lock:
            if alone not in self._compiled:
                cores = usable_cores()
                self._compiled[alone] = core().compile_model(
                    str(self._path),
                    "CPU",
                    {
                        "INFERENCE_PRECISION_HINT": self._hint,
                        "NUM_STREAMS": 1 if alone else cores,
                        "INFERENCE_NUM_THREADS": cores,
                    },
                )
            return self._compiled[alone]
