"""The scripts that time whole jobs: each side works, and tables stand where they belong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit

from dinoprobe.encoder import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def pictures(folder: Path) -> Path:
    """Dark and bright noise, 12 of each to train on and 6 to test on."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, level in (("dark", 0), ("bright", 160)):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(level, level + 90, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{number}.png")
    return folder


def test_both_sides_of_the_whole_job_judge_the_same_images(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    train, weights = script("train"), str(save_vit(tmp_path / "weights"))
    train.subset(pictures(tmp_path / "all"), tmp_path / "some", {"train": 20, "test": 8}, 0)
    tutorial = train.tutorial_job(tmp_path / "some", weights, seed=0)
    ours = train.dinoprobe_job(str(tmp_path / "some"), weights, "float32")
    assert tutorial["n_test"] == ours["n_test"] == 8
    assert ours["accuracy"] == 1
    assert tutorial["interval"][0] <= tutorial["accuracy"] <= tutorial["interval"][1]
    assert set(tutorial) | {"protocol"} == set(ours)


def test_the_table_of_whole_jobs(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    train = script("train")
    common = {"accuracy": 0.5, "n_test": 8}
    ours = {"seconds": 2.0, "process_seconds": 5.0, "ratio": 10.0, "ratio_of_processes": 5.0}
    entry = {
        "encoder": "vits16", "random_weights": True, "data": "clothing",
        "tutorial": {**common, "seconds": 20.0, "process_seconds": 25.0},
        "dinoprobe": {"float32": {**common, **ours}},
    }  # fmt: skip
    result = {**facts("train"), "rounds": 3, "results": [entry]}
    found = written(train, result, tmp_path / "document.md")
    assert "| 20.0 s | 2.0 s | 10.0 x | 25.0 s to 5.0 s: 5.0 x | 50 % of 8 |" in found


def test_a_second_run_is_timed_and_shown(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerun = script("rerun")
    monkeypatch.setattr(rerun, "YOUNG_S", 0)
    encoder = Encoder.from_pretrained(save_vit(tmp_path / "weights"), device="cpu")
    seconds = rerun.in_process(tmp_path, encoder, 4)
    assert {name: len(values) for name, values in seconds.items()} == {
        "first": 1, "again": rerun.AGAIN, "more": 1,
    }  # fmt: skip
    ratios = rerun.with_ratios({"first": [10.0], "again": [0.3, 0.1, 0.1], "more": [0.2]})
    about = {"encoder": "vits16", "precision": "bfloat16", "images": 1000, "added": 10}
    result = {**facts("rerun"), **about, "results": {"in_process": ratios}}
    found = written(rerun, result, tmp_path / "document.md")
    assert "| 10.0 s | 0.100 s, 100 x faster | 0.200 s, 2.0 % of the first |" in found


def facts(name: str) -> dict[str, Any]:
    return {
        "command": f"python benchmarks/{name}.py",
        "date": "2026-11-24",
        "machine": "2 x CPU",
        "versions": {"torch": "2"},
    }


def written(module: ModuleType, result: dict[str, Any], document: Path) -> str:
    """The document, twice written; what stands around the table must stay."""
    document.write_text(f"before\n\n{module.START}\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    module.write_document(result, document)
    once = document.read_text()
    module.write_document(result, document)
    assert document.read_text() == once
    assert once.startswith("before\n\n")
    assert once.endswith("<!-- end -->\nafter\n<!-- end -->\n")
    assert "old" not in once
    return once


@pytest.mark.parametrize("name", ["knn", "lda", "ridge", "linear-grid", "logistic-path"])
def test_heads_are_timed_beside_scikit_learn(
    script: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    heads = script("heads")
    monkeypatch.setattr(heads, "DEFAULT", heads.Shape(400, 200, 12, 4, 1.0))
    monkeypatch.setattr("sys.argv", ["heads.py", "--only", name, "--json"])
    heads.main()
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == f"python benchmarks/heads.py --only {name} --json"
    found = document["entries"].pop(name)
    assert document["entries"] == {}
    assert found["shapes"]["rows"] == 400
    ratio = "ratio_to_tutorial" if name == "linear-grid" else "ratio_to_sklearn"
    assert found[ratio] == pytest.approx(found["peer_seconds"] / found["seconds"])
    assert found["accuracy"] == pytest.approx(found["peer_accuracy"], abs=0.05)
    assert (found["objective_gap"] is None) == (name != "logistic-path")
    assert found["objective_gap"] is None or found["objective_gap"] < 1e-3


def test_memory_and_many_strengths_are_measured_too(
    script: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = script("heads")
    small = heads.Shape(300, 100, 12, 3, 1.0)
    monkeypatch.setattr(heads, "DEFAULT", small)
    monkeypatch.setattr(heads, "SHAPES", {"dinov3-logreg": (small, small)})
    for name in ("dinov3-logreg", "memory"):
        monkeypatch.setattr("sys.argv", ["heads.py", "--only", name, "--json"])
        heads.main()
        found = json.loads(capsys.readouterr().out)["entries"][name]
        if name == "memory":
            assert found["features_bytes"] == 300 * 12 * 4
            assert found["peak_bytes_beyond_features"] < 500_000_000  # little, on so few rows
        else:
            assert found["peer_strengths"] == 12
            assert found["objective_gap"] < 1e-3


def test_features_of_the_heads_are_seeded_and_standardised(
    script: Callable[[str], ModuleType],
) -> None:
    heads = script("heads")
    data, again, other = (heads.made(heads.SMALL, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(data.X, again.X)
    assert not np.array_equal(data.X, other.X)
    np.testing.assert_allclose(data.X.std(axis=0), 1, rtol=1e-4)


def test_what_the_parent_of_several_processes_takes_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its own name, under which the processes that it starts import it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    devices, crew = (
        importlib.import_module("devices"),
        importlib.import_module("dinoprobe.engine.crew"),
    )
    monkeypatch.setattr(crew, "work", crew.work)  # which the benchmark replaces
    found = devices.gathered(500, tmp_path)
    assert found["images"] == 500
    assert found["images_per_second"] == pytest.approx(500 / found["seconds"])
    rounds = [{"seconds": 1.0}, {"seconds": 3.0}, {"seconds": 2.0}]
    assert devices.medians(rounds)["seconds"] == 2
    assert devices.ratios(rounds, rounds[::-1])["seconds"] == 1


def test_the_data_check_is_timed_and_finds_what_is_planted(
    script: Callable[[str], ModuleType],
) -> None:
    bench = script("check")
    found = bench.measure(bench.planted(1_000, 128, 5))
    assert found["planted"] == {"label": 20, "copy": 10, "outlier": 2}
    assert found["found"]["copy"] >= 9
    assert found["found"]["label"] >= 18
    assert found["seconds"] > 0
    assert found["cpu_seconds"] > 0
    assert json.dumps(found)


def test_scoring_from_a_store_is_timed(script: Callable[[str], ModuleType]) -> None:
    for kind in ("parquet", "lance"):
        found = script("predict_table").measure(300, 8, 3, kind)
        assert set(found["seconds"]) == {"all", "nothing", "one_percent"}
        assert min(found["seconds"].values()) > 0
        assert found["share_of_head"] == found["head_seconds"] / found["seconds"]["all"]
