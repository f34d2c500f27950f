"""Smaller ONNX files: weights in float16, or products in int8.

fp16: weights lie in float16 and are made float32 when the file is loaded, for ONNX Runtime has no
products in float16 or bfloat16 on a CPU: half the file, the speed of float32. int8: weights in int8
by channel, activations by call as they come (ONNX Runtime's dynamic quantisation), nearer to
float32 than ranges from training images were; layers that have more inputs than outputs, whose
inputs have the widest ranges, stay in floating point with weights in float16 (docs/log.md). Images
that go in together share the ranges of their activations, so callers give them one by one.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.export.onnx_weights import MAX_BYTES, save, weights

if TYPE_CHECKING:
    from collections.abc import Iterator

ENCODER = "/encoder/"
"""What names of the encoder's nodes begin with: head and novelty stay in floating point."""


def to_float16(path: Path) -> None:
    """Rewrite the file with its large weights in float16, each behind a Cast to float32."""
    import onnx

    model = onnx.load(path)
    _halve(model)
    save(model, path)


def _halve(model: Any) -> None:
    import onnx

    casts = []
    for tensor in weights(model):
        whole, name = tensor.name, f"{tensor.name}/float16"
        values = onnx.numpy_helper.to_array(tensor)
        limit = np.finfo(np.float16).max
        half = np.clip(values, -limit, limit).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, name))
        casts.append(onnx.helper.make_node("Cast", [name], [whole], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def to_int8(path: Path) -> None:
    """Rewrite the file with the encoder's layers in int8, those that narrow in float16."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    widening = {t.name for t in model.graph.initializer if len(t.dims) == 2 and _widens(*t.dims)}
    layers = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.name.startswith(ENCODER) and node.input[1] in widening
    ]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        made = Path(folder) / path.name
        quantize_dynamic(
            path,
            made,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=layers,
            use_external_data_format=_bytes_at(path) > MAX_BYTES,
        )
        reduced: Any = onnx.load(made)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(reduced, properties)  # the tool adds one of its own
    _halve(reduced)
    save(reduced, path)


def _widens(inputs: int, outputs: int) -> bool:
    return inputs <= outputs


def _bytes_at(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tool's advice to prepare the model by another of its tools."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
