"""`predict --out`: answers in a table, of which only what changed is scored again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import embed
from dinoprobe.heads import LogisticProbe, fit_novelty, left_out_scores
from dinoprobe.predicted import classifier_digest
from dinoprobe.store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
DESCRIBED = {"schema"} | set(
    re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "json.md").read_text("utf-8"))
)
SUFFIXES = (".parquet", ".lance")
IMAGES = 24


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == code, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    assert set(value) <= DESCRIBED, "docs/json.md describes every key"
    return value


def save_picture(path: Path, level: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(level, 30, (24, 24, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (1e9 + seed, 1e9 + seed))  # a file that is seconds old has no lasting stamp


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures, two of them with the same bytes, and a broken one."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(IMAGES):
        save_picture(root / f"{i:02}.png", 60 + 120 * (i % 2), i)
    shutil.copy2(root / "03.png", root / "it's a copy.png")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    os.utime(root / "broken.png", (1e9, 1e9))
    return root


def save_classifier(path: Path, encoder: Encoder, seed: int = 0) -> Path:
    """Dark and bright pictures, told apart by features of 40 others."""
    rng = np.random.default_rng(seed + 1000)
    levels = rng.normal(120, 40, 40)
    pictures = [np.clip(rng.normal(x, 30, (24, 24, 3)), 0, 255).astype(np.uint8) for x in levels]
    X = embed(open_dataset(pictures), encoder).features.X
    y = np.where(levels > 120, "bright", "dark").astype(object)
    left_out = left_out_scores(X, y, np.arange(40) % 4, "mahalanobis")
    novelty = fit_novelty(X, y, left_out)
    ImageClassifier(encoder, LogisticProbe(C=0.01).fit(X, y), novelty=novelty).save(path)
    return path


@pytest.fixture(scope="module")
def builtin() -> Encoder:
    return Encoder.from_pretrained("builtin")


@pytest.fixture(scope="module")
def classifier(builtin: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier") / "one", builtin)


def read(table: Path) -> dict[str, dict[str, Any]]:
    found = lance.dataset(table).to_table() if table.suffix == ".lance" else pq.read_table(table)
    rows = found.to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


class Calls(Counter[str]):
    """What the encoder and the head were given, and the largest block of it."""

    largest = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    encode, score = Encoder.encode, ImageClassifier.predict_features

    def counted_encode(self: Encoder, batch: Any) -> Any:
        found["encoded"] += len(batch)
        return encode(self, batch)

    def counted_score(self: ImageClassifier, X: Any) -> Any:
        found["scored"] += len(X)
        found.largest = max(found.largest, len(X))
        return score(self, X)

    monkeypatch.setattr(Encoder, "encode", counted_encode)
    monkeypatch.setattr(ImageClassifier, "predict_features", counted_score)
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_rows_are_those_of_predict(
    suffix: str, photos: Path, classifier: Path, tmp_path: Path
) -> None:
    table = tmp_path / f"answers{suffix}"
    sure = [row["probability"] for row in document("predict", classifier, photos)["rows"]]
    limit = np.median([probability for probability in sure if probability is not None]) + 1e-4
    found = document(
        "predict", classifier, photos, "--store", tmp_path / "store", "--out", table,
        "--all-probabilities", "--abstain-below", limit,
    )  # fmt: skip
    plain = document("predict", classifier, photos, "--abstain-below", limit)
    rows = read(table)
    assert set(rows) == {row["key"] for row in plain["rows"]}
    assert found["abstained"] == plain["abstained"] > 0
    assert found["flagged"] == plain["flagged"]
    assert (found["kept"], found["scored"], found["failed"]) == (0, IMAGES + 1, 1)
    assert found["encoded"] == IMAGES
    for expected in plain["rows"]:
        row = rows[expected["key"]]
        for name in ("label", "abstained", "novel", "labels"):
            assert row[name] == expected[name]
        assert row["top_labels"] == [score["label"] for score in expected["top"]]
        if "failure" in expected:
            assert expected["key"] == "broken.png"
            assert row["failure_kind"] == expected["failure"]["kind"]
            assert row["failure_reason"] == expected["failure"]["reason"]
            assert row["content_hash"] is row["probability"] is row["probabilities"] is None
            continue
        # The encoder's batches differ in their composition, not in their arithmetic.
        assert row["probability"] == pytest.approx(expected["probability"], abs=1e-6)
        assert row["novelty"] == pytest.approx(expected["novelty"], abs=1e-4)
        assert sorted(row["probabilities"], reverse=True) == row["top_probabilities"]
        assert row["failure_kind"] is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_what_changed_is_scored_again(
    suffix: str, photos: Path, classifier: Path, tmp_path: Path, calls: Calls
) -> None:
    table = tmp_path / f"answers{suffix}"
    command = ("predict", classifier, photos, "--store", tmp_path / "store", "--out", table)
    document(*command)
    before = read(table)
    written = table.stat().st_mtime_ns
    calls.clear()

    again = document(*command)
    assert (again["kept"], again["scored"], again["encoded"]) == (IMAGES + 2, 0, 0)
    assert not calls
    assert read(table) == before
    assert table.stat().st_mtime_ns == written, "nothing changed, nothing is written"

    save_picture(photos / "05.png", 180, 99)
    save_picture(photos / "new.png", 60, 100)
    (photos / "07.png").unlink()
    (photos / "it's a copy.png").unlink()
    changed = document(*command)
    assert changed["scored"] == calls["scored"] == changed["encoded"] == calls["encoded"] == 2
    assert (changed["kept"], changed["dropped"], changed["failed"]) == (IMAGES - 1, 2, 1)
    after = read(table)
    assert changed["rows"] == len(after) == IMAGES + 1
    assert after.keys() ^ before.keys() == {"07.png", "it's a copy.png", "new.png"}
    different = {key for key in after.keys() & before.keys() if after[key] != before[key]}
    assert different == {"05.png"}
    assert after["05.png"]["content_hash"] != before["05.png"]["content_hash"]

    shutil.copy2(photos / "00.png", photos / "broken.png")
    mended = document(*command)
    assert (mended["scored"], mended["encoded"], mended["failed"]) == (1, 0, 0)
    assert read(table)["broken.png"]["label"] == after["00.png"]["label"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_classifier_scores_all_and_encodes_nothing(
    suffix: str, photos: Path, classifier: Path, builtin: Encoder, tmp_path: Path, calls: Calls
) -> None:
    table, other = tmp_path / f"answers{suffix}", save_classifier(tmp_path / "other", builtin, 1)
    options = (photos, "--store", tmp_path / "store", "--out", table)
    first = document("predict", classifier, *options)
    calls.clear()
    found = document("predict", other, *options)
    assert (found["because"], found["kept"]) == ("classifier", 0)
    assert found["classifier"] != first["classifier"]
    assert found["scored"] == calls["scored"] == IMAGES + 1
    assert calls["encoded"] == found["encoded"] == 0
    rows = read(table)
    plain = document("predict", other, photos)["rows"]
    assert all(rows[row["key"]]["label"] == row["label"] for row in plain)
    assert document("predict", other, *options, "--top-k", "1")["because"] == "--top-k"
    assert "another --top-k" in invoke("predict", other, *options, "--top-k", "2").stdout


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_run_leaves_the_old_table(
    suffix: str, photos: Path, classifier: Path, builtin: Encoder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    table, other = tmp_path / f"answers{suffix}", save_classifier(tmp_path / "other", builtin, 1)
    options = (photos, "--store", tmp_path / "store", "--out", table)
    document("predict", classifier, *options)
    before = read(table)
    for module in ("feature_store", "commits"):
        monkeypatch.setattr(f"dinoprobe.store.{module}.PAGE_BYTES", 1)
    score, left = ImageClassifier.predict_features, iter(range(5))

    def interrupted(self: ImageClassifier, X: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return score(self, X)

    monkeypatch.setattr(ImageClassifier, "predict_features", interrupted)
    save_picture(photos / "05.png", 180, 99)
    assert invoke("predict", other, *options, "--json").exit_code == 130
    assert read(table) == before
    for number in range(10):
        save_picture(photos / f"more{number}.png", 60, number)
    assert invoke("predict", classifier, *options, "--json").exit_code == 130
    assert read(table) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".dinoprobe-")]


def test_memory_holds_a_block_of_features(
    photos: Path, classifier: Path, builtin: Encoder, tmp_path: Path, calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = 5
    for module in ("feature_store", "commits"):
        size = rows * 4 * builtin.dimension
        monkeypatch.setattr(f"dinoprobe.store.{module}.PAGE_BYTES", size)
    monkeypatch.setattr("dinoprobe.predicted.updating.BLOCK_ROWS", rows)
    for number in range(20):
        shutil.copy2(photos / "00.png", photos / f"copy{number}.png")
    table = tmp_path / "answers.parquet"
    found = document("predict", classifier, photos, "--store", tmp_path / "s", "--out", table)
    assert found["scored"] == calls["scored"] == IMAGES + 21
    assert calls.largest == rows


def test_damaged_rows_are_encoded_again(
    photos: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    options = (photos, "--store", tmp_path / "store", "--out")
    document("predict", classifier, *options, tmp_path / "one.parquet")
    damaged: list[str] = []
    blocks = FeatureStore.blocks

    def without_one(self: FeatureStore, *arguments: Any, **settings: Any) -> Any:
        for names, X in blocks(self, *arguments, **settings):
            first = 0 if damaged else 1
            damaged.extend(names[:first])
            yield names[first:], X[first:]

    monkeypatch.setattr(FeatureStore, "blocks", without_one)
    calls.clear()
    found = document("predict", classifier, *options, tmp_path / "two.parquet")
    assert (found["encoded"], calls["encoded"]) == (1, 1)
    assert read(tmp_path / "two.parquet") == read(tmp_path / "one.parquet")


@pytest.mark.skipif(find_spec("ray") is None, reason="no Ray here")
def test_a_cluster_encodes_and_this_process_scores(
    photos: Path, classifier: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.lance"
    document("predict", classifier, photos, "--store", tmp_path / "one", "--out", here)
    command = [
        sys.executable, "-m", "dinoprobe", "predict", classifier, photos, "--json", "--out", there,
        "--store", tmp_path / "two", "--engine", "ray", "--address", "local",
    ]  # fmt: skip
    tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False, env=os.environ | tokens,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (found["encoded"], found["scored"], found["failed"]) == (IMAGES, IMAGES + 1, 1)
    assert read(there) == read(here)
    again = document("predict", classifier, photos, "--store", tmp_path / "two", "--out", there)
    assert (again["encoded"], again["scored"], again["kept"]) == (0, 0, IMAGES + 2)


def test_a_digest_is_of_what_answers(classifier: Path, builtin: Encoder, tmp_path: Path) -> None:
    loaded = ImageClassifier.load_with(classifier, builtin)
    loaded.figures = {"accuracy": 1.0}
    loaded.save(tmp_path / "again")
    digest = classifier_digest(ImageClassifier.load_with(tmp_path / "again", builtin))
    assert digest == classifier_digest(loaded)
    assert loaded.novelty is not None
    loaded.novelty = None
    assert classifier_digest(loaded) != digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "s"], "--store without --out"),
        (["--engine", "ray"], "--engine without --out"),
        (["--all-probabilities"], "--all-probabilities without --out"),
        (["--out", "x.csv"], "ends in .parquet or .lance"),
        (["--out", "s3://bucket/x.parquet"], "object stores can not"),
        (["--out", "x.parquet", "--csv"], "expected one of them"),
        (["--out", "x.parquet", "more"], "2 sources"),
        (["--out", "nowhere/x.lance"], "folder does not exist"),
    ],
)
def test_what_can_not_be_is_refused(options: list[str], message: str, classifier: Path) -> None:
    result = invoke("predict", classifier, "photos", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["table.parquet", "table.lance", "text.parquet", "folder.lance"])
def test_what_others_wrote_is_left_alone(
    name: str, photos: Path, classifier: Path, tmp_path: Path
) -> None:
    place = tmp_path / name
    if name == "table.lance":
        lance.write_dataset(pa.table({"a": [1]}), place)
    elif name == "table.parquet":
        pq.write_table(pa.table({"a": [1]}), place)
    elif name == "text.parquet":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = invoke("predict", classifier, photos, "--out", place)
    assert result.exit_code == 2
    assert "give another place" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
