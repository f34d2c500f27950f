"""Heads from more rows than memory should hold, beside the same heads in memory. One JSON file.

    python benchmarks/streaming.py --rows 200000 --index-rows 1000000

Rows around 100 places lie in a feature store. Each side runs in a process of its own: one reads all
rows into memory and fits, the other fits from `FeatureStore.scan` block by block (LDA and ridge by
`StreamedRows`, the others from a file that `gathered` writes). Seconds are those of reading and
fitting together; memory is the most anonymous memory above that before reading, so pages of files,
which the system takes back when memory is wanted, do not count. The largest difference of a
probability on 2,000 rows says that both are the same head; for `linear`, whose batches come in
another order, the accuracy does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jobs import RESULTS, import_all, machine, timed_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

RESULT = RESULTS / "streaming-cpu.json"
PRINT = "5e" * 16
DIMENSION, CLASSES, WRITTEN = 384, 100, 20_000
HEADS: dict[str, dict[str, Any]] = {
    "lda": {},
    "ridge": {},
    "logistic": {"Cs": (1e-3, 1e-2, 1e-1)},
    "linear": {"epochs": 2, "standardize": True},
}
JUDGED = 2000


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--index-rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="on a disk with room (default: temporary)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)  # one side, for `main` itself
    options = parser.parse_args()
    if options.side:
        name, where, folder = options.side
        sys.stdout.write(json.dumps(side(name, where, Path(folder), options.rows)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The whole result."""
    from dinoprobe.bench.neighbours import Neighbours
    from dinoprobe.versions import versions

    store(folder, options.rows)
    with Neighbours() as others:
        heads = {name: compared(name, folder, options.rows) for name in HEADS}
        reading, _ = run("read", "file", folder, options.rows)
        index, _ = run("index", "file", folder, options.index_rows)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "cores_of_others": others.cores,
        "rows": options.rows,
        "features": DIMENSION,
        "classes": CLASSES,
        "features_bytes": 4 * options.rows * DIMENSION,
        "heads": heads,
        "reading": reading,
        "index": index,
    }


def compared(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Both sides of a head, one after the other."""
    found = {where: run(name, where, folder, rows)[0] for where in ("memory", "file")}
    first, second = (np.load(folder / f"{name}-{where}.npy") for where in found)
    print(name, found, file=sys.stderr)
    return {**found, "max_probability_difference": float(np.abs(first - second).max())}


def run(name: str, where: str, folder: Path, rows: int) -> tuple[dict[str, Any], float]:
    """One side in a process."""
    return timed_process([__file__, "--side", name, where, str(folder), "--rows", str(rows)])


def clustered(rows: int, *, seed: int) -> Iterator[tuple[npt.NDArray[np.float32], list[str]]]:
    """Rows around 1,000 places: a cosine of 0.5 within one of them, and of 0 between two."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(8).normal(size=(1000, DIMENSION)).astype(np.float32)
    for start in range(0, rows, WRITTEN):
        codes = random.integers(0, len(places), min(WRITTEN, rows - start))
        scatter = random.normal(size=(len(codes), DIMENSION)).astype(np.float32)
        yield places[codes] + scatter, [f"class {code % CLASSES:03}" for code in codes]


def blocks(rows: int, *, seed: int = 0) -> Iterator[tuple[npt.NDArray[np.float32], list[str]]]:
    """Rows around as many places as there are classes, and their labels."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(9).normal(size=(CLASSES, DIMENSION)).astype(np.float32)
    for start in range(0, rows, WRITTEN):
        codes = random.integers(0, CLASSES, min(WRITTEN, rows - start))
        scatter = random.normal(size=(len(codes), DIMENSION)).astype(np.float32)
        yield 0.25 * places[codes] + scatter, [f"class {code:03}" for code in codes]


def store(folder: Path, rows: int) -> None:
    """The rows in a store, and the label of each hash."""
    from dinoprobe.store import FeatureStore

    labels = {}
    for X, y in blocks(rows):
        hashes = [hashlib.sha256(str(len(labels) + i).encode()).hexdigest() for i in range(len(y))]
        FeatureStore(folder / "store").append(PRINT, hashes, X)
        labels.update(zip(hashes, y, strict=True))
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


def side(name: str, where: str, folder: Path, rows: int) -> dict[str, Any]:
    """What one process measures."""
    import_all("lance", "scipy.optimize", "torch", "dinoprobe.heads", "dinoprobe.neighbour_index")
    if name == "index":
        return indexed(folder, rows)
    labels: dict[str, str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    if name == "read":
        return read(folder, labels)
    peak = Peak()
    start = time.perf_counter()
    fitted = (
        in_memory(name, folder, labels) if where == "memory" else from_file(name, folder, labels)
    )
    seconds = time.perf_counter() - start
    more = peak.more()
    X, y = next(blocks(WRITTEN, seed=1))
    np.save(folder / f"{name}-{where}.npy", fitted.predict_proba(X[:JUDGED]))
    return {
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "peak_bytes": more,
        "accuracy": float((fitted.predict(X) == np.array(y, dtype=object)).mean()),
    }


def folds(count: int) -> npt.NDArray[np.intp]:
    """One fifth is held out."""
    return np.where(np.arange(count) % 5, -1, 0)


def head(name: str) -> Any:
    """Not fitted."""
    from dinoprobe.heads import head_from_name

    return head_from_name(name, **HEADS[name])


def in_memory(name: str, folder: Path, labels: dict[str, str]) -> Any:
    """All rows at once."""
    from dinoprobe.store import FeatureStore

    rows = FeatureStore(folder / "store").get(PRINT, labels)
    y = np.empty(len(rows.X), dtype=object)
    for hash_, place in rows.position.items():
        y[place] = labels[hash_]
    options = {"folds": folds(len(y))} if head(name).selects else {}
    return head(name).fit(rows.X, y, **options)


def from_file(name: str, folder: Path, labels: dict[str, str]) -> Any:
    """Rows block by block, or from a file."""
    from dinoprobe.heads import StreamedRows
    from dinoprobe.mapped import gathered
    from dinoprobe.store import FeatureStore

    scan = FeatureStore(folder / "store").scan(PRINT)
    labelled = ((X, [labels[hash_] for hash_ in hashes]) for hashes, X in scan)
    if name in {"lda", "ridge"}:
        rows, count = StreamedRows(), 0
        for X, y in labelled:
            rows.add(X, np.array(y, dtype=object), folds=folds(count + len(y))[count:])
            count += len(y)
        return head(name).fit_streamed(rows)
    X, y = gathered(labelled, folder)
    options = {"folds": folds(len(y))} if head(name).selects else {}
    return head(name).fit(X, y, **options)


def read(folder: Path, labels: dict[str, str]) -> dict[str, Any]:
    """Rows a second of a scan of the store, and of a file that was written from it."""
    from dinoprobe.mapped import gathered
    from dinoprobe.store import FeatureStore

    start = time.perf_counter()
    scan = FeatureStore(folder / "store").scan(PRINT)
    X, _ = gathered(((X, [labels[h] for h in hashes]) for hashes, X in scan), folder)
    gathering = time.perf_counter() - start
    start = time.perf_counter()
    for _, block in FeatureStore(folder / "store").scan(PRINT):
        block.sum()
    scanning = time.perf_counter() - start
    start = time.perf_counter()
    for first in range(0, len(X), 8192):
        X[first : first + 8192].sum()
    mapped = time.perf_counter() - start
    names = ("store_rows_per_second", "file_rows_per_second", "gathering_rows_per_second")
    return dict(zip(names, (len(X) / s for s in (scanning, mapped, gathering)), strict=True))


def indexed(folder: Path, rows: int) -> dict[str, Any]:
    """Building, recall, and milliseconds a query beside comparing with all rows."""
    from dataclasses import asdict

    from dinoprobe.neighbour_index import NeighbourIndex

    peak = Peak()
    start = time.perf_counter()
    index = NeighbourIndex.build(folder / "index", clustered(rows, seed=2))
    built = time.perf_counter() - start
    more = peak.more()
    hard = NeighbourIndex.build(folder / "hard", blocks(rows // 10, seed=2), least_recall=0.0)
    queries, _ = next(clustered(1000, seed=3))
    start = time.perf_counter()
    index.nearest(queries, index.recall.k)
    query = time.perf_counter() - start
    start = time.perf_counter()
    index._exact(index._queries(queries), index.recall.k)  # noqa: SLF001 - what it is compared with
    exact = time.perf_counter() - start
    return {
        "rows": rows,
        **asdict(index.recall),
        "build_s": built,
        "peak_bytes": more,
        "features_bytes": 4 * rows * DIMENSION,
        "queries": len(queries),
        "query_ms": query,
        "exact_query_ms": exact,
        "without_clusters": {"rows": rows // 10, **asdict(hard.measure(20, 1.0))},
    }


class Peak:
    """The most anonymous memory of this process above that of now, looked at every 5 ms."""

    def __init__(self) -> None:
        self.base = self.most = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def more(self) -> int:
        """Bytes; the watch ends."""
        self._done.set()
        self._thread.join()
        return self.most - self.base

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.most = max(self.most, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
