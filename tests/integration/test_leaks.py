"""Leaks planted in real pictures, and seen; and a test part that no choice can profit from."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import EncoderSettings
from dinoprobe.evaluation import wilson
from dinoprobe.train import TrainConfig, train

DIGITS = "01235"


def settings(data: Path, place: Path, **options: Any) -> TrainConfig:
    return TrainConfig(
        data=DataSettings(source=str(data)),
        encoder=EncoderSettings(name="builtin", device="cpu"),
        store=str(place.parent / "store"),
        out=str(place),
        **options,
    )


def signs(shared_data: Path, digit: str) -> list[Path]:
    return sorted((shared_data / "sign-digits" / digit).iterdir())[:16]


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(source, folder / source.name))


@pytest.fixture
def given(shared_data: Path, tmp_path: Path) -> Path:
    """Hand signs with a split: 60 to train on, 20 to test."""
    for digit in DIGITS:
        for place, path in enumerate(signs(shared_data, digit)):
            copied(path, tmp_path / "data" / ("train" if place < 12 else "test") / digit)
    return tmp_path / "data"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_planted_leaks_are_listed_and_their_effect_is_told(given: Path, tmp_path: Path) -> None:
    planted = {}
    sources = sorted((given / "train").rglob("*.JPG"))
    for place, (name, kind) in enumerate(
        {"same.jpg": "identical", "again.jpg": "near", "small.png": "near"}.items()
    ):
        source = sources[place * 20]
        to = given / "test" / source.parent.name / name
        image = Image.open(source).convert("RGB")
        if kind == "identical":
            shutil.copy(source, to)
        elif name == "again.jpg":
            image.save(to, quality=50)
        else:
            image.resize((70, 70)).save(to)
        planted[str(to.relative_to(given))] = (str(source.relative_to(given)), kind)
    done = train(settings(given, tmp_path / "run", head="lda"))
    found = {
        row["key"]: (row["other_key"], row["kind"]) for row in rows_of(done.path / "leaks.csv")
    }
    assert found == planted
    assert any("1 identical images stand in two parts" in note for note in done.summary["notes"])
    assert any("2 test images are nearly identical" in n for n in done.summary["notes"])
    kept = [
        row["correct"] == "1"
        for row in rows_of(done.path / "predictions.csv")
        if row["key"] not in planted
    ]
    assert len(kept) == 20
    assert done.summary["without_leaks"] == {
        "left_out": 3,
        "n": 20,
        "accuracy": sum(kept) / 20,
        "interval": list(wilson(sum(kept), 20)),
    }
    written = json.loads((done.path / "evaluation.json").read_text())
    assert written["without_leaks"] == done.summary["without_leaks"]
    page = (done.path / "report.html").read_text()
    assert "Without 3 leaked test images" in page
    assert "3 test images stand in another part too" in page
    assert (
        "3 test images stand in another part too"
        in (done.path / "classifier" / "README.md").read_text()
    )


def test_a_split_made_here_keeps_altered_copies_on_one_side(
    shared_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for digit in DIGITS:
        for path in signs(shared_data, digit)[:8]:
            whole = copied(path, data / digit)
            Image.open(whole).convert("RGB").save(data / digit / f"{path.stem}-b.jpg", quality=60)
    done = train(settings(data, tmp_path / "run", head="lda", test_fraction=0.3))
    parts = {row["key"]: row["split"] for row in rows_of(done.path / "split.csv")}
    assert len(parts) == 80
    assert set(parts.values()) == {"train", "test"}
    for key, part in parts.items():
        if key.endswith(".JPG"):
            assert parts[key.replace(".JPG", "-b.jpg")] == part
    assert rows_of(done.path / "leaks.csv") == []
    assert done.summary["without_leaks"] is None
    assert any(n.startswith("80 images are nearly identical") for n in done.summary["notes"])


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("logistic", {}),
        ("lda", {}),
        ("lda", {"select": "one-se"}),
        ("ridge", {}),
        ("knn", {}),
        ("prototype", {}),
    ],
)
def test_nothing_that_is_chosen_depends_on_the_test_part(
    given: Path, tmp_path: Path, head: str, options: dict[str, str]
) -> None:
    """Test images become noise and change their classes: the classifier keeps every bit."""
    runs = []
    for name in ("true", "garbage"):
        if name == "garbage":
            rng = np.random.default_rng(0)
            shutil.rmtree(given / "test")
            for place in range(30):
                folder = given / "test" / DIGITS[place % 4]
                folder.mkdir(parents=True, exist_ok=True)
                noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{place}.png")
        runs.append(train(settings(given, tmp_path / name, head=head, **options)))
    true, garbage = (run.path for run in runs)
    assert runs[0].summary["n_test"] != runs[1].summary["n_test"]
    metrics = [(path / "metrics.jsonl").read_bytes() for path in (true, garbage)]
    assert metrics[0] == metrics[1]
    weights = [(path / "classifier" / "head.safetensors").read_bytes() for path in (true, garbage)]
    assert weights[0] == weights[1]
    described = [runs[i].classifier for i in (0, 1)]
    assert described[0].training["head"] == described[1].training["head"]
    assert described[0].sets == described[1].sets
    fitted = [run.context.calibration for run in runs]
    if fitted[0] is not None and fitted[1] is not None:
        for figure in ("temperature", "n", "error_before", "error_after", "log_loss_after"):
            assert getattr(fitted[0], figure) == getattr(fitted[1], figure)
    assert (fitted[0] is None) == (fitted[1] is None) == (head != "logistic")
    assert (true / "suspects.csv").read_bytes() == (garbage / "suspects.csv").read_bytes()
