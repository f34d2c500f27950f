"""The service beside the direct loop: throughput and waiting times, in one run on one machine.

The service is a process of its own on the loopback address, and the clients are threads here; both
sides work on the same images, in turns, so a machine that slows down slows both. The clients take
time of the same cores: the share of the direct loop is a lower bound of what other machines see.
"""

from __future__ import annotations

import http.client
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from dinoprobe.bench.embed import random_weights
from dinoprobe.bench.neighbours import Neighbours
from dinoprobe.bench.synthetic import write_photos
from dinoprobe.classifier import ImageClassifier
from dinoprobe.encoder import EncoderPlace, EncoderSettings, open_encoder
from dinoprobe.errors import EncoderError
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCHEMA = "dinoprobe.bench-serve/1"
_CLASSES, _ROWS_A_CLASS = 10, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBench:
    """What to measure: a saved classifier at `run`, or an encoder with a head of ten classes that
    was fitted on noise, for its time is that of any other.
    """

    run: str | None = None
    encoder: EncoderSettings | None = None
    random_weights: bool = False
    concurrency: tuple[int, ...] = (1, 2, 8, 16)
    requests: int = 64
    rounds: int = 3


class _Load(NamedTuple):
    """What one load of requests gave: seconds of each that was answered, and of all together."""

    seconds: list[float]
    refused: int
    wall_s: float


def run_serve_bench(
    bench: ServeBench, *, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The document of `dinoprobe bench serve --json`.

    Raises what `ImageClassifier.load_at` and `open_encoder` raise, and EncoderError where the
    service does not start.
    """
    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as place:
        folder = bench.run or saved_classifier(bench, Path(place), say)
        (Path(place) / "photos").mkdir()
        paths = write_photos(Path(place) / "photos", min(bench.requests, 64))
        images = [Path(path).read_bytes() for path in paths]
        classifier = ImageClassifier.load_at(folder, EncoderPlace(), say=say)
        say("starting the service")
        # in this order: the service counts as ours once it has ended
        with Neighbours() as neighbours, service(folder) as (_, port):
            found = _rounds(bench, classifier, port, images, say)
        return {**_document(bench, classifier, found), "cores_of_others": neighbours.cores}


def saved_classifier(bench: ServeBench, place: Path, say: Callable[[str], None]) -> str:
    """A classifier with a head of noise, saved in `place`."""
    import numpy as np

    from dinoprobe.heads import LogisticProbe

    settings = bench.encoder or EncoderSettings(name="builtin")
    if bench.random_weights:
        settings = random_weights(settings, place / "weights")
    encoder = open_encoder(settings, say=say)
    count = _CLASSES * _ROWS_A_CLASS
    X = np.random.default_rng(0).normal(size=(count, encoder.dimension)).astype(np.float32)
    y = np.array([f"class {i % _CLASSES}" for i in range(count)], dtype=object)
    folder = place / "classifier"
    ImageClassifier(encoder, LogisticProbe(C=1.0).fit(X, y)).save(folder)
    return str(folder)


@contextmanager
def service(folder: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`dinoprobe serve` on this machine: the process, and its port."""
    command = [sys.executable, "-m", "dinoprobe", "serve", folder, "--port", "0", "--json", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            line = process.stdout.readline() if process.stdout else ""
            address = json.loads(line).get("url") if line else None
            if not address:
                raise EncoderError(f"{folder}: the service did not start. Try dinoprobe serve.")
            yield process, urlsplit(address).port or 0
        finally:
            process.terminate()


def _rounds(
    bench: ServeBench,
    classifier: ImageClassifier,
    port: int,
    images: Sequence[bytes],
    say: Callable[[str], None],
) -> dict[str, list[Any]]:
    """Every side once in each round, after one that is not counted."""
    found: dict[str, list[Any]] = {"direct": [], "single": []}
    found |= {str(count): [] for count in bench.concurrency}
    for number in range(-1, bench.rounds):
        say(f"round {number + 1} of {bench.rounds}" if number >= 0 else "warming up")
        taken: dict[str, Any] = {
            "direct": _direct(classifier, list(islice(cycle(images), bench.requests))),
            "single": _single(classifier, images[:16]),
        }
        for count in bench.concurrency:
            taken[str(count)] = _load(port, images, count, bench.requests)
        if number >= 0:
            for name, value in taken.items():
                found[name].append(value)
    return found


def _direct(classifier: ImageClassifier, images: list[bytes]) -> float:
    """Images per second of the loop in batches, in this process."""
    start = time.perf_counter()
    classifier.predict(images)
    return len(images) / (time.perf_counter() - start)


def _single(classifier: ImageClassifier, images: Sequence[bytes]) -> float:
    """Median seconds of a call with one image."""
    taken = []
    for image in images:
        start = time.perf_counter()
        classifier.predict([image])
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _load(port: int, images: Sequence[bytes], concurrency: int, requests: int) -> _Load:
    """`requests` images by as many clients, each with a connection of its own and one at a time."""
    todo = iter(list(islice(cycle(images), requests)))
    seconds: list[float] = []
    refused: list[int] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for image in todo:
            start = time.perf_counter()
            headers = {"content-type": "image/jpeg"}
            connection.request("POST", "/predict", image, headers)
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                seconds.append(time.perf_counter() - start)
            else:
                refused.append(response.status)
        connection.close()

    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        for task in [pool.submit(client) for _ in range(concurrency)]:
            task.result()
    return _Load(seconds, len(refused), time.perf_counter() - start)


def _document(
    bench: ServeBench, classifier: ImageClassifier, found: dict[str, list[Any]]
) -> dict[str, Any]:
    encoder = classifier.encoder
    direct, single = statistics.median(found["direct"]), statistics.median(found["single"])
    loads = [_told(count, found[str(count)]) for count in bench.concurrency]
    best = max(load["images_per_second"] for load in loads)
    alone = next((load["p50_s"] for load in loads if load["concurrency"] == 1), None)
    return {
        "schema": SCHEMA,
        "encoder": bench.run or (bench.encoder.name if bench.encoder else "builtin"),
        "random_weights": bench.random_weights,
        "device": str(encoder.device),
        "backend": encoder.backend,
        "precision": encoder.precision,
        "requests": bench.requests,
        "rounds": bench.rounds,
        "direct_images_per_second": direct,
        "direct_single_s": single,
        "loads": loads,
        "share_of_direct": best / direct,
        "ratio_to_single": alone / single if alone else None,
        "versions": versions(),
    }


def _told(concurrency: int, loads: Sequence[_Load]) -> dict[str, Any]:
    """Of one concurrency: the median rate of the rounds, and percentiles over all requests."""
    seconds = sorted(second for load in loads for second in load.seconds)
    rates = [len(load.seconds) / load.wall_s for load in loads]
    return {
        "concurrency": concurrency,
        "images_per_second": statistics.median(rates),
        "p50_s": _percentile(seconds, 0.5),
        "p95_s": _percentile(seconds, 0.95),
        "p99_s": _percentile(seconds, 0.99),
        "refused": sum(load.refused for load in loads),
    }


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest that `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


__all__ = ["SCHEMA", "ServeBench", "run_serve_bench"]
