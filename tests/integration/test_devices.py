"""Several processes on one dataset: the same as one, whatever dies."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit
from tests.device_jobs import TWO, Content, Deadly, Gone, job, picture, slow_images

from dinoprobe.encoder import Encoder
from dinoprobe.engine import Embedding, crew, embed, embed_on_devices
from dinoprobe.errors import ConfigurationError, EncoderError
from dinoprobe.store import FeatureStore
from dinoprobe.types import Dataset, Sample

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_vit(tmp_path_factory.mktemp("weights") / "vit"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


def film() -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def mixed() -> Dataset:
    """70 pictures, 20 of them once more far behind, and what fails in between, also twice."""
    contents = {f"{i:03}": Content(picture(i)) for i in range(70)}
    contents |= {"film": Content(film()), "gone": Gone(), "cut": Content(picture(0)[:200])}
    contents |= {f"again-{i:03}": Content(picture(3 * i)) for i in range(20)}
    contents |= {"again-cut": Content(picture(0)[:200]), "text": Content(b"no image")}
    samples = [Sample(key, source, label=key[0]) for key, source in contents.items()]
    return Dataset("mixed", samples, tuple(sorted({key[0] for key in contents})))


def assert_same(found: Embedding, expected: Embedding) -> None:
    ours, theirs = found.features, expected.features
    assert ours.keys == theirs.keys
    np.testing.assert_array_equal(ours.X, theirs.X)
    assert (ours.fingerprint, ours.base_fingerprint) == (
        theirs.fingerprint,
        theirs.base_fingerprint,
    )
    assert (ours.hashes, ours.pooling, list(ours.y)) == (
        theirs.hashes,
        theirs.pooling,
        list(theirs.y),
    )
    assert ours.failures == theirs.failures
    assert found.notes == expected.notes


def test_two_processes_give_what_one_gives(vit: str, store: FeatureStore) -> None:
    expected = embed(mixed(), Encoder.from_pretrained(vit, device="cpu"))
    assert {failure.kind for failure in expected.features.failures} >= {"unreadable", "truncated"}
    assert any("same bytes" in note for note in expected.notes)
    found, facts = embed_on_devices(mixed(), job(vit), TWO, store=store)
    assert_same(found, expected)
    assert (found.embedded, found.cached, found.encoded, found.failed) == (
        expected.embedded, 0, expected.encoded, expected.failed,
    )  # fmt: skip
    assert store.verify(facts.base_fingerprint) == (expected.encoded, 0, 0)
    again = embed(mixed(), Encoder.from_pretrained(vit, device="cpu"), store=store)
    assert (again.encoded, again.cached) == (0, expected.embedded)


def test_dead_processes_cost_no_image_but_the_deadly_one(
    vit: str, store: FeatureStore, tmp_path: Path
) -> None:
    """One image kills a process once, as memory that runs out does; another one kills each."""
    counters = {name: tmp_path / name for name in ("once", "always")}
    samples = [Sample(f"{i:03}", Content(picture(i))) for i in range(60)]
    samples[7] = Sample("once", Deadly(7, counters["once"], times=1))
    samples[40] = Sample("always", Deadly(40, counters["always"], times=99))
    dataset = Dataset("deadly", samples)
    found, _ = embed_on_devices(dataset, job(vit), TWO, store=store)
    assert [(failure.key, failure.kind) for failure in found.features.failures] == [
        ("always", "killed")
    ]
    assert "SIGKILL" in found.features.failures[0].reason
    assert counters["always"].stat().st_size == 2
    sound = Dataset("sound", [Sample(s.key, Content(s.source.content)) for s in samples])
    expected = embed(sound, Encoder.from_pretrained(vit, device="cpu")).features
    kept = [i for i, key in enumerate(expected.keys) if key != "always"]
    assert found.features.keys == tuple(expected.keys[i] for i in kept)
    np.testing.assert_array_equal(found.features.X, expected.X[kept])

    again = embed(dataset, Encoder.from_pretrained(vit, device="cpu"), store=store)
    assert (again.cached, again.encoded, again.failed) == (59, 0, 1)  # it is not tried again
    assert again.features.failures == found.features.failures


def test_processes_that_only_die_end_the_run(
    vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MOST_DEATHS", 2)
    samples = [Sample(f"{i}", Deadly(i, tmp_path / "counter", times=99)) for i in range(4)]
    with pytest.raises(EncoderError, match=r"2 processes for cpu died .*killed by SIGKILL"):
        embed_on_devices(Dataset("deadly", samples), job(vit), TWO[:1])


class Unmovable(Content):
    def __reduce__(self) -> str:
        raise TypeError("it holds an open file")


def test_what_can_not_be_handed_over_is_said(vit: str) -> None:
    dataset = Dataset("here", [Sample("a.png", Unmovable(picture(0)))])
    with pytest.raises(ConfigurationError, match=r"a\.png: can not be handed to another process"):
        embed_on_devices(dataset, job(vit), TWO)


def test_what_ends_one_process_ends_the_run_with_its_error(tmp_path: Path, vit: str) -> None:
    lost = job(vit)
    (tmp_path / "empty").mkdir()
    lost = type(lost)(lost.settings, type(lost.reference)("empty", None, tmp_path / "empty"))
    with pytest.raises(EncoderError, match="empty"):
        embed_on_devices(mixed(), lost, TWO)


def alive(group: int) -> list[int]:
    """Processes of this group, without those that nobody has asked after yet."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed by Linux")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_what_was_finished_is_kept_and_no_process_stays(
    vit: str, store: FeatureStore, number: signal.Signals, code: int
) -> None:
    """Ctrl-C goes to the whole group, as a terminal sends it, and a kill to the parent alone."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.device_jobs", vit, store.uri, "200"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with run:
        assert run.stdout is not None
        while run.stdout.readline() not in {"done 12\n", ""}:
            pass
        (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
        start = time.monotonic()
        _, stderr = run.communicate(timeout=60)  # the pipes are open for as long as a process is
        took = time.monotonic() - start
    assert (run.returncode, "Traceback" in stderr) == (code, False), stderr
    assert ("Interrupted. What was finished is kept" in stderr) == (code == 130)
    assert took < 10
    until = time.monotonic() + 10
    while alive(run.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive(run.pid) == []
    dataset = slow_images(20)
    found = embed(dataset, Encoder.from_pretrained(vit, device="cpu"), store=store)
    assert found.embedded == 20
    assert 6 <= found.cached <= 20  # of the first 12 done, some lie beyond image 20


def test_the_command_line(vit: str, tmp_path: Path) -> None:
    """On an archive, which each process opens for itself."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for i in range(12):
            archive.writestr(f"{i}.png", picture(i))
    command = ["embed", "photos.zip", "--encoder", vit, "--store", "store", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "dinoprobe", *command, "--devices", "2", "--device", "cpu"],
        capture_output=True,
        cwd=tmp_path,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["embedded"], found["failed"], found["devices"]) == (12, 0, ["cpu", "cpu"])
    assert found["seconds"] > 0
