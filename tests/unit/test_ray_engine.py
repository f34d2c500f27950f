"""What the cluster's engine is made of, without a cluster: division, travel, reports, workers."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from dinoprobe import errors
from dinoprobe.datasets import open_dataset
from dinoprobe.datasets.location import RemoteSource
from dinoprobe.datasets.memory import BytesSource
from dinoprobe.datasets.transport import from_bytes, pack, to_bytes
from dinoprobe.encoder import Encoder, EncoderSettings, open_encoder
from dinoprobe.engine import embed, estimate, measure
from dinoprobe.engine.ledger import row_kind
from dinoprobe.errors import (
    ConfigurationError,
    ImageError,
    MismatchError,
    MissingExtraError,
    StoreError,
)
from dinoprobe.processor import usable_cores
from dinoprobe.ray_engine import Job, Plan, RaySettings
from dinoprobe.ray_engine.connection import load_ray, resolved
from dinoprobe.ray_engine.division import plan
from dinoprobe.ray_engine.report import Done, Report
from dinoprobe.ray_engine.worker import Worker, examine, facts_of
from dinoprobe.store import FeatureStore
from dinoprobe.types import Sample, Stamp
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from pathlib import Path

GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.fixture(scope="module")
def builtin() -> Encoder:
    return Encoder.from_pretrained("builtin")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(20):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    (tmp_path / "photos" / "copy.png").write_bytes((tmp_path / "photos" / "03.png").read_bytes())
    (tmp_path / "photos" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    return tmp_path / "photos"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("DINOPROBE_CORES", "1")  # a worker sets it for its process
    return Job(
        open=partial(open_encoder, EncoderSettings(name="builtin")),
        cores=1,
        version=own_version(),
        store_uri=str(tmp_path / "store"),
    )


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 8.0}], {}, Plan(2, 8, 0.0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], {}, Plan(3, 4, 0.0)),
        ([{"CPU": 8.0}], {"cpus_per_actor": 3}, Plan(2, 3, 0.0)),
        ([{"CPU": 8.0}], {"actors": 1, "cpus_per_actor": 2}, Plan(1, 2, 0.0)),
        ([GPU_NODE, GPU_NODE, {"CPU": 64.0}], {}, Plan(8, 4, 1.0)),
        ([GPU_NODE], {"gpus_per_actor": 0.5}, Plan(8, 2, 0.5)),
        ([GPU_NODE], {"gpus_per_actor": 0.0}, Plan(1, 16, 0.0)),
        ([GPU_NODE, {"CPU": 64.0}], {"gpus_per_actor": 1, "cpus_per_actor": 5}, Plan(3, 5, 1)),
    ],
)
def test_a_cluster_is_divided(nodes: Any, asked: dict[str, Any], expected: Plan) -> None:
    assert plan(nodes, RaySettings(**asked)) == expected


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [([{"CPU": 2.0}], {"cpus_per_actor": 3}), ([{"CPU": 2.0}], {"gpus_per_actor": 1}), ([], {})],
)
def test_an_actor_that_fits_nowhere_is_an_error(nodes: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"no node has .* for an actor.*Ask for less"):
        plan(nodes, RaySettings(**asked))


@pytest.mark.parametrize("asked", [{"actors": 0}, {"cpus_per_actor": 0}, {"gpus_per_actor": -1}])
def test_numbers_that_make_no_sense_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Expected at least"):
        RaySettings(**asked).check()


def test_samples_travel_as_places(photos: Path, tmp_path: Path) -> None:
    samples = [
        *open_dataset(str(photos)).samples,
        Sample("remote", RemoteSource("s3://b/k.jpg", Stamp(3, 4))),
        Sample("bytes", BytesSource(b"data")),
        Sample("odd", open_dataset([str(photos / "caf\udce9.jpg")]).samples[0].source),
    ]
    stream = to_bytes([pack(number, sample) for number, sample in enumerate(samples)])
    back = from_bytes(stream)
    assert [(number, sample.key) for number, sample in back] == [
        (number, sample.key) for number, sample in enumerate(samples)
    ]
    for (_, there), here in zip(back, samples, strict=True):
        assert type(there.source) is type(here.source)
        assert repr(there.source) == repr(here.source) or here.key == "bytes"
    assert back[-3][1].source.stamp() == Stamp(3, 4)
    assert back[-2][1].source.read() == b"data"
    assert b"pickle" not in stream
    assert from_bytes(to_bytes([])) == []


def test_a_path_that_is_not_absolute_is_made_so(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    (sample,) = open_dataset(["00.png"]).samples
    assert json.loads(pack(0, sample).place or "") == ["file", str(photos / "00.png")]


def test_images_of_this_process_travel_as_files_and_pixels_not_at_all() -> None:
    picture, array = open_dataset([Image.new("L", (4, 4)), np.zeros((4, 4), np.uint8)]).samples
    assert (pack(0, picture).data or b"").startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match="use the local engine"):
        pack(1, array)


def test_errors_cross_the_cluster_whole() -> None:
    for error in (StoreError("full"), ImageError("bad", "broken"), MissingExtraError("x", "cpu")):
        with pytest.raises(type(error)) as raised:
            Report.from_json(Report.of_error(error).to_json()).check()
        assert str(raised.value) == str(error)
        assert isinstance(raised.value, errors.DinoprobeError)


def test_a_worker_stages_and_reports_what_the_local_engine_gives(
    photos: Path, tmp_path: Path, job: Job, builtin: Encoder
) -> None:
    dataset = open_dataset(str(photos))
    expected = embed(dataset, builtin)
    chunk = to_bytes([pack(number, sample) for number, sample in enumerate(dataset.samples)])
    known = frozenset(expected.features.hashes[:2])
    (report,) = Worker(job, known).reports(chunk)
    report = Report.from_json(report.to_json())
    assert (report.images, report.failures, report.error) == (21, 1, None)
    assert [done.number for done in report.done] == list(range(22))
    by_key = {dataset.samples[done.number].key: done for done in report.done}
    assert by_key["cut.png"].failure_kind == expected.features.failures[0].kind
    encoded = [done.content_hash for done in report.done if done.encoded]
    assert len(encoded) == len(set(encoded)) == 18
    kind, store = row_kind(builtin), FeatureStore(tmp_path / "store")
    assert store.verify(kind.fingerprint).rows == 0
    store.append_staged(kind.fingerprint, report.staged)
    rows = store.get(kind.fingerprint, [str(name) for name in encoded], parts=kind.parts)
    for name, row in zip(expected.features.hashes, expected.features.X, strict=True):
        if name not in known:
            np.testing.assert_array_equal(rows.X[rows.position[name]], row)


def test_a_result_survives_its_way(builtin: Encoder, photos: Path) -> None:
    from dinoprobe.engine.pipeline import run

    samples = open_dataset(str(photos)).samples
    for number, (loaded, row) in enumerate(run(samples, builtin, workers=1)):
        done = Done.of(number, loaded, encoded=row is not None)
        assert done.loaded(samples[number]) == loaded


def test_a_worker_of_another_version_or_with_other_features_ends_the_job(job: Job) -> None:
    chunk = to_bytes([])
    for wrong, match in (
        (replace(job, version="0"), "the driver 0"),
        (replace(job, fingerprint="ab" * 16), "their nodes differ"),
    ):
        (report,) = Worker(wrong, frozenset()).reports(chunk)
        with pytest.raises(MismatchError, match=match):
            report.check()
    found = examine(replace(job, version="0"))
    assert isinstance(found, Report)
    assert found.error is not None


def test_a_worker_keeps_to_its_cores(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DINOPROBE_CORES")
    cores = usable_cores()
    job.encoder()
    assert usable_cores() == 1
    monkeypatch.setenv("DINOPROBE_CORES", "many")
    assert usable_cores() == cores


def test_facts_stand_for_an_encoder(builtin: Encoder) -> None:
    facts = facts_of(builtin)
    assert facts.kind == row_kind(builtin)
    for name in ("dimension", "fingerprint", "base_fingerprint", "pooling", "name", "precision"):
        assert getattr(facts, name) == getattr(builtin, name)


def test_an_estimate_counts_and_writes_nothing(
    photos: Path, tmp_path: Path, builtin: Encoder
) -> None:
    dataset, store = open_dataset(str(photos)), FeatureStore(tmp_path / "store")

    def ask() -> Any:
        return estimate(
            dataset,
            row_kind(builtin),
            builtin.dimension,
            store,
            lambda samples: measure(samples, builtin),
            workers=3,
        )

    found = ask()
    assert (found.images, found.known, found.known_failures, found.left) == (22, 0, 0, 22)
    assert found.sampled == 6  # 16 warm up
    assert found.images_per_second > 0
    assert found.seconds == pytest.approx(22 / found.images_per_second)
    assert found.store_bytes == 22 * (32 + 2 * 4 + builtin.dimension * 4)
    assert 22 * 500 < found.left_bytes < 22 * 5000
    assert not (tmp_path / "store").exists()
    old = 1_000_000_000
    for path in photos.iterdir():
        os.utime(path, (old, old))
    embed(dataset, builtin, store=store)
    again = ask()
    assert (again.known, again.known_failures, again.left, again.seconds) == (21, 1, 0, 0.0)


def test_auto_is_what_was_started_on_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert resolved("auto", said.append) == "local"
    assert "one is started on this machine" in said[0]
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = f"127.0.0.1:{there.getsockname()[1]}"
        note.write_text(address + "\n")
        assert resolved("auto", said.append) == address
        monkeypatch.setenv("RAY_ADDRESS", address)
        note.unlink()
        assert resolved("auto", said.append) == resolved(address, said.append) == address
    with pytest.raises(ConfigurationError, match="nothing listens"):
        resolved("auto", said.append)
    monkeypatch.delenv("RAY_ADDRESS")
    note.write_text(address)  # of a cluster that was killed
    assert resolved("auto", said.append) == "local"
    with pytest.raises(ConfigurationError, match="Expected host:port"):
        resolved("elsewhere", said.append)
    assert resolved("local", said.append) == "local"
    with pytest.raises(ConfigurationError, match="ray job submit"):
        resolved("ray://10.0.0.1:10001", said.append)
    assert len(said) == 2


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dinoprobe\[ray\]'"):
        load_ray("local")
