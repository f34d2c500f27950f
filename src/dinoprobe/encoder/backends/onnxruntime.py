"""ONNX Runtime on a CPU, in float32: for machines where it is the runtime that one has.

It has no bfloat16 there, and in float32 it does about 0.8 of OpenVINO.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dinoprobe.encoder.backends.graphs import Plan

FILE = "model.onnx"
OPSET = 17


def version() -> str:
    """What made a graph."""
    return f"onnx {metadata.version('torch')} opset {OPSET}"


def write(plan: Plan, folder: Path) -> None:
    """The float32 graph with a free batch size, as FILE. Raises MissingExtraError without onnx."""
    from importlib.util import find_spec

    from dinoprobe.encoder.backends.graphs import example, folded
    from dinoprobe.errors import MissingExtraError

    if find_spec("onnx") is None:
        raise MissingExtraError("ONNX Runtime", "onnx")
    module = folded(plan, "float32", packed=False)
    trace(module, example(plan.preprocessing), folder / FILE, names=("images", "features"))


def trace(
    module: torch.nn.Module,
    images: torch.Tensor,
    path: Path,
    *,
    names: tuple[str, ...],
    opset: int = OPSET,
) -> None:
    """Write what `module` makes of `images`, with a free batch size; `names` are those of the input
    and of each output.
    """
    import warnings

    import torch

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each shape that it takes as constant
        torch.onnx.export(
            module,
            (images,),
            str(path),
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "n"} for name in names},
            opset_version=opset,
            dynamo=False,
            external_data=False,
        )


@final
class Graph:
    """A graph of `folder`, run on the calling thread alone: the engine has one for each core."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images."""
        import torch

        (features,) = self._session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(features)
