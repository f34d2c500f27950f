"""The weights of an ONNX model, and where they lie: in its file, or beside it where they are many.

A file of this format ends at 2 GiB, for it is one protobuf message. Larger weights go into one
file beside it, which ONNX Runtime finds by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoprobe.files import sync_tree, umask, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 1_900_000_000
BESIDE = ".data"
_LEAST_BYTES = 1024  # smaller tensors stay in the file: shapes are inferred from some of them


def save(model: Any, path: Path) -> None:
    """The model at `path`, and its weights in `path` + BESIDE where they exceed MAX_BYTES.

    Changes the model. Raises WriteError.
    """
    import onnx

    hoist(model)
    beside = path.with_name(path.name + BESIDE)
    beside.unlink(missing_ok=True)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= MAX_BYTES:
        write_atomic(path, model.SerializeToString())
        return
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        location=beside.name,
        size_threshold=_LEAST_BYTES,
    )
    beside.chmod(0o666 & ~umask())  # onnx leaves it to its owner
    sync_tree(path.parent)


def hoist(model: Any) -> None:
    """Make initializers of the constants in a graph: tools look for weights there, and only these
    can lie beside the file.
    """
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            if tensor.dims and tensor.raw_data:
                tensor.name = node.output[0]
                model.graph.initializer.append(tensor)
                continue
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def weights(model: Any) -> Iterator[Any]:
    """The matrices in float32 that are worth making smaller, not biases and scales."""
    import onnx

    for tensor in model.graph.initializer:
        is_float = tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
        if is_float and len(tensor.raw_data) > _LEAST_BYTES:
            yield tensor
