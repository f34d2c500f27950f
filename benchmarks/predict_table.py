"""What scoring costs where a store has all features: all rows, the same again, and 1 % changed.

    python benchmarks/predict_table.py --rows 100000 400000

The second half of `predict --out` without images and without an encoder: random features in a
store, a logistic head, and the table, as `dinoprobe.predicted.update` does it. Beside it the head
alone on the same features in memory, in blocks. Each number of rows and kind of table is measured
in a process of its own, for `memory_mb` is how much its peak grew. One JSON file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jobs import RESULTS, machine, timed_process

if TYPE_CHECKING:
    from dinoprobe.classifier import ImageClassifier

RESULT = RESULTS / "predict-table-cpu.json"
KINDS = ("parquet", "lance")
BLOCK = 1 << 14
FINGERPRINT = "ab" * 32


def main() -> None:
    """Measure all, or with --kind one, whose document goes to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    shape = (options.dimension, options.classes)
    if options.kind:
        print(json.dumps(measure(options.rows[0], *shape, options.kind)))
        return
    from dinoprobe.versions import versions

    result = {
        "command": f"python benchmarks/predict_table.py --rows {' '.join(map(str, options.rows))}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "results": [apart(rows, *shape, kind) for rows in options.rows for kind in KINDS],
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def apart(rows: int, dimension: int, classes: int, kind: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    sizes = ["--rows", str(rows), "--dimension", str(dimension), "--classes", str(classes)]
    return timed_process([__file__, *sizes, "--kind", kind])[0]


def measure(rows: int, dimension: int, classes: int, kind: str) -> dict[str, Any]:
    """Seconds of each run over one store, and of the head alone."""
    from dinoprobe.engine.ledger import Flush, Ledger, RowKind
    from dinoprobe.predicted import Terms, classifier_digest, open_table, update
    from dinoprobe.store import WHOLE, FeatureStore
    from dinoprobe.types import Dataset

    rng = np.random.default_rng(0)
    classifier = fitted(rng, dimension, classes)
    head_s = 0.0
    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as name:
        store, hashes = FeatureStore(Path(name, "store")), []
        for start in range(0, rows, BLOCK):
            X = rng.normal(size=(min(BLOCK, rows - start), dimension)).astype(np.float32)
            names = [hashlib.sha256(b"%d" % (start + i)).hexdigest() for i in range(len(X))]
            store.append(FINGERPRINT, names, X)
            hashes += names
            started = time.perf_counter()
            classifier.predict_features(X)
            head_s += time.perf_counter() - started
        samples = [_sample(f"photos/{number:09}.jpg") for number in range(rows)]
        dataset, row_kind = Dataset("bench", samples), RowKind(FINGERPRINT, WHOLE, {})
        ledger = Ledger(dataset, row_kind, store, Flush(), lambda: None)
        ledger.hashes.update(zip((sample.key for sample in samples), hashes, strict=True))
        table = open_table(str(Path(name, f"table.{kind}")))
        terms = Terms(classifier_digest(classifier), classifier.classes, FINGERPRINT)
        before = peak_mb()
        seconds: dict[str, float] = {}
        for run in ("all", "nothing", "one_percent"):
            if run == "one_percent":
                for sample in samples[::100]:  # the content of their neighbours
                    ledger.hashes[sample.key] = hashes[int(sample.key[7:16]) ^ 1]
            started = time.perf_counter()
            found = update(classifier, terms, table, ledger, store)
            seconds[run] = time.perf_counter() - started
            assert found.scored == {"all": rows, "nothing": 0}.get(run, len(samples[::100]))
    return {
        "rows": rows, "dimension": dimension, "classes": classes, "table": kind,
        "features_mb": rows * dimension * 4 / 1e6, "memory_mb": peak_mb() - before,
        "seconds": seconds, "head_seconds": head_s, "share_of_head": head_s / seconds["all"],
    }  # fmt: skip


def fitted(rng: np.random.Generator, dimension: int, classes: int) -> ImageClassifier:
    """A logistic head on random features, with no encoder."""
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.heads import LogisticProbe

    y = np.array([f"class {i % classes}" for i in range(classes * 10)], dtype=object)
    X = rng.normal(size=(len(y), dimension)).astype(np.float32)
    encoder: Any = _Encoder()
    return ImageClassifier(encoder, LogisticProbe(C=0.01).fit(X, y))


class _Encoder:
    """What a digest asks of an encoder."""

    fingerprint = FINGERPRINT


def _sample(key: str) -> Any:
    from dinoprobe.datasets.memory import BytesSource
    from dinoprobe.types import Sample

    return Sample(key, BytesSource(b""))


def peak_mb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
