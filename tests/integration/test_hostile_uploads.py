"""Whatever is uploaded is answered: with a class, or with a 4xx and a reason. Never with 500.

The files of the corpus where it is beside the checkout, rendered ones elsewhere; cut, flipped, and
wrapped in each kind of body. `DINOPROBE_HOSTILE` is how many examples hypothesis makes.
"""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient
from tests.conftest import SHARED
from tests.predictors import MeanColour

from dinoprobe.preprocess import Preprocessing, prepare
from dinoprobe.server.app import create_app
from dinoprobe.server.service import Service
from dinoprobe.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = int(os.environ.get("DINOPROBE_HOSTILE", "300"))
MAX_BODY = 4 << 20


class Prepared(MeanColour):
    """With the preprocessing of a real encoder."""

    def preprocess(self, image: bytes, *, max_pixels: int) -> Any:
        pixels = prepare(image, Preprocessing(size=(32, 32), resize="crop"), max_pixels=max_pixels)
        return pixels.double().mean(dim=(1, 2)).numpy() + 1


def rendered() -> list[bytes]:
    """One of each format that Pillow writes, in colour, grey, with a palette, with transparency."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        for mode in ("RGB", "L", "P", "RGBA"):
            file = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(file, kind)
            except OSError:
                continue  # not every format has every mode
            found.append(file.getvalue())
    return found


def seeds() -> list[bytes]:
    corpus = SHARED / "corpus"
    files = sorted(path for path in corpus.rglob("*") if path.is_file()) if corpus.is_dir() else []
    return rendered() + [path.read_bytes() for path in files if path.stat().st_size < MAX_BODY]


SEEDS = seeds()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    limits = ServerSettings(max_body_bytes=MAX_BODY, max_pixels=4_000_000, max_images=4)
    service = Service(Prepared(), limits)
    with TestClient(create_app(service), raise_server_exceptions=False) as found:
        yield found
        assert service.batcher.pending == 0
    service.batcher.close()


def check(answer: Any) -> None:
    value = answer.json()
    if answer.status_code == 200:
        assert value.get("predictions") or value.get("embeddings") or value.get("outputs")
    else:
        assert answer.status_code in {408, 413, 415, 422}, answer.text
        assert value["reason"]
        assert value["error"].rstrip().endswith((".", ")")), value["error"]


def test_every_file_of_the_corpus_is_answered(client: TestClient) -> None:
    for data in SEEDS:
        check(client.post("/predict", content=data, headers={"content-type": "image/png"}))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file that was cut, or had bits flipped, or bytes put into it."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    head = max(0, min(len(data) - 1, 200))  # the head decides most
    for _ in range(draw(st.integers(0, 6))):
        if data:
            last = draw(st.sampled_from([head, len(data) - 1]))
            data[draw(st.integers(0, last))] ^= 1 << draw(st.integers(0, 7))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(data)))
        data[place:place] = draw(st.binary(max_size=40))
    return bytes(data)


KINDS = st.one_of(
    st.sampled_from(["image/png", "application/json", "multipart/form-data; boundary=b", ""]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
)
PATHS = ["/predict", "/embed", "/v2/models/classifier/infer", "/predict?top_k=3"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "image",
                    "images",
                    "inputs",
                    "name",
                    "data",
                    "shape",
                    "datatype",
                    "id",
                    "outputs",
                    "parameters",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@many
@given(data=damaged())
def test_damaged_images_are_answered(client: TestClient, data: bytes) -> None:
    check(client.post("/predict", content=data, headers={"content-type": "image/jpeg"}))


@many
@given(data=damaged() | st.binary(max_size=400), kind=KINDS, path=st.sampled_from(PATHS))
def test_bodies_of_any_type_are_answered(
    client: TestClient, data: bytes, kind: str, path: str
) -> None:
    check(client.post(path, content=data, headers={"content-type": kind}))


@many
@given(
    parts=st.lists(
        st.tuples(
            st.binary(max_size=60),
            st.one_of(damaged(), st.binary(max_size=50)),
        ),
        max_size=3,
    ),
    end=st.sampled_from([b"--b--\r\n", b"--b", b""]),
)
def test_forms_are_answered(
    client: TestClient, parts: list[tuple[bytes, bytes]], end: bytes
) -> None:
    name = b'Content-Disposition: form-data; name="file"; filename="a'
    body = b"".join(
        b"--b\r\n" + name + extra + b'"\r\n\r\n' + data + b"\r\n" for extra, data in parts
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    check(client.post("/predict", content=body + end, headers=headers))


@many
@given(value=JSON, path=st.sampled_from(PATHS))
def test_json_of_any_shape_is_answered(client: TestClient, value: object, path: str) -> None:
    headers = {"content-type": "application/json"}
    check(client.post(path, content=json.dumps(value).encode(), headers=headers))


@many
@given(data=damaged())
def test_damaged_images_in_json_are_answered(client: TestClient, data: bytes) -> None:
    text = base64.b64encode(data).decode()
    check(client.post("/predict", json={"images": [text]}))


@many
@given(
    data=damaged() | st.binary(max_size=400),
    kind=st.sampled_from(["BYTES", "UINT8"]),
    shape=st.sampled_from([[1], [1, 1], [2]])
    | st.lists(st.integers(-1, 20) | st.just(10**20) | st.just(3), max_size=5),
    size=st.none() | st.integers(-1, 500),
    shift=st.integers(-3, 3),
    framed=st.booleans(),
)
def test_binary_tensors_are_answered(
    client: TestClient,
    data: bytes,
    kind: str,
    shape: list[int],
    size: int | None,
    shift: int,
    framed: bool,
) -> None:
    blob = len(data).to_bytes(4, "little") + data if framed else data
    parameters = {"binary_data_size": len(blob) if size is None else size}
    tensor = {"name": "image", "datatype": kind, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) + shift)}
    check(client.post(PATHS[2], content=head + blob, headers=headers))


@many
@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 9))
def test_pixels_of_any_shape_are_answered(
    client: TestClient, width: int, height: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape}
    flat = {**tensor, "data": pixels.ravel().tolist()}
    first = client.post(PATHS[2], json={"inputs": [flat]})
    check(first)
    second = client.post(PATHS[2], json={"inputs": [{**tensor, "data": pixels.tolist()}]})
    assert first.status_code == second.status_code
    if first.status_code == 200:
        assert first.json() == second.json()


def test_there_are_files_to_send() -> None:
    assert len(SEEDS) >= 12
    assert Path(__file__).is_file()
