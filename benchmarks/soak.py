"""`dinoprobe serve` under ten times its load, and under hostile uploads: `make soak`.

A process serves an encoder of ViT-S/16's shape with random weights; this one sends. Bounds are
those that the service promises, and exit code 1 says that one was missed:

- at full load: nothing is refused;
- at ten times the load, paced and not waiting for answers to slow down: answers are 200 or 503,
  the 99th percentile of what is admitted is under 3 times that at full load, refusals take under
  100 ms (99th percentile), and within 2 s after it the service answers as before;
- hostile uploads: every answer is 200 or a 4xx, and memory grows by at most 10 %.

    python benchmarks/soak.py [--seconds 60] [--uploads 10000] [--classifier DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.bench.neighbours import Neighbours
from dinoprobe.bench.serve import ServeBench, saved_classifier, service
from dinoprobe.bench.synthetic import write_photos
from dinoprobe.encoder import EncoderSettings

if TYPE_CHECKING:
    import subprocess

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"
CLIENTS = 64
REST_S = 4.0  # the service gives freed memory back after 2 s without an image
FULL_BATCH = 8  # two lanes with four images each


class Sender(threading.local):
    """A connection for each thread, opened anew where the server closed it."""

    client: http.client.HTTPConnection | None = None

    def __init__(self, port: int) -> None:
        self.port = port

    def post(self, body: bytes, kind: str = "image/jpeg") -> tuple[int, float]:
        """Status and seconds; 0 for a connection that broke."""
        start = time.perf_counter()
        try:
            if self.client is None:
                self.client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self.client.request("POST", "/predict", body, {"content-type": kind})
            response = self.client.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            if self.client is not None:
                self.client.close()
            self.client = None
            return 0, time.perf_counter() - start
        return response.status, time.perf_counter() - start


def percentile(seconds: list[float], share: float) -> float | None:
    """The smallest that `share` of them do not exceed."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def memory_bytes(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Resident now, and at most so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    now, most = (1024 * int(values[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most


def full_load(sender: Sender, images: list[bytes], seconds: float) -> list[tuple[int, float]]:
    """Answers to as many clients as a full batch of each lane takes, one request at a time."""
    end = time.monotonic() + seconds
    found: list[tuple[int, float]] = []

    def client(number: int) -> None:
        while time.monotonic() < end:
            found.append(sender.post(images[number % len(images)]))
            number += 1

    with ThreadPoolExecutor(FULL_BATCH) as pool:
        list(pool.map(client, range(FULL_BATCH)))
    return found


def paced(
    sender: Sender, images: list[bytes], rate: float, seconds: float
) -> list[tuple[int, float]]:
    """Answers to `rate` requests a second, as far as the clients can send them."""
    begin = time.monotonic()
    found: list[tuple[int, float]] = []

    def client(number: int) -> None:
        turn = 0
        while True:
            at = begin + (number + turn * CLIENTS) / rate
            if at > begin + seconds:
                return
            time.sleep(max(0.0, at - time.monotonic()))
            found.append(sender.post(images[turn % len(images)]))
            turn += 1
            if time.monotonic() > begin + seconds:
                return

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return found


def overload(
    process: subprocess.Popen[str], port: int, images: list[bytes], seconds: float
) -> dict[str, Any]:
    """What full load, ten times of it, and the time after it gave."""
    sender = Sender(port)
    full_load(sender, images, 3)
    before = full_load(sender, images, min(20, seconds))
    calm = [taken for status, taken in before if status == 200]
    capacity = len(calm) / min(20, seconds)
    memory_before, _ = memory_bytes(process)
    under = paced(sender, images, 10 * capacity, seconds)
    ended = time.monotonic()
    recovery = None
    while recovery is None and time.monotonic() < ended + 30:
        status, taken = sender.post(images[0])
        if status == 200 and taken < (percentile(calm, 0.99) or 0):
            recovery = time.monotonic() - ended
    admitted = [taken for status, taken in under if status == 200]
    refused = [taken for status, taken in under if status == 503]
    now, most = memory_bytes(process)
    return {
        "seconds": seconds,
        "capacity_images_per_second": capacity,
        "full_load_p99_s": percentile(calm, 0.99),
        "full_load_statuses": dict(Counter(status for status, _ in before)),
        "sent_per_second": len(under) / seconds,
        "statuses": dict(Counter(status for status, _ in under)),
        "admitted_per_second": len(admitted) / seconds,
        "admitted_p99_s": percentile(admitted, 0.99),
        "refused_p50_s": percentile(refused, 0.5),
        "refused_p99_s": percentile(refused, 0.99),
        "recovery_s": recovery,
        "memory_before_bytes": memory_before,
        "memory_after_bytes": now,
        "memory_peak_bytes": most,
    }


def damaged(rng: random.Random, seeds: list[bytes]) -> tuple[bytes, str]:
    """A file that was cut, had bits flipped, or neither, under a type that may not be its own."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.4:
        del data[rng.randrange(len(data) + 1) :]
    for _ in range(rng.choice((0, 0, 1, 4, 16))):
        if data:
            last = len(data) if rng.random() < 0.5 else min(len(data), 200)
            data[rng.randrange(last)] ^= 1 << rng.randrange(8)
    kinds = ("image/png",) * 6 + ("application/json", "multipart/form-data; boundary=b", "text/x")
    return bytes(data), rng.choice(kinds)


def hostile(
    process: subprocess.Popen[str], port: int, photos: list[bytes], count: int
) -> dict[str, Any]:
    """What `count` damaged files gave, after a fifth of them that fills caches."""
    sender = Sender(port)
    files = [path for path in sorted(CORPUS.rglob("*")) if path.is_file()]
    seeds = [path.read_bytes() for path in files] or photos
    bodies = random.Random(0)
    todo = [damaged(bodies, seeds) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda body: sender.post(*body), todo[: count // 5]))  # caches fill
        time.sleep(REST_S)
        before, _ = memory_bytes(process)
        found = list(pool.map(lambda body: sender.post(*body), todo))
    time.sleep(REST_S)
    after, most = memory_bytes(process)
    return {
        "uploads": len(found),
        "seeds": len(seeds),
        "statuses": dict(Counter(status for status, _ in found)),
        "slowest_s": max(taken for _, taken in found),
        "memory_before_bytes": before,
        "memory_after_bytes": after,
        "memory_peak_bytes": most,
        "alive": process.poll() is None and sender.post(photos[0])[0] == 200,
    }


def missed(loaded: dict[str, Any], sent: dict[str, Any]) -> list[str]:
    """The promises that were not kept."""
    ratio = loaded["admitted_p99_s"] / loaded["full_load_p99_s"]
    growth = sent["memory_after_bytes"] / sent["memory_before_bytes"]
    kept = {
        "full load: 200 alone": set(loaded["full_load_statuses"]) == {200},
        "ten times the load: 200 and 503 alone": set(loaded["statuses"]) <= {200, 503},
        f"p99 of the admitted is {ratio:.2f} times that at full load, under 3": ratio < 3,
        "refusals within 100 ms": (loaded["refused_p99_s"] or 0) < 0.1,
        "back within 2 s": (loaded["recovery_s"] or 99) < 2,
        "hostile: 200 and 4xx alone": all(s == 200 or 400 <= s < 500 for s in sent["statuses"]),
        f"hostile: memory at {growth:.3f} of before, at most 1.1": growth <= 1.1,
        "hostile: alive": sent["alive"],
    }
    for text, is_kept in kept.items():
        print("kept  " if is_kept else "MISSED", text)
    return [text for text, is_kept in kept.items() if not is_kept]


def main() -> None:
    """Run both, print what was found, and exit with 1 where a promise was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--classifier")
    parser.add_argument("--out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dinoprobe-soak-") as place:
        bench = ServeBench(encoder=EncoderSettings(name="vits16"), random_weights=True)
        folder = given.classifier or saved_classifier(bench, Path(place), print)
        (Path(place) / "photos").mkdir()
        photos = [Path(path).read_bytes() for path in write_photos(Path(place) / "photos", 32)]
        with Neighbours() as neighbours, service(folder) as (process, port):
            loaded = overload(process, port, photos, given.seconds)
            print(json.dumps(loaded, indent=1))
            sent = hostile(process, port, photos, given.uploads)
            print(json.dumps(sent, indent=1))
    print(f"other processes used {neighbours.cores} cores")
    document = {"overload": loaded, "hostile": sent, "cores_of_others": neighbours.cores}
    if given.out:
        Path(given.out).write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if missed(loaded, sent) else 0)


if __name__ == "__main__":
    main()
