"""Real images for schemathesis, which knows nothing of them: loaded by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st
from tests.in_process import image

from dinoprobe.server.settings import ServerSettings

MAX_IMAGES = ServerSettings().max_images

FILES = [
    image(colour, size, kind)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    for colour, size in (((200, 30, 20), (8, 6)), ((20, 210, 20), (40, 30)))
]
files = st.sampled_from(FILES)
schemathesis.openapi.media_type("application/octet-stream", files)
schemathesis.openapi.media_type("image/*", files)
schemathesis.openapi.format("binary", files)
schemathesis.openapi.format("byte", files.map(lambda data: base64.b64encode(data).decode()))


# --- tensors, whose shape must fit their data: no JSON schema says that --------------------------


@schemathesis.hook
def before_call(context: Any, case: Any, **options: Any) -> None:
    """Make what the document allows, which is all a case knows of, fit together."""
    if not case.path.endswith("/infer") or not case.meta.generation.mode.is_positive:
        return
    if case.media_type == "application/octet-stream":
        case.body = _behind_json(case.body)
        case.headers["Inference-Header-Content-Length"] = str(len(HEAD % len(case.body)))
        case.body = HEAD % len(case.body) + case.body
    else:
        for tensor in case.body["inputs"]:
            _fit(tensor)


HEAD = (
    b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
    b'"parameters": {"binary_data_size": %d}}]}'
)


def _behind_json(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _fit(tensor: dict[str, Any]) -> None:
    tensor.pop("parameters", None)
    if tensor["datatype"] == "BYTES":
        del tensor["data"][MAX_IMAGES:]
        tensor["shape"] = [len(tensor["data"]), 1][: len(tensor["shape"])]
    else:
        tensor["shape"] = [1, 4, 5, 3][-len(tensor["shape"]) :]
        tensor["data"] = list(range(60))
