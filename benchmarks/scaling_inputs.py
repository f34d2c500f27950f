"""The inputs of `benchmarks/scaling.py`, each with its kind and where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaling_run import DIMENSION

HASH_BYTES, CHECK_BYTES, VALUE_BYTES = 32, 4, 4


@dataclass(frozen=True)
class Input:
    """A number and where it is from: `measured`, `published` or `assumed`."""

    value: float
    unit: str
    kind: str
    source: str


def inputs(runs: dict[str, Any], speed: dict[str, Any]) -> dict[str, Input]:
    """All of them, from the runs of `scaling_run.py` and from benchmarks/embed.py's results."""
    small, large = entry(speed, "vits16"), entry(speed, "vitb16")
    where = f"{speed['command']}, {speed['date']}, {speed['machine']}"
    here = f"{runs['command']}, {runs['date']}, {runs['machine']}"
    large_run = runs["local"]["large"]
    ray = runs["ray"]["large"]
    share = small["images_per_second"] / 2
    base = large["images_per_second"] / 2

    def of(value: float, unit: str, kind: str, source: str) -> Input:
        return Input(round(value, 4), unit, kind, source)

    return {
        "vits16, a core": of(share, "images/s", "measured", where),
        "vitb16, a core": of(base, "images/s", "measured", where),
        "vitl16, a core": of(base * 35.9 / 125.7, "images/s", "assumed",
                             "vitb16's, by FLOPs: 35.9 and 125.7 GFLOP an image"),
        "decoding, a core": of(small["decode_images_per_second"] / 2, "images/s", "measured",
                               f"500 x 375 JPEG to 224 x 224: {where}"),
        "cores that scale": of(1.0, "share", "assumed", "16 cores do 8 times what 2 do"),
        "vits16, H200": of(28_000, "images/s", "assumed", "no H200 was at hand: see the text"),
        "vitb16, H200": of(10_000, "images/s", "assumed", "as above"),
        "vitl16, H200": of(3_500, "images/s", "assumed", "as above"),
        "vits16, RTX PRO 6000": of(8_571, "images/s", "published",
                                   "timm results/benchmark-infer, DINOv3 at 256 px, compiled"),
        "vitb16, RTX PRO 6000": of(3_183, "images/s", "published", "as above"),
        "vitl16, RTX PRO 6000": of(1_027, "images/s", "published", "as above"),
        "bytes of an image": of(77_000, "bytes", "assumed", "a JPEG of 500 x 375 at quality 90"),
        "network of a node": of(1.25e9, "bytes/s", "assumed", "10 Gbit/s"),
        "requests a prefix": of(5_500, "GET/s", "published", "Amazon S3's guide to performance"),
        "manifest": of(large_run["manifest_bytes"] / large_run["images"],
                       "bytes/image", "measured", here),
        "features beyond their rows": of(
            large_run["features_bytes"] / large_run["images"] - row_bytes(DIMENSION, 1),
            "bytes/image", "measured", here),
        "version of the table": of(ray["largest_version_bytes"] / ray["fragments"],
                                   "bytes/file", "measured", here),
        "memory of a driver": of(per_image(runs["driver"], "memory_bytes"), "bytes/image",
                                 "measured", f"samples and ledger, without Ray's: {here}"),
        "chunks on their way": of(364, "bytes/image", "measured", "docs/log.md: packed, as Arrow"),
        "results of a driver": of(min(one["results_per_s"] for one in runs["driver"].values()),
                                  "results/s", "measured",
                                  f"reports taken and recorded, without Ray; slowest of 3: {here}"),
        "of it beside Ray": of(0.5, "share", "assumed", "not measured"),
        "listing": of(per_image(runs["local"], "listing_s") * 1e6, "s/million images", "measured",
                      f"a local folder: {here}"),
        "reads a commit": of(4, "requests", "assumed", "list, newest version, schema, retry"),
        "start of a worker": of(10, "s", "measured", "docs/log.md: 5 to 10 s on Ray, on 2 cores"),
    }  # fmt: skip


def per_image(sizes: dict[str, Any], what: str, until: str = "large") -> float:
    """How much an image adds, from the small run to another."""
    small, other = sizes["small"], sizes[until]
    return float(other[what] - small[what]) / (other["images"] - small["images"])


def entry(speed: dict[str, Any], encoder: str) -> dict[str, Any]:
    """The default of an encoder on photographs of 500 x 375."""
    wanted = (encoder, "cls", "bfloat16", "openvino", 0.0)
    names = ("encoder", "pooling", "precision", "backend", "large_share")
    found: dict[str, Any] = next(
        one for one in speed["results"] if tuple(one[name] for name in names) == wanted
    )
    return found


def row_bytes(width: int, parts: int) -> int:
    """A row of features: content hash, and for each part its checksum and values."""
    return HASH_BYTES + parts * (CHECK_BYTES + VALUE_BYTES * width)
