"""The model of docs/scaling.md: it counts what the store does, and its document is its own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dinoprobe.datasets import open_dataset
from dinoprobe.engine import Flush, embed
from dinoprobe.ray_engine import driver, worker
from dinoprobe.store import FeatureStore, commits

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("scaling")


def test_the_document_holds_what_the_model_says(scaling: ModuleType) -> None:
    tables = importlib.import_module("scaling_tables")
    stored = json.loads(scaling.RESULT.read_text(encoding="utf-8"))
    speed = json.loads(scaling.SPEED.read_text(encoding="utf-8"))
    computed = json.loads(json.dumps(scaling.document(stored["runs"], speed)))
    assert computed == stored
    shown = scaling.DOCUMENT.read_text(encoding="utf-8")
    inside = shown.partition(tables.START)[2].partition(tables.END)[0]
    assert inside.strip() == tables.text(computed)


def test_the_prose_has_the_figures_of_the_tables(scaling: ModuleType) -> None:
    stored = json.loads(scaling.RESULT.read_text(encoding="utf-8"))
    prose = scaling.DOCUMENT.read_text(encoding="utf-8").partition("<!-- written")[0]
    of_500m = next(one for one in stored["tables"] if one["rows"] == 500_000_000)
    assert f"{of_500m['files_after']:,} files in {of_500m['jobs']} jobs" in prose
    assert f"would take {of_500m['driver_bytes_one_job'] / 1e9:.0f} GB" in prose
    assert f"driver then takes {of_500m['driver_bytes_a_job'] / 1e9:.0f} GB" in prose
    fed = next(
        one for one in stored["plans"] if (one["encoder"], one["node"]) == ("vits16", "h200")
    )
    assert f"{fed['cores_a_gpu']} cores of this kind" in prose
    full = [one for one in stored["plans"] if one["images"] == 10**9 and one["next"] == "driver"]
    assert f"{100 * max(one['next_share'] for one in full):.0f} % of what it can record" in prose


def test_every_input_says_where_it_is_from(scaling: ModuleType) -> None:
    stored = json.loads(scaling.RESULT.read_text(encoding="utf-8"))["inputs"]
    assert {one["kind"] for one in stored.values()} == {"measured", "published", "assumed"}
    assert all(one["source"] for one in stored.values())
    assert all(one["kind"] != "measured" for name, one in stored.items() if "H200" in name)


def test_the_limits_are_those_of_the_package(scaling: ModuleType) -> None:
    assert scaling.ROWS_PER_FILE == commits._ROWS_PER_FRAGMENT == worker._ROWS_PER_FILE
    assert driver._LARGEST_CHUNK == scaling.ROWS_PER_FILE
    assert scaling.CHUNKS_PER_WORKER == driver._CHUNKS_PER_ACTOR
    assert scaling.SMALLEST_CHUNK == driver._SMALLEST_CHUNK
    assert scaling.MOST_FRAGMENTS == commits._MAX_FRAGMENTS


@pytest.mark.parametrize("commits_made", [3, 34])
def test_files_and_bytes_of_a_real_run(
    scaling: ModuleType, tmp_path: Path, commits_made: int
) -> None:
    runs = importlib.import_module("scaling_run")
    images = 2 * commits_made
    runs.write_images(tmp_path / "images", images)
    dataset, store = open_dataset(str(tmp_path / "images")), FeatureStore(tmp_path / "store")
    flush = Flush(rows=2, seconds=600)
    done = embed(dataset, runs.Corner(), store=store, flush=flush)
    assert done.encoded == images
    found = runs.left_behind(tmp_path / "store")
    assert found["files"] == scaling.local_files(commits_made)
    assert found["fragments"] == scaling.compacted(images, commits_made)
    assert found["features_bytes"] >= images * scaling.row_bytes(runs.DIMENSION, 1)


def test_a_job_of_slow_workers_and_one_of_fast_ones(scaling: ModuleType) -> None:
    # 512 chunks of 39,063 images: 391 s each at 100 images/s, 8 s at 5,000
    assert scaling.files_of_job(20_000_000, 32, 100, 30) == 512 * 14
    assert scaling.files_of_job(20_000_000, 32, 5_000, 30) == 512
    assert scaling.files_of_job(10, 1, 100, 30) == 1
    assert scaling.commits_of_job(1_000, 10, 30) == 4
    assert scaling.commits_of_job(1, 10, 30) == 1


def test_a_gpu_is_bound_by_the_slower_of_model_and_decoding(scaling: ModuleType) -> None:
    speed = json.loads(scaling.SPEED.read_text(encoding="utf-8"))
    runs = json.loads(scaling.RESULT.read_text(encoding="utf-8"))["runs"]
    given = scaling.inputs(runs, speed)
    small = scaling.plan(given, 10**6, "vits16", "h200")
    large = scaling.plan(given, 10**6, "vitl16", "h200")
    assert (small["bound"], large["bound"]) == ("decoding", "model")
    assert small["images_per_s_a_node"] == 16 * given["decoding, a core"].value
    assert large["images_per_s_a_node"] == given["vitl16, H200"].value
