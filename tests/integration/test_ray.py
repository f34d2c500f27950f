"""The engine on a Ray cluster: the features of the local one, whatever dies on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from tests.ray_jobs import MIXED, POISON

from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import Embedding, embed
from dinoprobe.store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 500
COPIES = 8
BROKEN = ("a/cut.png", "b/empty.jpg", "b/text.jpg")

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray here")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with broken and repeated ones, a table of URIs with a deadly one, and tar shards."""
    root = tmp_path_factory.mktemp("ray")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        folder = root / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
    photos = sorted((root / "photos").rglob("*.png"))
    for number, path in enumerate(photos[:COPIES]):
        (root / "photos" / "a" / f"copy{number}.png").write_bytes(path.read_bytes())
    for name, content in zip(BROKEN, (photos[0].read_bytes()[:700], b"", b"text"), strict=True):
        (root / "photos" / name).write_bytes(content)
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for path in photos[60 + shard * 10 : 70 + shard * 10]:
                content = path.read_bytes()
                info = tarfile.TarInfo(f"c/{path.name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    Image.new("RGB", (40, 40), POISON).save(root / "deadly.png")
    rows = [*photos[:30], root / "deadly.png", *photos[30:60]]
    lines = [f"file://{path},{path.parent.name}" for path in rows]
    (root / "table.csv").write_text("\n".join(["path,label", *lines, ""]))
    old = time.time() - 60  # a file that is seconds old has no lasting stamp
    for path in root.rglob("*"):
        os.utime(path, (old, old))
    return root


def environment() -> dict[str, str]:
    """What a user has, with a token: a cluster without one is not for a test either."""
    return os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}


def run_jobs(place: Path) -> dict[str, Any]:
    """All jobs of one cluster, whose start is most of what they take."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray_jobs", str(place)],
        cwd=ROOT, capture_output=True, text=True, timeout=540, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert any("cluster of 2 nodes: 2 workers" in text for text in found["said"])
    return found


@pytest.fixture(scope="module")
def builtin() -> Encoder:
    return Encoder.from_pretrained("builtin")


def local(source: Path | str, encoder: Encoder, store: Path | None = None) -> Embedding:
    """The same by the engine of one machine; with a store, what the cluster wrote."""
    return embed(open_dataset(str(source)), encoder, store=store and FeatureStore(store))


@pytest.mark.timeout(600)  # nine processes load torch, on however few cores
def test_two_nodes_give_what_one_machine_gives_whatever_dies(place: Path, builtin: Encoder) -> None:
    jobs = run_jobs(place)
    check_killed_worker(jobs, place, builtin)
    check_deadly_image(jobs, place, builtin)


def check_killed_worker(jobs: dict[str, Any], place: Path, builtin: Encoder) -> None:
    """A worker that is killed in the middle changes nothing."""
    found, expected = jobs["killed"], local(place / "photos", builtin)
    assert found["pid"] > 0
    assert found["embedded"] == expected.embedded == IMAGES + COPIES
    assert found["encoded"] == expected.encoded == IMAGES
    assert [tuple(row) for row in found["failures"]] == list(expected.features.failures)
    assert {row[0] for row in found["failures"]} == set(BROKEN)
    rows, damaged, _ = found["verified"]
    assert rows >= IMAGES
    assert damaged == 0
    read = local(place / "photos", builtin, place / "killed")
    assert (read.encoded, read.cached) == (0, IMAGES + COPIES)
    assert read.features.keys == expected.features.keys
    assert read.features.fingerprint == expected.features.fingerprint
    np.testing.assert_array_equal(read.features.X, expected.features.X)
    assert read.content_digest() == expected.content_digest()


def check_deadly_image(jobs: dict[str, Any], place: Path, builtin: Encoder) -> None:
    """It is put aside, among the URIs of a table and the members of two shards."""
    found = jobs["poisoned"]
    ((key, kind, reason),) = found["failures"]
    assert (key, kind) == (f"table.csv/file://{place}/deadly.png", "killed")
    assert "so did a second one" in reason
    assert (found["embedded"], found["encoded"]) == (80, 80)
    again = jobs["again"]
    assert (again["encoded"], again["cached"]) == (0, 80)
    assert again["failures"] == found["failures"]
    assert any("1 failures are known from an earlier run" in note for note in again["notes"])
    cured = jobs["cured"]
    assert (cured["encoded"], cured["embedded"], cured["failures"]) == (1, 81, [])
    source = f"{place}/{MIXED}"
    read, expected = local(source, builtin, place / "mixed"), local(source, builtin)
    assert (read.encoded, read.cached) == (0, 81)
    assert read.content_digest() == expected.content_digest()


@pytest.mark.timeout(600)
def test_after_a_killed_driver_only_what_is_missing_is_encoded(
    place: Path, tmp_path: Path, builtin: Encoder
) -> None:
    command = [
        sys.executable, "-m", "dinoprobe", "embed", str(place / "photos"), "-e", "builtin",
        "--engine", "ray", "--address", "local", "--cpus-per-actor", "1", "--actors", "1",
        "--checkpoint-every", "1", "--store", str(tmp_path / "store"), "--json",
    ]  # fmt: skip
    store = FeatureStore(tmp_path / "store")
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    family = []
    while not store.verify(builtin.base_fingerprint).rows:
        assert driver.poll() is None, driver.communicate()
        family = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if "Agent" not in " ".join(process.cmdline())  # Ray's look for their parent at leisure
        ]
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "processes of a killed driver live on"
    kept = store.verify(builtin.base_fingerprint)
    assert 0 < kept.rows < IMAGES
    assert (kept.damaged, kept.repeated) == (0, 0)

    again = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment()
    )
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["embedded"] == IMAGES + COPIES
    assert round(found["images_per_second"] * found["seconds"]) == IMAGES - kept.rows
    assert store.verify(builtin.base_fingerprint) == (IMAGES, 0, 0)
    assert found["content_digest"] is None
    read = local(place / "photos", builtin, tmp_path / "store")
    assert read.content_digest() == local(place / "photos", builtin).content_digest()
    spam = [line for line in again.stderr.splitlines() if "ray" in line.lower()]
    assert spam == [line for line in spam if line.startswith("Ray cluster of 1 nodes")]
