"""A server as a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def png(seed: int = 0, size: tuple[int, int] = (40, 48)) -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


PNG = png()


class Process:
    """A server; its log is read meanwhile, so that it never waits for us."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        assert self.first, "".join(self.log)

    @property
    def port(self) -> int:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.first)
        assert found, (self.first, self.log)
        return int(found.group(1))

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def post(self, data: bytes = PNG, path: str = "/predict", **headers: str) -> Answer:
        return self.request("POST", path, data, {"content-type": "image/png", **headers})

    def request(
        self, method: str, path: str, data: bytes | None = None, headers: Any = None
    ) -> Answer:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        start = time.monotonic()
        try:
            client.request(method, path, data, headers or {})
            response = client.getresponse()
            content = response.read()
            seconds = time.monotonic() - start
            return Answer(response.status, dict(response.getheaders()), content, seconds)
        finally:
            client.close()

    def end(self, *, expect: int = 0) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == expect, "".join(self.log)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes
    seconds: float

    @property
    def reason(self) -> str:
        return str(json.loads(self.content)["reason"])


def save_builtin(folder: Path) -> None:
    """A head of noise on the built-in encoder."""
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.encoder import Encoder
    from dinoprobe.heads import LogisticProbe

    encoder = Encoder.from_pretrained("builtin", device="cpu")
    X = np.random.default_rng(0).normal(size=(40, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["cat", "dog"] * 20, dtype=object))
    ImageClassifier(encoder, head).save(folder)
