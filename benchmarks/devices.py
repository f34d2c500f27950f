"""Two processes on one CPU beside one process with two lanes, and what several processes cost.

    python benchmarks/devices.py --images 400 --rounds 3

Whole `dinoprobe embed` processes with an empty store, one after the other, interleaved: seconds,
and seconds of processor time with those of all children, which other programs on the machine
change little. `--devices N` is there for N GPUs; what it costs on a CPU is what each process costs.

`starts` is the time from nothing to open encoders: of the processes that `--devices` starts (the
second after the first one, whose caches it uses), and of `torchrun`, which starts both at once.
`gathering` is what the parent can take from processes that compute nothing: it bounds the images/s
of all GPUs together. One JSON document on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import dinoprobe, machine, random_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

DEVICES = ("cpu", "cpu")
DIMENSION = 768


def main() -> None:
    """Measure everything, or open an encoder and end: what torchrun starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="vits16", help="a published shape; random weights")
    parser.add_argument("--gathered", type=int, default=100_000)
    parser.add_argument("--open", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        opened(options.open)
    else:
        print(json.dumps(measure(options), indent=2))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole result."""
    from dinoprobe.bench.synthetic import write_photos
    from dinoprobe.versions import versions

    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as name:
        place = Path(name)
        os.environ["DINOPROBE_CACHE"] = str(place / "cache")
        weights = str(random_checkpoint(place / "weights", options.encoder))
        (place / "photos").mkdir()
        write_photos(place / "photos", options.images, seed=0)
        embed_with("1", place, weights)  # makes the caches
        gathering = gathered(options.gathered, place)
        found: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
        starts: dict[str, list[dict[str, float]]] = {"devices": [], "torchrun": []}
        for _ in range(options.rounds):
            found["one"].append(embed_with("1", place, weights))
            found["two"].append(embed_with("2", place, weights))
            starts["devices"].append(timed(lambda: start_devices(weights)))
            starts["torchrun"].append(timed(lambda: start_torchrun(weights)))
    return {
        "command": "python benchmarks/devices.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "encoder": options.encoder,
        "images": options.images,
        "embed": {kind: medians(rounds) for kind, rounds in found.items()},
        "two_over_one": ratios(found["two"], found["one"]),
        "starts": {kind: medians(rounds) for kind, rounds in starts.items()},
        "gathering": gathering,
    }


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of it, and of processor time of the processes that it started and waited for."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}


def embed_with(devices: str, place: Path, weights: str) -> dict[str, float]:
    """One whole `dinoprobe embed`, into a store of its own."""
    documents = []

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=place) as store:
            documents.append(dinoprobe(
                "embed", str(place / "photos"), "--encoder", weights, "--device", "cpu",
                "--devices", devices, "--store", store,
            )[0])  # fmt: skip

    found = timed(run)
    return {**found, "embedding_seconds": documents[0]["seconds"]}


def opened(folder: str) -> None:
    """Open the encoder in this process, on its share of the cores."""
    import torch

    from dinoprobe.encoder import EncoderSettings, open_encoder

    torch.set_num_threads(1)
    open_encoder(EncoderSettings(name=folder, device="cpu"))


def start_devices(weights: str) -> None:
    """As `--devices 2` starts: the second process when the encoder of the first one is open."""
    script = (
        "import sys\n"
        "from multiprocessing.connection import wait\n"
        "from dinoprobe.encoder import EncoderSettings, locate\n"
        "from dinoprobe.engine import Job\n"
        "from dinoprobe.engine.crew import Crew\n"
        "settings = EncoderSettings(name=sys.argv[1], device='cpu')\n"
        "with Crew(Job(settings, locate(sys.argv[1])), ('cpu', 'cpu')) as crew:\n"
        "    crew.open()\n"
        "    crew._hire(1)\n"
        "    wait([crew._members[1].pipe])\n"
    )
    subprocess.run([sys.executable, "-c", script, weights], check=True)


def start_torchrun(weights: str) -> None:
    """torchrun with two processes on this machine."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).resolve()), "--open", weights]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command, *script], check=True, env=environment)


def no_work(job: object, device: str, cores: int, pipe: Connection) -> None:
    """In place of `engine.worker.work`: the same messages, and rows that nobody computed."""
    import hashlib

    import numpy as np

    from dinoprobe.engine import Facts
    from dinoprobe.engine.ledger import RowKind
    from dinoprobe.engine.worker import Begin, Done, Idle, Opened, Report, Taken
    from dinoprobe.types import Stamp

    del job, device, cores
    facts = Facts(
        kind=RowKind("cd" * 16, ("cls",), {}),
        dimension=DIMENSION,
        fingerprint="ab" * 16,
        description={},
        base_fingerprint="cd" * 16,
        pooling="cls",
        name="none",
        backend="none",
        precision="none",
        notes=(),
    )
    pipe.send(Opened(facts))
    generator = np.random.default_rng()
    while True:
        try:
            share = pipe.recv()
        except EOFError:
            return
        if isinstance(share, Begin):
            continue
        if share is None:
            pipe.send(Idle())
            continue
        pipe.send(Taken())
        X = generator.standard_normal((len(share.samples), DIMENSION), np.float32)
        names = [hashlib.sha256(sample.key.encode()).hexdigest() for sample in share.samples]
        pairs = zip(share.samples, names, strict=True)
        about_all = {"failure": None, "more_frames": False, "is_encoded": True}
        done = [Done(s.key, Stamp(1, 1), name, **about_all) for s, name in pairs]
        pipe.send(Report(done, X))


def gathered(count: int, place: Path) -> dict[str, float]:
    """Results a second that the parent hands out, takes, records and stores."""
    from dinoprobe.datasets.location import FileSource
    from dinoprobe.engine import crew, embed_on_devices
    from dinoprobe.store import FeatureStore
    from dinoprobe.types import Dataset, Sample

    crew.work = no_work
    names = [f"photos/of/some/length/{number:08}.jpg" for number in range(count)]
    dataset = Dataset("none", [Sample(name, FileSource(f"/data/{name}")) for name in names])
    start = time.process_time()
    done, _ = embed_on_devices(dataset, None, DEVICES, store=FeatureStore(place / "gathered"))
    cpu = time.process_time() - start
    if done.encoded != count:
        raise SystemExit(
            f"{done.encoded} of {count} rows were stored: {done.features.failures[:3]}"
        )
    return {
        "images": count,
        "dimension": DIMENSION,
        "seconds": done.seconds,
        "parent_cpu_seconds": cpu,
        "images_per_second": count / done.seconds,
        "images_per_cpu_second": count / cpu,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The median of each figure, and all of them."""
    found = {name: statistics.median(entry[name] for entry in rounds) for name in rounds[0]}
    return {**found, "rounds": rounds}


def ratios(two: list[dict[str, float]], one: list[dict[str, float]]) -> dict[str, float]:
    """The median over the rounds of each figure of the one over that of the other."""
    pairs = list(zip(two, one, strict=True))
    return {name: statistics.median(a[name] / b[name] for a, b in pairs) for name in two[0]}


if __name__ == "__main__":
    main()
