"""Predictors that need no encoder, and a process that serves one: `python -m tests.predictors`."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.prediction import Rules
from dinoprobe.preprocess import decode
from dinoprobe.server.predictor import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLASSES = ("red", "green", "blue")
HANGS = b"a decoder that does not end"


class MeanColour:
    """Says which of three colours an image has most of: its features are the mean colour.

    `seconds` is how long a batch takes; nothing is encoded while `go` is cleared. The decoder of
    `HANGS` does not end until `freed` is set.
    """

    def __init__(
        self, *, seconds: float = 0.0, lanes: int = 2, batch_size: int = 4, rules: Any = None
    ) -> None:
        self.rules = rules or Rules(CLASSES)
        self.seconds, self.lanes, self.batch_size = seconds, lanes, batch_size
        self.go = threading.Event()
        self.go.set()
        self.batches: list[tuple[int, bool]] = []
        self.fails: Exception | None = None
        self.freed = threading.Event()

    def preprocess(self, image: Any, *, max_pixels: int) -> Any:
        if isinstance(image, bytes) and image == HANGS:
            self.freed.wait()
        return decode(image, max_pixels=max_pixels).pixels.mean(axis=(0, 1))

    def predict(self, images: Sequence[Any], *, alone: bool) -> Outputs:
        self.go.wait()
        time.sleep(self.seconds)
        if self.fails is not None:
            raise self.fails
        self.batches.append((len(images), alone))
        X = np.stack(images).astype(np.float32)
        with np.errstate(invalid="ignore"):  # black is NaN
            shares = X / X.sum(axis=1, keepdims=True)
        return Outputs(shares.astype(np.float64), X, X[:, 0] / 255.0)

    def one_core(self) -> Callable[[], None]:
        return lambda: None

    def info(self) -> dict[str, Any]:
        return {"encoder": "mean colour", "fingerprint": "ab" * 16, "classes": list(CLASSES)}


def main() -> None:
    from dinoprobe.server.run import serve
    from dinoprobe.server.settings import ServerSettings

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--drain", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=1.0)
    parser.add_argument("--pending", type=int, default=0)
    parser.add_argument("--connections", type=int, default=1024)
    parser.add_argument("--decode-timeout", type=float, default=5.0)
    parser.add_argument("--max-stuck", type=int, default=4)
    parser.add_argument("--exit-when-stuck", action="store_true")
    given = parser.parse_args()
    settings = ServerSettings(
        port=0,
        drain_s=given.drain,
        body_timeout_s=given.timeout,
        head_timeout_s=given.timeout,
        max_pending=given.pending,
        max_connections=given.connections,
        decode_timeout_s=given.decode_timeout,
        max_stuck=given.max_stuck,
        exit_when_stuck=given.exit_when_stuck,
    )
    serve(
        MeanColour(seconds=given.seconds),
        settings,
        ready=lambda url: print(url, flush=True),
    )
    print("ended", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
