"""Images and jobs for runs of several processes: sources that kill the process that reads them.

As a script: embeds slow images with two processes, and says how many are done.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dinoprobe.cli.console import Console
from dinoprobe.encoder import EncoderSettings, locate
from dinoprobe.engine import Flush, Job, embed_on_devices
from dinoprobe.store import FeatureStore
from dinoprobe.types import Dataset, Sample, Source, Stamp

if TYPE_CHECKING:
    from pathlib import Path

TWO = ("cpu", "cpu")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Content(Source):
    """Bytes with a stamp, so that a second run need not read them; slow where asked for."""

    def __init__(self, content: bytes, pause_s: float = 0.0) -> None:
        self.content, self.pause_s = content, pause_s

    def read(self) -> bytes:
        time.sleep(self.pause_s)
        return self.content

    def stamp(self) -> Stamp:
        return Stamp(len(self.content), 1)


class Deadly(Content):
    """Kills the process that reads it, the first `times` times, and counts them in a file."""

    def __init__(self, number: int, counter: Path, times: int) -> None:
        super().__init__(picture(number))
        self.counter, self.times = counter, times

    def read(self) -> bytes:
        assert multiprocessing.parent_process() is not None, "read in the parent"
        with self.counter.open("a") as file:
            file.write("x")
        if self.counter.stat().st_size <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.content


class Gone(Content):
    def __init__(self) -> None:
        super().__init__(b"")

    def read(self) -> bytes:
        raise OSError("the disk is gone")


def job(encoder: str) -> Job:
    return Job(EncoderSettings(name=encoder, device="cpu"), locate(encoder))


def slow_images(count: int) -> Dataset:
    return Dataset("slow", [Sample(f"{i:03}", Content(picture(i), 0.15)) for i in range(count)])


class Spoken:
    def __init__(self) -> None:
        self.done = 0

    def start(self, total: int, already: int) -> None:
        pass

    def advance(self, images: int, failures: int) -> None:
        self.done += images
        print(f"done {self.done}", flush=True)

    def finish(self) -> None:
        pass


def main(encoder: str, store: str, count: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of the background
    with Console().guarded():
        embed_on_devices(
            slow_images(int(count)),
            job(encoder),
            TWO,
            store=FeatureStore(store),
            flush=Flush(rows=4),
            progress=Spoken(),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
