"""The demo as a newcomer runs it, twice."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest
from tests.integration.test_verbs import DESCRIBED
from typer.testing import CliRunner

from dinoprobe.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, object]:
    result = CliRunner().invoke(app, ["demo", "--out", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    value: dict[str, object] = json.loads(result.stdout)
    assert set(value) <= DESCRIBED, "docs/json.md describes every key"
    return value


def test_the_encoder_is_worth_more_than_pixels(first: dict[str, object]) -> None:
    assert first["schema"] == "dinoprobe.demo/1"
    assert first["n_test"] == 597
    assert first["n_train"] == 1200
    assert first["baseline_accuracy"] < 0.35  # type: ignore[operator]
    assert first["accuracy"] > 0.75  # type: ignore[operator]


def test_planted_faults_are_reported(first: dict[str, object], folder: Path) -> None:
    assert first["failed"] == first["planted_broken_files"] == 3
    assert first["planted_wrong_labels_found"] >= 3  # type: ignore[operator]
    with (folder / "run-001" / "failures.csv").open() as file:
        failed = {row["key"]: row["kind"] for row in csv.DictReader(file)}
    assert failed == {
        "train/0/a-web-page.jpg": "not-an-image",
        "train/0/cut-off.png": "truncated",
        "train/0/empty.png": "empty",
    }


def test_no_picture_is_on_both_sides(first: dict[str, object], folder: Path) -> None:
    with (folder / "run-001" / "split.csv").open() as file:
        parts = {row["content_hash"]: row["split"] for row in csv.DictReader(file)}
    assert len(parts) == 1797


def test_a_second_demo_embeds_nothing_and_says_the_same(
    first: dict[str, object], folder: Path
) -> None:
    pictures = {p: p.stat().st_mtime_ns for p in (folder / "digits").rglob("*.png")}
    result = CliRunner().invoke(app, ["demo", "--out", str(folder), "--json"])
    second = json.loads(result.stdout)
    assert second["cached"] == second["embedded"] == 1797
    for key in ("accuracy", "baseline_accuracy", "fingerprint", "planted_wrong_labels_found"):
        assert second[key] == first[key]
    assert second["run"] != first["run"]
    assert pictures == {p: p.stat().st_mtime_ns for p in (folder / "digits").rglob("*.png")}


def test_the_data_check_finds_what_is_planted(first: dict[str, object], folder: Path) -> None:
    arguments = ["check", str(folder / "digits"), "-e", "builtin", "--json", "--quiet"]
    places = ["--store", str(folder / "store"), "--out", str(folder / "check")]
    result = CliRunner().invoke(app, [*arguments, *places])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cached"] == found["embedded"] == 1797
    planted = json.loads((folder / "pictures.json").read_text())["planted"]
    labels = [f["key"] for f in found["findings"] if f["kind"] == "label"]
    assert len(set(labels[: 2 * len(planted)]) & set(planted)) >= 5
    broken = {f["key"]: f["related"] for f in found["findings"] if f["kind"] == "unusable"}
    assert broken == {
        "train/0/a-web-page.jpg": "not-an-image",
        "train/0/cut-off.png": "truncated",
        "train/0/empty.png": "empty",
    }
    assert "leak" not in found["counts"]


def test_in_words_it_ends_with_the_next_commands(first: dict[str, object], folder: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(folder)])
    assert "raw pixels" in result.stdout
    assert "6 wrong labels" in result.stdout
    assert "train/0/empty.png: an empty file" in result.stdout
    assert result.stdout.rstrip().endswith("dinoprobe train YOUR_FOLDER --encoder vits16")
