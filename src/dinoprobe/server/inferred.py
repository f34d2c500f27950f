"""The answer of the Open Inference Protocol: the outputs that were asked for, in JSON or behind it.

The binary tensor data extension is Triton's and KServe's, as is the output parameter
`classification`, Triton's: the best k classes as texts of "probability:index:label".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from starlette.responses import Response

from dinoprobe.server.problems import ProblemError
from dinoprobe.server.schema import as_json
from dinoprobe.server.tensors import HEADER, LENGTH_BYTES, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

PROBABILITIES, LABELS = "probabilities", "label"
_MOST = 2


class Wanted(NamedTuple):
    """One output: with `classes` the best so many as texts, 0 for the tensor itself."""

    name: str
    is_binary: bool
    classes: int


def wanted_outputs(value: dict[str, Any]) -> list[Wanted]:
    """The outputs that a request names, else both. Raises ProblemError."""
    is_binary = _parameters(value, "the request").get("binary_data_output") is True
    outputs = value.get("outputs")
    if outputs is None or outputs == []:
        return [Wanted(name, is_binary, 0) for name in (PROBABILITIES, LABELS)]
    if not isinstance(outputs, list) or any(not isinstance(one, dict) for one in outputs):
        raise _wrong("'outputs' that is no list of objects")
    if len(outputs) > _MOST:
        raise _wrong(f"{len(outputs)} outputs")
    return [_wanted(one, is_binary=is_binary) for one in outputs]


def _wanted(output: dict[str, Any], *, is_binary: bool) -> Wanted:
    name = output.get("name")
    if name not in (PROBABILITIES, LABELS):
        raise _wrong(f"an output {name!r:.100}")
    parameters = _parameters(output, f"output '{name}'")
    count = whole_number(parameters.get("classification", 0))
    if count is None or (count and name != PROBABILITIES):
        raise _wrong(f"parameters {parameters!r:.100} of output '{name}'")
    return Wanted(name, parameters.get("binary_data", is_binary) is True, count)


def _parameters(value: dict[str, Any], place: str) -> dict[str, Any]:
    found = value.get("parameters", {})
    if not isinstance(found, dict):
        raise _wrong(f"'parameters' of {place} that is no object")
    return found


def _wrong(found: str) -> ProblemError:
    message = (
        f"{found}; expected '{PROBABILITIES}', with parameters binary_data and classification, and "
        f"'{LABELS}', with binary_data, two at most. Ask for these."
    )
    return ProblemError(422, "output", message)


def inferred(
    head: dict[str, Any],
    wanted: Sequence[Wanted],
    probabilities: npt.NDArray[np.float64],
    labels: Sequence[str],
    classes: Sequence[str],
) -> Response:
    """The response: `head` with the outputs for `probabilities` `(n, classes)` and n labels."""
    outputs, blobs = [], []
    for one in wanted:
        tensor: npt.NDArray[np.float64] | list[str] = probabilities
        shape = list(probabilities.shape)
        if one.name == LABELS:
            tensor, shape = list(labels), [len(labels)]
        elif one.classes:
            tensor = _best(probabilities, one.classes, classes)
            shape[1] = min(one.classes, len(classes))
        kind = "BYTES" if isinstance(tensor, list) else "FP64"
        output: dict[str, Any] = {"name": one.name, "datatype": kind, "shape": shape}
        if one.is_binary:
            blobs.append(_bytes(tensor))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = tensor if isinstance(tensor, list) else tensor.ravel().tolist()
        outputs.append(output)
    if not blobs:
        return as_json({**head, "outputs": outputs})
    content = json.dumps({**head, "outputs": outputs}, allow_nan=False).encode()
    named = {HEADER: str(len(content))}
    whole = b"".join([content, *blobs])
    return Response(whole, media_type="application/octet-stream", headers=named)


def _best(probabilities: npt.NDArray[np.float64], count: int, classes: Sequence[str]) -> list[str]:
    """The best classes of each image, one image after the other."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return [
        f"{float(row[index])!r}:{index}:{classes[index]}"
        for row, indices in zip(probabilities, order, strict=True)
        for index in indices
    ]


def _bytes(tensor: npt.NDArray[np.float64] | list[str]) -> bytes:
    """Little-endian, each text with its length before it."""
    if not isinstance(tensor, list):
        return tensor.astype("<f8").tobytes()
    texts = [text.encode() for text in tensor]
    return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in texts)
