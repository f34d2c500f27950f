"""Jobs on a real Ray cluster of two nodes on this machine, in a process of their own.

`python -m tests.ray_jobs FOLDER` embeds what the test has put there, and prints one JSON document.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import EncoderSettings, open_encoder
from dinoprobe.engine import Flush
from dinoprobe.ray_engine import Job, RaySettings, connected, embed_on_ray
from dinoprobe.store import FeatureStore
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.encoder import Encoder

POISON = (255, 0, 255)
DUE = Flush(seconds=1.0)
MIXED = "{table.csv,0.tar,1.tar}"


def open_poisoned(settings: EncoderSettings) -> Encoder:
    """An encoder whose process dies of a picture in one colour."""
    encoder = open_encoder(settings)
    encode = encoder.encode

    def deadly(images: torch.Tensor) -> npt.NDArray[np.float32]:
        for image in images.numpy():
            if all((image[i] == POISON[i]).all() for i in range(3)):
                os._exit(1)
        return encode(images)

    encoder.encode = deadly  # type: ignore[method-assign]
    return encoder


class KillsOne:
    """Progress that kills one worker, once, when some images are through."""

    def __init__(self, after: int) -> None:
        self.after, self.seen, self.killed = after, 0, 0

    def start(self, total: int, already: int) -> None:
        """Nothing yet."""

    def advance(self, images: int, failures: int) -> None:
        """Kill when it is time."""
        self.seen += images + failures
        if not self.killed and self.seen >= self.after:
            self.killed = workers()[0]
            os.kill(self.killed, signal.SIGKILL)

    def finish(self) -> None:
        """Nothing left."""


def workers() -> list[int]:
    """The processes of Ray Data's actors that descend from this one."""
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if "MapWorker" in " ".join(process.cmdline()) or "MapWorker" in process.name()
    ]


def main(folder: Path) -> dict[str, Any]:
    """All jobs, one after the other, on one cluster."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    said: list[str] = []
    try:
        with connected(RaySettings(nodes.address), said.append) as cluster:
            results = _jobs(folder, cluster, said.append)
    finally:
        nodes.shutdown()
    return {**results, "said": said}


def _jobs(folder: Path, cluster: Any, say: Callable[[str], None]) -> dict[str, Any]:
    settings = EncoderSettings(name="builtin")
    job = Job(
        open=partial(open_encoder, settings),
        cores=1,
        version=own_version(),
        report_every_s=DUE.seconds / 2,
    )
    facts = cluster.facts(job, say)
    job = replace(job, fingerprint=facts.fingerprint)
    deadly = replace(job, open=partial(open_poisoned, settings))

    def embed(job: Job, source: str, store: str, *, progress: Any = None,
              flush: Flush = DUE) -> dict[str, Any]:  # fmt: skip
        place = FeatureStore(folder / store)
        done = embed_on_ray(
            open_dataset(str(folder / source)),
            replace(job, store_uri=place.uri),
            facts,
            cluster=cluster,
            store=place,
            flush=flush,
            progress=progress,
        )
        return done.summary._asdict() | {"verified": place.verify(facts.kind.fingerprint)}

    killer = KillsOne(150)
    killed = embed(job, "photos", "killed", progress=killer)
    return {
        "killed": killed | {"pid": killer.killed},
        "poisoned": embed(deadly, MIXED, "mixed"),
        "again": embed(deadly, MIXED, "mixed"),
        "cured": embed(job, MIXED, "mixed", flush=replace(DUE, retry_failures=True)),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
