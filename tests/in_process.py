"""The service in this process, over a predictor without an encoder."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from typing import Any

from PIL import Image
from starlette.testclient import TestClient
from tests.predictors import MeanColour

from dinoprobe.server.app import create_app
from dinoprobe.server.service import Service
from dinoprobe.server.settings import ServerSettings


def image(colour: tuple[int, int, int], size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


RED, GREEN = image((200, 30, 20)), image((20, 210, 20))


class Served:
    """A client, and what is behind it."""

    def __init__(self, predictor: MeanColour | None = None, **settings: Any) -> None:
        self.predictor = predictor or MeanColour()
        self.service = Service(self.predictor, ServerSettings(**settings))
        self.client = TestClient(create_app(self.service), raise_server_exceptions=False)

    def post(self, data: bytes, path: str = "/predict", kind: str = "image/png") -> Any:
        return self.client.post(path, content=data, headers={"content-type": kind})

    def json(self, value: object, path: str = "/predict") -> Any:
        return self.post(json.dumps(value).encode(), path, "application/json")

    def metric(self, line: str) -> float:
        text = self.client.get("/metrics").text
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def close(self) -> None:
        self.predictor.go.set()
        self.predictor.freed.set()
        self.client.close()
        self.service.batcher.close()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def wait_for(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)
