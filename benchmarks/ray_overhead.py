"""The Ray engine against the local one on the same images and cores, in turns; JSON on stdout.

    python benchmarks/ray_overhead.py [--encoder vits16] [--images 1200] [--rounds 3]
        [--actors 1] [--cpus-per-actor N] [--split]

Rates are of images after the first sign of life, so neither side's start is in them; `whole` is
with it. With `--split` also a third side: a pool that reads and decodes, one that gets the pixels.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.bench.embed import random_weights
from dinoprobe.bench.synthetic import write_photos
from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import EncoderSettings, open_encoder
from dinoprobe.engine import Facts, Flush, embed
from dinoprobe.processor import usable_cores
from dinoprobe.ray_engine import Cluster, Job, RaySettings, connected, embed_on_ray
from dinoprobe.store import FeatureStore
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dinoprobe.encoder import Encoder

CHUNK = 32


@dataclass
class Clock:
    """Progress that notes when images were through."""

    seen: list[tuple[float, int]] = field(default_factory=list)

    def start(self, total: int, already: int) -> None:
        """Nothing to note."""

    def advance(self, images: int, failures: int) -> None:
        """So many more."""
        if images + failures:
            self.seen.append((time.perf_counter(), images + failures))

    def finish(self) -> None:
        """Nothing to note."""

    def rate(self) -> float:
        """Images a second after the first ones."""
        seconds = self.seen[-1][0] - self.seen[0][0]
        return sum(count for _, count in self.seen[1:]) / seconds


def local(images: Path, encoder: Encoder, store: Path) -> dict[str, float]:
    """The engine of one machine."""
    clock = Clock()
    dataset = open_dataset(str(images))
    done = embed(dataset, encoder, store=FeatureStore(store), progress=clock)
    return {"rate": clock.rate(), "whole": done.images_per_second}


def on_ray(images: Path, job: Job, facts: Facts, cluster: Cluster, store: Path) -> dict[str, float]:
    """The same on the cluster."""
    clock, place = Clock(), FeatureStore(store)
    done = embed_on_ray(
        open_dataset(str(images)),
        replace(job, store_uri=place.uri),
        facts,
        cluster=cluster,
        store=place,
        flush=Flush(seconds=60),
        progress=clock,
    )
    return {"rate": clock.rate(), "whole": done.summary.encoded / done.seconds}


class Decoder:
    """Reads and decodes, in a process of its own; pixels go to whoever encodes."""

    def __init__(self, job: Job) -> None:
        self.preprocessing = job.open().preprocessing  # type: ignore[attr-defined]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Paths to pixels."""
        import numpy as np

        from dinoprobe.preprocess import prepare
        from dinoprobe.types import content_hash

        files = [Path(path).read_bytes() for path in batch["path"]]
        pixels = [prepare(content, self.preprocessing).numpy() for content in files]
        return {"hash": [content_hash(content) for content in files], "pixels": np.stack(pixels)}


class Encode:
    """Gets pixels, gives rows."""

    def __init__(self, job: Job) -> None:
        self.encoder = job.encoder()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pixels to rows."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.array(batch["pixels"]))
        parts = [self.encoder.encode(part) for part in pixels.split(4)]
        return {"hash": batch["hash"], "X": np.concatenate(parts)}


def split(images: Path, job: Job, cores: int) -> dict[str, float]:
    """Half of the cores decode in a pool, the others encode. Without a store, in its favour."""
    import ray

    paths = [{"path": str(path)} for path in sorted(images.iterdir())]
    half = max(1, cores // 2)
    pool = ray.data.ActorPoolStrategy
    job = replace(job, cores=1)
    rows = ray.data.from_items(paths, override_num_blocks=-(-len(paths) // CHUNK))
    rows = rows.map_batches(
        Decoder, fn_constructor_args=(job,), batch_size=CHUNK, num_cpus=1, compute=pool(size=half)
    )
    rows = rows.map_batches(
        Encode,
        fn_constructor_args=(job,),
        batch_size=CHUNK,
        num_cpus=1,
        compute=pool(size=max(1, cores - half)),
    )
    clock, started = Clock(), time.perf_counter()
    for batch in rows.iter_batches(batch_size=None, prefetch_batches=0):
        clock.advance(len(batch["hash"]), 0)
    return {"rate": clock.rate(), "whole": len(paths) / (time.perf_counter() - started)}


def sides(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, dict[str, float]]]:
    """Each round: every side once, on the same files."""
    images = folder / "images"
    images.mkdir()
    write_photos(images, options.images)
    settings = EncoderSettings(name=options.encoder)
    if options.encoder != "builtin":
        settings = random_weights(settings, folder / "weights")
    encoder = open_encoder(settings)
    cores = options.cpus_per_actor or usable_cores()
    division = RaySettings("local", options.actors, 0, cores)
    with connected(division, lambda text: print(text, file=sys.stderr)) as cluster:
        job = Job(
            open=partial(open_encoder, settings),
            cores=cores,
            version=own_version(),
            timeout_s=120,
            report_every_s=30,
        )
        facts = cluster.facts(job, lambda _: None)
        job = replace(job, fingerprint=facts.fingerprint)
        for number in range(options.rounds):
            found = {
                "local": local(images, encoder, folder / f"local{number}"),
                "ray": on_ray(images, job, facts, cluster, folder / f"ray{number}"),
            }
            if options.split:
                found["split"] = split(images, job, usable_cores())
            yield found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vits16")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--cpus-per-actor", type=int, default=0)
    parser.add_argument("--split", action="store_true")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for found in sides(options, Path(folder)):
            print(json.dumps(found), file=sys.stderr)
            rounds.append(found)
    medians = {
        side: {name: statistics.median(r[side][name] for r in rounds) for name in ("rate", "whole")}
        for side in rounds[0]
    }
    shares = [r["ray"]["rate"] / r["local"]["rate"] for r in rounds]
    result = {
        "command": " ".join(["python", "benchmarks/ray_overhead.py", *sys.argv[1:]]),
        "machine": f"{usable_cores()} cores, {platform.processor() or platform.machine()}",
        "images": options.images,
        "medians": medians,
        "share_of_local": statistics.median(shares),
        "shares": shares,
        "rounds": rounds,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
