"""From the body of a request to the images in it: several ways to send the same bytes.

A body is an image itself, a multipart form with files, or JSON with base64. Nothing in it is ever
taken for a path or an address: the service opens no file and no connection for a client.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.server.forms import files_of_form
from dinoprobe.server.problems import ProblemError

if TYPE_CHECKING:
    from starlette.requests import Request

    from dinoprobe.server.predictor import Sent

_RAW = ("image/", "application/octet-stream", "binary/octet-stream")
_MAX_ITEMS = 10_000  # of JSON; base64 has neither commas nor brackets
_KEY_CHARACTERS = 200
_QUICK_BYTES = 1 << 20


class Upload(NamedTuple):
    """One image as it was sent. `key` is the file's name, or its place in the request."""

    key: str
    data: Sent


async def read_uploads(request: Request, max_images: int) -> list[Upload]:
    """The images of a request, 1 to `max_images`. Raises ProblemError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files = await _files(await request.body(), request.headers["content-type"])
        found = [Upload(_key(name, i), data) for i, (name, data) in enumerate(files)]
    elif kind == "application/json":
        found = _of_json(parse_json(await request.body(), _MAX_ITEMS))
    elif kind.startswith(_RAW):
        found = [Upload("0", await request.body())]
    else:
        expected = "image/*, application/octet-stream, multipart/form-data or application/json"
        message = f"a body of type {kind[:100]!r}; expected {expected}. Name its type."
        raise ProblemError(415, "content-type", message)
    check_count(len(found), max_images)
    return found


def check_count(count: int, max_images: int) -> None:
    """Raise ProblemError where there are not 1 to `max_images`."""
    if count < 1:
        message = "no image in the request; expected one or more. Send a file, or its base64."
        raise ProblemError(422, "no-image", message)
    if count > max_images:
        message = f"{count} images; expected at most {max_images}. Send fewer at a time."
        raise ProblemError(413, "too-many-images", message)


async def _files(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """As `files_of_form`, beside the event loop where it takes more than some milliseconds."""
    if len(body) <= _QUICK_BYTES:
        return files_of_form(body, content_type)
    return await asyncio.to_thread(files_of_form, body, content_type)


def _key(name: str, number: int) -> str:
    """A name to tell images apart by; it opens nothing."""
    shown = "".join(c for c in name if c.isprintable())[:_KEY_CHARACTERS]
    return shown or str(number)


def parse_json(body: bytes, max_items: int) -> Any:
    """The JSON value of a body. Raises ProblemError, also for one with very many items: each may
    take 60 bytes of memory.
    """
    items = body.count(b",") + body.count(b"[") + body.count(b"{")
    if items > max_items:
        message = f"JSON with {items:,} items; expected at most {max_items:,}. Send bytes instead."
        raise ProblemError(413, "json-too-large", message)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        message = f"a body that is not JSON ({str(error)[:200]}); expected an object. Mend it."
        raise ProblemError(422, "json", message) from error


def _of_json(value: Any) -> list[Upload]:
    if isinstance(value, dict) and set(value) == {"image"}:
        value = {"images": [value["image"]]}
    if not isinstance(value, dict) or set(value) != {"images"}:
        message = 'JSON of another shape; expected {"image": BASE64} or {"images": [BASE64, ...]}.'
        raise ProblemError(422, "json", message)
    images = value["images"]
    if not isinstance(images, list):
        message = f"'images' is {type(images).__name__}; expected a list of base64. Send one."
        raise ProblemError(422, "json", message)
    return [Upload(str(i), from_base64(text, i)) for i, text in enumerate(images)]


def from_base64(text: Any, number: int) -> bytes:
    """The bytes of one image of a request. Raises ProblemError."""
    try:
        if not isinstance(text, str):
            raise TypeError(type(text).__name__)
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        message = f"image {number} is no base64 ({error}); expected a file's bytes in base64."
        raise ProblemError(422, "base64", message) from error
