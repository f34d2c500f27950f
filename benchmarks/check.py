"""The data check on features and thumbnails that are there: all but decoding. JSON on stdout.

    python benchmarks/check.py [--rows 50000] [--features 768] [--classes 100]

Made features (Gaussian classes) and made pictures (smooth noise, eight scenes that share a ground),
with faults planted: 2 % of labels flipped, 1 % of rows copies, a third of them mirrored, 0.2 %
foreign rows. Both parts are checked with everything that `dinoprobe check` does after decoding,
pixels of candidates included. `found` says how many of the planted faults stand in the findings,
`cores_of_others` what else ran: where it is not near 0 `seconds` are too long, and `cpu_seconds`,
of all threads, are the better guide.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jobs import machine

from dinoprobe.audit import Pictures, check
from dinoprobe.bench.neighbours import Neighbours
from dinoprobe.preprocess import THUMBNAIL_PX, ImageFacts
from dinoprobe.types import Features
from dinoprobe.versions import versions

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from dinoprobe.audit import Check

FLIPPED, COPIED, FOREIGN = 0.02, 0.01, 0.002
SEPARATION, SCENES, SCENE_WEIGHT = 0.35, 8, 0.7


class Planted(NamedTuple):
    """Features, pictures, and the rows with a planted fault."""

    features: Features
    thumbnails: npt.NDArray[np.uint8]
    flipped: npt.NDArray[np.intp]
    copied: npt.NDArray[np.intp]
    foreign: npt.NDArray[np.intp]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    made = planted(options.rows, options.features, options.classes)
    print(json.dumps(measure(made), indent=2))


def planted(n: int, d: int, k: int, seed: int = 0) -> Planted:
    """Rows with faults, from a seed."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, n)
    X = rng.normal(size=(n, d)).astype(np.float32)
    X += rng.normal(size=d).astype(np.float32)  # what all features share
    X += SEPARATION * rng.normal(size=(k, d)).astype(np.float32)[codes]
    thumbnails = _pictures(rng, n)
    rows = rng.permutation(n)
    counts = [max(1, round(share * n)) for share in (COPIED, COPIED, FLIPPED, FOREIGN)]
    copied, originals, flipped, foreign = np.split(rows, np.cumsum(counts))[:4]
    X[copied] = X[originals] + 0.05 * rng.normal(size=(len(copied), d))
    codes[copied] = codes[originals]
    noise = rng.normal(0, 2, (len(copied), *thumbnails.shape[1:]))
    copies = thumbnails[originals] + noise
    copies[::3] = copies[::3, :, ::-1]
    X[copied[::3]] = rng.normal(size=(len(copied[::3]), d))  # features tell left from right
    thumbnails[copied] = np.clip(copies, 0, 255)
    X[foreign] = 2 * rng.normal(size=(len(foreign), d))
    given = codes.copy()
    given[flipped] = (codes[flipped] + rng.integers(1, k, len(flipped))) % k
    labels = np.array([f"class {code:03d}" for code in given], dtype=object)
    features = Features(
        keys=tuple(f"{row:06d}.jpg" for row in range(n)), X=X, y=labels,
        classes=tuple(sorted({*labels.tolist()})), fingerprint="made",
        hashes=tuple(f"{row:064x}" for row in range(n)),
        splits=tuple("test" if row % 5 == 0 else "train" for row in range(n)),
        groups=(None,) * n,
    )  # fmt: skip
    return Planted(features, thumbnails, flipped, copied, foreign)


def _pictures(rng: np.random.Generator, n: int) -> npt.NDArray[np.uint8]:
    """Smooth noise of 8 x 8 knots on one of a few grounds."""
    from scipy.ndimage import zoom

    grounds = rng.normal(size=(SCENES, 8, 8, 3))
    found = np.empty((n, THUMBNAIL_PX, THUMBNAIL_PX, 3), np.uint8)
    for start in range(0, n, 1000):
        count = min(1000, n - start)
        knots = SCENE_WEIGHT * grounds[rng.integers(0, SCENES, count)]
        knots = knots + rng.normal(size=knots.shape) * np.sqrt(1 - SCENE_WEIGHT**2)
        scale = THUMBNAIL_PX // 8
        found[start : start + count] = np.clip(
            128 + 45 * zoom(knots, (1, scale, scale, 1), order=1), 0, 255
        )
    return found


def measure(made: Planted) -> dict[str, Any]:
    """Times and what was found of the planted faults."""
    import torch

    facts = {
        name: ImageFacts(
            "JPEG", 500, 375, "colour", more_frames=False, deviation=50.0, thumbnail=thumbnail
        )
        for name, thumbnail in zip(made.features.hashes, made.thumbnails, strict=True)
    }

    def read(row: int) -> torch.Tensor:
        return torch.from_numpy(made.thumbnails[row].copy()).permute(2, 0, 1)

    start, cpu = time.perf_counter(), time.process_time()
    load = os.getloadavg()[0]
    with Neighbours() as neighbours:
        found = check(made.features, pictures=Pictures(facts, read))
    return {
        "command": "python benchmarks/check.py",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "rows": len(made.features), "features": made.features.X.shape[1],
        "classes": len(made.features.classes),
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "cores_of_others": neighbours.cores,
        "load_before": load,
        "findings": found.counts,
        "planted": {
            "label": len(made.flipped), "copy": len(made.copied), "outlier": len(made.foreign),
        },
        "found": _found(found, made),
        "versions": versions(),
    }  # fmt: skip


def _found(found: Check, made: Planted) -> dict[str, int]:
    keys = np.array(made.features.keys)
    labels = {finding.key for finding in found.of("label")}
    copies = {
        key for f in found.findings if f.cluster is not None for key in (f.key, f.related) if key
    }
    strange = {finding.key for finding in found.of("outlier")}
    return {
        "label": len(labels & set(keys[made.flipped])),
        "copy": len(copies & set(keys[made.copied])),
        "outlier": len(strange & set(keys[made.foreign])),
    }


if __name__ == "__main__":
    main()
