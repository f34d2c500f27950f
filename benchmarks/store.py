"""Rates of the feature store, as JSON on stdout.

    python benchmarks/store.py [--rows 100000] [--dimension 384] [--batch 4096] [--folder PLACE]

Appends in batches as the engine does, compacts, and then finds all rows, 1 % of them and none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.store import Entry, FeatureStore
from dinoprobe.types import Stamp

if TYPE_CHECKING:
    from collections.abc import Callable

PRINT = "ab" * 16


def seconds(task: Callable[[], object]) -> float:
    """How long `task` takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def measure(folder: str, rows: int, dimension: int, batch: int) -> dict[str, float]:
    """Seconds by what was done."""
    store = FeatureStore(folder)
    X = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(rows)]
    entries = [Entry(f"{i}.jpg", Stamp(i, i), name, "cat") for i, name in enumerate(hashes)]
    store.append("cd" * 16, hashes[:1], X[:1])  # the import is not part of it

    def append() -> None:
        for start in range(0, rows, batch):
            store.append(PRINT, hashes[start : start + batch], X[start : start + batch])

    def record() -> None:
        for start in range(0, rows, batch):
            store.record(PRINT, "data", entries[start : start + batch])

    return {
        "append": seconds(append),
        "record": seconds(record),
        "get all, before compaction": seconds(lambda: store.get(PRINT, hashes)),
        "compact": seconds(lambda: store.compact(PRINT, "data")),
        "known": seconds(lambda: store.known(PRINT)),
        "get all": seconds(lambda: store.get(PRINT, hashes)),
        "get 1 %": seconds(lambda: store.get(PRINT, hashes[::100])),
        "get none": seconds(lambda: store.get(PRINT, ["00" * 32])),
        "manifest": seconds(lambda: store.manifest(PRINT, "data")),
        "verify": seconds(lambda: store.verify(PRINT)),
    }


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.folder or temporary
        times = measure(place, options.rows, options.dimension, options.batch)
    settings = {"rows": options.rows, "dimension": options.dimension, "batch": options.batch}
    print(json.dumps({**settings, "seconds": {k: round(v, 4) for k, v in times.items()}}, indent=2))


if __name__ == "__main__":
    main()
