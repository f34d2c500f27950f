"""Images in a request of the Open Inference Protocol: files, or pixels, in JSON or behind it.

Behind the JSON is the binary tensor data extension, which Triton's and KServe's clients use: the
header `Inference-Header-Content-Length` says where the JSON ends. Nothing else goes on while JSON
is parsed, so it is bounded: 256 x 256 pixels take 47 ms flat and 189 ms nested on a busy core.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.server.bodies import Upload, check_count, from_base64, parse_json
from dinoprobe.server.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from starlette.requests import Request

INPUT = "image"
HEADER = "inference-header-content-length"
MAX_NUMBERS = 300_000
LENGTH_BYTES = 4  # before each element of a binary BYTES tensor, little-endian
_DIGITS = 12


class Inference(NamedTuple):
    """A request: its JSON object, and its images."""

    value: dict[str, Any]
    uploads: list[Upload]


async def read_inference(request: Request, max_images: int) -> Inference:
    """The request and its 1 to `max_images` images. Raises ProblemError."""
    body = await request.body()
    end = _json_bytes(request.headers.get(HEADER), len(body))
    value = parse_json(body[:end], MAX_NUMBERS)
    inputs = value.get("inputs") if isinstance(value, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise wrong("no list 'inputs' with one tensor")
    images = _images(inputs[0], memoryview(body)[end:], max_images)
    return Inference(value, [Upload(str(i), image) for i, image in enumerate(images)])


def _json_bytes(given: str | None, available: int) -> int:
    if given is None:
        return available
    is_number = given.isascii() and given.isdigit() and len(given) <= _DIGITS
    if not is_number or int(given) > available:
        raise wrong(f"the header {HEADER}: {given[:50]!r} with a body of {available:,} bytes")
    return int(given)


def _images(
    tensor: dict[str, Any], binary: memoryview, max_images: int
) -> list[bytes] | npt.NDArray[np.uint8]:
    """Files, or pixels `(n, height, width, 3)`."""
    name, kind, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if name != INPUT or kind not in ("BYTES", "UINT8"):
        raise wrong(f"a tensor {name!r:.100} of datatype {kind!r:.100}")
    sizes = [whole_number(size) for size in shape] if isinstance(shape, list) else [None]
    shape = [size for size in sizes if size is not None]
    if len(shape) < len(sizes):
        raise wrong(f"'shape' {tensor.get('shape')!r:.100}")
    if kind == "BYTES" and shape[1:] in ([], [1]) and shape:
        check_count(shape[0], max_images)
        return _files(tensor, binary, shape[0])
    if kind == "UINT8" and len(shape) in (3, 4) and shape[-1] == 3:
        whole = [1, *shape][-4:]
        check_count(whole[0], max_images)
        return _pixels(tensor, binary, shape).reshape(whole)
    raise wrong(f"a tensor of datatype {kind} and shape {shape!r:.100}")


def _is_binary(tensor: dict[str, Any], binary: memoryview) -> bool:
    """Whether its data stand behind the JSON, all of them. Raises ProblemError."""
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if (0 if size is None else size) != len(binary):
        raise wrong(f"binary_data_size {size!r:.50} and {len(binary):,} bytes behind the JSON")
    return size is not None


def _files(tensor: dict[str, Any], binary: memoryview, count: int) -> list[bytes]:
    if _is_binary(tensor, binary):
        return list(_elements(binary, count))
    data = tensor.get("data")
    if not isinstance(data, list) or len(data) != count:
        raise wrong(f"'data' that is no list of {count} texts, as 'shape' says")
    return [from_base64(text, i) for i, text in enumerate(data)]


def _elements(binary: memoryview, count: int) -> Iterator[bytes]:
    """Each has its length before it."""
    end = 0
    for _ in range(count):
        start = end + LENGTH_BYTES
        end = start + int.from_bytes(binary[end:start], "little")
        if end > len(binary):
            raise wrong("binary data that end before the last element does")
        yield bytes(binary[start:end])
    if end != len(binary):
        raise wrong(f"{len(binary) - end:,} bytes behind the last element")


def _pixels(tensor: dict[str, Any], binary: memoryview, shape: list[int]) -> npt.NDArray[np.uint8]:
    """One after the other, without a copy where they are binary."""
    if not _is_binary(tensor, binary):
        binary = memoryview(_numbers(tensor.get("data"), shape))
    if len(binary) != math.prod(shape) or not binary:
        raise wrong(f"{len(binary):,} numbers in a tensor of shape {shape!r:.100}")
    return np.frombuffer(binary, np.uint8)


def _numbers(data: Any, shape: list[int]) -> bytes:
    """Of a flat list, or of one that is nested as `shape` says."""
    if not isinstance(data, list):
        raise wrong("a tensor without a list 'data' and without 'binary_data_size'")
    for size in shape[1:] if data and isinstance(data[0], list) else ():
        if any(not isinstance(part, list) or len(part) != size for part in data):
            raise wrong(f"'data' that is not nested as 'shape' {shape!r:.100} says")
        data = list(chain.from_iterable(data))
    try:
        return bytes(data)
    except (TypeError, ValueError) as error:
        raise wrong(f"'data' that is not all whole numbers from 0 to 255 ({error})") from error


def whole_number(value: Any) -> int | None:
    """A whole number of JSON that is not negative, 3.0 among them; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < math.inf and value == int(value) else None


def wrong(found: str) -> ProblemError:
    """For a request of another form."""
    message = (
        f"{found}; expected one tensor '{INPUT}': of datatype BYTES and shape [n], the n files, in "
        "JSON as base64; or of datatype UINT8 and shape [n, height, width, 3] or [height, width, "
        "3], RGB pixels. Send that."
    )
    return ProblemError(422, "tensor", message)
