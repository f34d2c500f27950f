"""Real runs at a small scale, for `benchmarks/scaling.py` to be held against; Linux only.

Each run is a process of its own: `local` and `ray` embed small distinct JPEGs by an encoder that
takes next to nothing, into a store on disk; `driver` hands made reports of workers to the ledger of
a cluster's driver. Two smaller runs of each give the coefficients, the largest one is predicted.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

DIMENSION = 768
ROWS_PER_COMMIT = 500  # of the local engine here; 4,096 by default
CHECKPOINT_S = 2.0  # of the cluster here; 60 by default
POOL = 32
PRINT = "ab" * 16
STATUS = Path("/proc/self/status")


class Corner:
    """An encoder of no weights: 12 pixels, so often that a row has `DIMENSION` values."""

    dimension, fingerprint, description = DIMENSION, PRINT, {"kind": "corner"}

    def __init__(self) -> None:
        from dinoprobe.preprocess import Preprocessing

        self.preprocessing = Preprocessing(size=(32, 32))

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """`(n, DIMENSION)`."""
        corner = images[:, :, :2, :2].reshape(len(images), -1).numpy().astype(np.float32)
        return np.tile(corner, (1, DIMENSION // corner.shape[1]))


@dataclass
class Clock:
    """Progress that notes when the first images were through, and the last."""

    first: float = 0.0
    last: float = 0.0

    def start(self, total: int, already: int) -> None:
        """Nothing to note."""

    def advance(self, images: int, failures: int) -> None:
        """So many more."""
        if images + failures:
            self.last = time.perf_counter()
            self.first = self.first or self.last

    def finish(self) -> None:
        """Nothing to note."""


def write_images(folder: Path, count: int) -> None:
    """Distinct files of a few pictures: each has a comment segment of its own, behind its start."""
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(POOL):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file, "jpeg")
        pool.append(file.getvalue())
    for number in range(count):
        place = folder / f"class_{number % 100:03d}"
        place.mkdir(exist_ok=True, parents=True)
        text = f"{number:08d}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        jpeg = pool[number % POOL]
        (place / f"{number:08d}.jpg").write_bytes(jpeg[:2] + comment + jpeg[2:])


def run(kind: str, images: int, folder: Path) -> dict[str, Any]:
    """What one run left behind and took, from a process of its own."""
    command = [sys.executable, __file__, kind, str(images), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = {"images": images} | json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}: {json.dumps(found)}", file=sys.stderr)
    return found


def local(images: int, folder: Path) -> dict[str, Any]:
    """The engine of one machine, with its features read back at the end."""
    from dinoprobe.datasets import open_dataset
    from dinoprobe.engine import Flush, embed
    from dinoprobe.store import FeatureStore

    warm_up(folder)
    before, started = status_bytes("VmRSS"), time.perf_counter()
    dataset = open_dataset(str(folder / "images"))
    listed = time.perf_counter() - started
    store = FeatureStore(folder / "store")
    flush = Flush(rows=ROWS_PER_COMMIT, seconds=600)
    done = embed(dataset, Corner(), store=store, flush=flush)
    if done.encoded != images:
        raise SystemExit(f"{done.encoded} images were encoded, expected {images}")
    memory = status_bytes("VmHWM") - before
    return left_behind(folder / "store") | {
        "listing_s": listed, "seconds": done.seconds, "memory_bytes": memory,
    }  # fmt: skip


def ray(images: int, folder: Path) -> dict[str, Any]:
    """The same by one worker of a cluster on this machine."""
    from dinoprobe.datasets import open_dataset
    from dinoprobe.engine import Flush
    from dinoprobe.ray_engine import Job, RaySettings, connected, embed_on_ray
    from dinoprobe.store import FeatureStore
    from dinoprobe.versions import own_version

    clock = Clock()
    store, dataset = FeatureStore(folder / "store"), open_dataset(str(folder / "images"))
    with connected(RaySettings("local", 1, 0, 1), partial(print, file=sys.stderr)) as cluster:
        job = Job(Corner, 1, own_version(), store.uri, report_every_s=CHECKPOINT_S / 2)
        facts = cluster.facts(job, partial(print, file=sys.stderr))
        done = embed_on_ray(
            dataset,
            replace(job, fingerprint=facts.fingerprint),
            facts,
            cluster=cluster,
            store=store,
            flush=Flush(seconds=CHECKPOINT_S),
            progress=clock,
        )
    if done.summary.encoded != images:
        raise SystemExit(f"{done.summary.encoded} images were encoded, expected {images}")
    return left_behind(folder / "store") | {"work_s": clock.last - clock.first}


def driver(images: int, folder: Path) -> dict[str, Any]:
    """A driver's ledger: reports of 4,096 images as text, s3:// URIs of 66 characters, commits."""
    from dinoprobe.datasets.location import RemoteSource
    from dinoprobe.engine.ledger import Flush, Ledger, RowKind
    from dinoprobe.ray_engine.report import Done, Report
    from dinoprobe.store import WHOLE, FeatureStore
    from dinoprobe.types import Dataset, Sample, Stamp

    warm_up(folder)
    before = status_bytes("VmRSS")
    keys = [
        f"s3://bucket/a-folder-of-images/part-000/{number:022d}.jpg" for number in range(images)
    ]
    samples = [Sample(key, RemoteSource(key, Stamp(77_000, 1)), "label") for key in keys]
    dataset = Dataset("s3://bucket/table.parquet", tuple(samples), ("label",))
    kind = RowKind(PRINT, WHOLE, {})
    due = Flush(rows=1 << 16, seconds=600)
    ledger = Ledger(dataset, kind, FeatureStore(folder / "store"), due, lambda: None)
    ledger.open()
    listed = status_bytes("VmRSS") - before
    seconds = 0.0
    for start in range(0, images, 4096):
        numbers = range(start, min(start + 4096, images))
        names = (hashlib.sha256(str(number).encode()).hexdigest() for number in numbers)
        stored = {"failure_kind": None, "failure_reason": None, "more_frames": False}
        done = [
            Done(number, 77_000, 1, name, **stored, encoded=True)
            for number, name in zip(numbers, names, strict=True)
        ]
        text = Report(done).to_json()
        began = time.perf_counter()
        for one in Report.from_json(text).done:
            ledger.add(one.loaded(samples[one.number]), encoded=True)
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    ledger.flush()
    seconds += time.perf_counter() - began
    return {
        "results_per_s": images / seconds, "listed_bytes": listed,
        "memory_bytes": status_bytes("VmRSS") - before,
    }  # fmt: skip


def warm_up(folder: Path) -> None:
    """Load what a run loads, so that its memory is not counted to the images."""
    from dinoprobe.datasets import open_dataset
    from dinoprobe.engine import embed
    from dinoprobe.store import FeatureStore

    few = folder / "few"
    write_images(few / "images", 64)
    embed(open_dataset(str(few / "images")), Corner(), store=FeatureStore(few / "store"))


def left_behind(store: Path) -> dict[str, Any]:
    """Files and bytes of a young store, from which nothing was removed yet."""
    (features,) = store.glob("*/features.lance")
    (manifest,) = store.glob("*/manifest-*.lance")
    fragments = fragments_of(features)
    versions = [path.stat().st_size for path in features.glob("_versions/*.manifest")]
    return {
        "files": sum(path.is_file() for path in store.rglob("*")),
        "data_files": len(list(features.glob("data/*"))),
        "fragments": len(fragments),
        "versions": len(versions),
        "features_bytes": rows_bytes(features),
        "manifest_bytes": rows_bytes(manifest),
        "largest_version_bytes": max(versions),
    }


def fragments_of(table: Path) -> list[Any]:
    """Those of the newest version."""
    from dinoprobe.store.commits import load_lance

    return list(load_lance().dataset(str(table)).get_fragments())


def rows_bytes(table: Path) -> int:
    """The files of the newest version."""
    files = [file for fragment in fragments_of(table) for file in fragment.data_files()]
    return sum((table / "data" / file.path).stat().st_size for file in files)


def status_bytes(name: str) -> int:
    """A line of /proc/self/status."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    KINDS = {"local": local, "ray": ray, "driver": driver}
    print(json.dumps(KINDS[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))))
