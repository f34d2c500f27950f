"""The most memory that the pipeline takes, beside what its formula allows.

Photographs of 500 x 375 with some of 4000 x 3000 among them go through the engine, with an encoder
that takes next to nothing. Each configuration is a process of its own, which notes its memory after
the imports and a first image. Linux only: the kernel's own peak is read, and set back before.

    python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dinoprobe.bench.synthetic import LARGE, write_photos
from dinoprobe.datasets import open_dataset
from dinoprobe.engine import Encoded, encode, memory_bound
from dinoprobe.preprocess import Preprocessing

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

RESULT = Path(__file__).resolve().parent / "results" / "memory-cpu.json"
SECONDS_PER_IMAGE = 0.02
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Configuration:
    """One process."""

    arithmetic: str
    kind: str
    workers: int
    batch_size: int
    size_px: int = 224


CONFIGURATIONS = [
    Configuration("uint8", "jpeg", 2, 8),
    Configuration("uint8", "jpeg", 8, 32),
    Configuration("uint8", "jpeg", 2, 128, 512),
    Configuration("uint8", "progressive", 2, 8),
    Configuration("exact", "jpeg", 2, 8),
    Configuration("exact", "jpeg", 8, 8),
    Configuration("uint8", "other", 2, 8),
]


class Corner:
    """An encoder of no weights, slow enough that all queues before it are full."""

    dimension, fingerprint, description = 12, "ab" * 16, {"kind": "corner"}

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """`(n, 12)`."""
        time.sleep(SECONDS_PER_IMAGE * len(images))
        corner = images[:, :, :2, :2].reshape(len(images), -1)
        return corner.numpy().astype(np.float32)


def main() -> None:
    """Measure all, or with --child one configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--files", type=int, default=40, help="rendered; they are used in turn")
    parser.add_argument("--large-share", type=float, default=0.2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as place:
        folders = render(Path(place), options.files, options.large_share)
        results = [in_process(c, folders[c.kind], options.images) for c in CONFIGURATIONS]
    command = (
        f"python benchmarks/memory.py --images {options.images} --files {options.files} "
        f"--large-share {options.large_share}"
    )
    date = datetime.now(UTC).date().isoformat()
    document = {"command": command, "date": date, "results": results}
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def render(place: Path, count: int, large_share: float) -> dict[str, Path]:
    """The same photographs as JPEG, as progressive JPEG and as PNG; a folder each."""
    folders = {kind: place / kind for kind in ("jpeg", "progressive", "other")}
    for folder in folders.values():
        folder.mkdir()
    for path in map(Path, write_photos(folders["jpeg"], count, large_share=large_share)):
        with Image.open(path) as picture:
            picture.save(folders["progressive"] / path.name, quality=90, progressive=True)
            picture.save(folders["other"] / f"{path.stem}.png", compress_level=1)
    return folders


def in_process(configuration: Configuration, folder: Path, images: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    values = asdict(configuration) | {"folder": str(folder), "images": images}
    command = [sys.executable, __file__, "--child", json.dumps(values)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = asdict(configuration) | json.loads(done.stdout)
    shares = f"{found['peak_growth_bytes'] / 1e6:.1f} of {found['bound_bytes'] / 1e6:.1f} MB"
    print(f"{configuration}: {shares}", file=sys.stderr)
    return found


def measure(folder: str, images: int, **values: Any) -> dict[str, Any]:
    """Growth of the peak over what the process had after one small image."""
    configuration = Configuration(**values)
    preprocessing = Preprocessing(
        size=(configuration.size_px,) * 2, arithmetic=configuration.arithmetic
    )
    options = {"batch_size": configuration.batch_size, "workers": configuration.workers}
    samples = open_dataset(folder).samples
    sizes = {sample.key: len(sample.source.read()) for sample in samples}
    first = min(samples, key=lambda sample: sizes[sample.key])
    list(encode([first], Corner(preprocessing), **options))
    before = status_bytes("VmRSS")
    PEAK_RESET.write_text("5", encoding="utf-8")
    results = encode(islice(cycle(samples), images), Corner(preprocessing), **options)
    count = sum(isinstance(result, Encoded) for result in results)
    growth = status_bytes("VmHWM") - before
    bound = memory_bound(
        preprocessing,
        LARGE[::-1],
        file_bytes=max(sizes.values()),
        lanes=min(configuration.workers, cores()),
        kind=configuration.kind,
        **options,
    )
    return {
        "images": count, "largest_file_bytes": max(sizes.values()), "bound_bytes": bound,
        "peak_growth_bytes": growth, "share_of_bound": round(growth / bound, 3),
    }  # fmt: skip


def status_bytes(name: str) -> int:
    """A line of /proc/self/status."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def cores() -> int:
    """As the engine counts them."""
    import os

    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
