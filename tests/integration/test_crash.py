"""Kills at random moments, and several writers: nothing is lost, nothing is wrong afterwards."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoprobe.store import FeatureStore

IMAGES, KILLS, PRINT = 200, 6, "ab" * 16

# One process pays for the imports and forks a fresh one for every run, before lance has threads.
# A run puts a byte on a pipe for each batch; after so many it is killed, or it is left to end.
DRIVER = """
import json, os, signal, sys, time
import numpy as np, torch
from dinoprobe.datasets import open_dataset
from dinoprobe.engine import Flush, embed
from dinoprobe.pooling import columns_of, parts_of, pooled_fingerprint
from dinoprobe.preprocess import Preprocessing
from dinoprobe.store import FeatureStore

class Slow:
    preprocessing = Preprocessing.from_config({"size": {"height": 16, "width": 16}})
    dimension, fingerprint, description = 24, "ab" * 16, {"kind": "slow"}

    def __init__(self, pipe):
        self.pipe = pipe

    def encode(self, images):
        time.sleep(0.008)
        os.write(self.pipe, b"x")
        rows = images.numpy().reshape(len(images), 48, 16)[:, ::2].astype(np.float32)
        return rows.mean(-1) + np.arange(24, dtype=np.float32) / 7

class Pooled(Slow):
    # the same rows as three parts of 8: cls_2, cls and mean
    base_fingerprint = Slow.fingerprint

    def __init__(self, pipe, pooling):
        super().__init__(pipe)
        self.pooling, self.fingerprint = pooling, pooled_fingerprint(self.base_fingerprint, pooling)
        self.dimension = 8 * len(parts_of(pooling))

    def encode(self, images):
        return super().encode(images)[:, columns_of("blocks2+mean", self.pooling, 24)]

def work(images, store, out, pipe, pooling=None):
    encoder = Slow(pipe) if pooling is None else Pooled(pipe, pooling)
    result = embed(open_dataset(images), encoder, store=FeatureStore(store), batch_size=4,
                   flush=Flush(rows=8, seconds=0.05))
    with open(out, "w") as file:
        json.dump({"digest": result.content_digest(), "cached": result.cached,
                   "encoded": result.encoded, "embedded": result.embedded,
                   "failed": result.failed, "seconds": result.seconds}, file)

torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    children = []
    for images, store, out, *pooling in job["runs"]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(images, store, out, writing, *pooling)
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        children.append((child, reading))
    codes = []
    for child, reading in children:
        if job["kill_after_batches"] is not None:
            for _ in range(job["kill_after_batches"]):
                os.read(reading, 1)
            time.sleep(job["then_after_s"])
            os.kill(child, signal.SIGKILL)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.close(reading)
    print(json.dumps(codes), flush=True)
"""


class Driver:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *runs: tuple[Path | str, ...], kill_after: tuple[int, float] | None = None
    ) -> list[int]:
        batches, seconds = kill_after or (None, 0.0)
        job = {
            "runs": [[str(path) for path in run] for run in runs],
            "kill_after_batches": batches,
            "then_after_s": seconds,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def finish(self) -> str:
        return self.process.communicate(timeout=60)[1]


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for i in range(IMAGES):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    return tmp_path / "images"


def result(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def test_kills_lose_nothing_and_writers_do_not_disturb_each_other(
    driver: Driver, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    assert driver.run((images, tmp_path / "calm", out)) == [0]
    calm = result(out)
    assert (calm["embedded"], calm["encoded"], calm["failed"]) == (IMAGES, IMAGES, 1)
    out.unlink()

    store, generator = tmp_path / "killed", random.Random(20)
    kept = [0]
    for _ in range(KILLS):
        moment = generator.randint(1, 12), generator.uniform(0, 0.03)
        assert driver.run((images, store, out), kill_after=moment) in ([-9], [0])
        found = FeatureStore(store).verify(PRINT)
        assert found.damaged == 0
        assert found.rows >= kept[-1]
        kept.append(found.rows)
    assert any(0 < rows < IMAGES for rows in kept), f"the kills came too late or early: {kept}"
    assert driver.run((images, store, out)) == [0]
    resumed = result(out)
    assert resumed["digest"] == calm["digest"]
    assert resumed["cached"] == kept[-1]
    assert FeatureStore(store).verify(PRINT) == (IMAGES, 0, 0)

    shared, parts = tmp_path / "shared", [tmp_path / "1.json", tmp_path / "2.json"]
    assert driver.run(
        (images, shared, parts[0]), (images / "b", shared, parts[1]), (images, shared, out)
    ) == [0, 0, 0]
    assert result(parts[0])["digest"] == result(out)["digest"] == calm["digest"]
    assert result(parts[1])["embedded"] == IMAGES // 2
    union = FeatureStore(shared).verify(PRINT)
    assert (union.rows - union.repeated, union.damaged) == (IMAGES, 0)
    assert driver.run((images, shared, out)) == [0]
    assert (result(out)["encoded"], result(out)["cached"]) == (0, IMAGES)
    assert driver.finish() == ""


def test_kills_and_writers_of_several_poolings_share_one_table(
    driver: Driver, images: Path, tmp_path: Path
) -> None:
    out, calm = tmp_path / "out.json", {}
    poolings = ("cls", "blocks2+mean", "mean", "cls+mean", "blocks2")
    for pooling in poolings:
        assert driver.run((images, tmp_path / pooling, out, pooling)) == [0]
        calm[pooling] = result(out)["digest"]
    assert len(set(calm.values())) == len(poolings)

    store, generator = tmp_path / "killed", random.Random(5)
    for number in range(2 * KILLS):
        moment = generator.randint(1, 12), generator.uniform(0, 0.03)
        pooling = poolings[number % len(poolings)]
        assert driver.run((images, store, out, pooling), kill_after=moment) in ([-9], [0])
        assert FeatureStore(store).verify(PRINT).damaged == 0
    for pooling in poolings:
        assert driver.run((images, store, out, pooling)) == [0]
        assert result(out)["digest"] == calm[pooling]

    shared, parts = tmp_path / "shared", [tmp_path / f"{i}.json" for i in range(len(poolings))]
    runs = [(images, shared, parts[i], pooling) for i, pooling in enumerate(poolings)]
    assert driver.run(*runs) == [0] * len(runs)
    for part, pooling in zip(parts, poolings, strict=True):
        assert result(part)["digest"] == calm[pooling]
    assert FeatureStore(shared).verify(PRINT).damaged == 0
    for pooling in poolings:
        assert driver.run((images, shared, out, pooling)) == [0]
        assert (result(out)["digest"], result(out)["encoded"]) == (calm[pooling], 0)
    assert driver.finish() == ""
