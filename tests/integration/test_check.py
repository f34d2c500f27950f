"""`dinoprobe check` end to end: planted faults, files, no labels, and the note of `train`."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.integration.test_verbs import document, invoke

import dinoprobe as dp

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {"red": (220, 40, 40), "blue": (50, 60, 220)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A given split; a mirrored copy in the test part, a wrong label, a broken and an odd file."""
    root = tmp_path_factory.mktemp("checked") / "photos"
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 24)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                rough = np.clip(np.array(colour) + rng.normal(0, 40, (9, 12, 3)), 0, 255)
                image = Image.fromarray(rough.astype(np.uint8)).resize((96, 72))
                image.save(root / part / name / f"{i:02d}.png")
    source = root / "train" / "red" / "03.png"
    with Image.open(source) as image:
        ImageOps.mirror(image).save(root / "test" / "red" / "copy.jpg", quality=95)
    (root / "train" / "blue" / "00.png").rename(root / "train" / "red" / "wrong.png")
    shutil.copy(root / "train" / "red" / "05.png", root / "train" / "red" / "again.png")
    (root / "train" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    Image.new("RGB", (96, 72), (10, 200, 10)).save(root / "train" / "blue" / "blank.png")
    return root


@pytest.fixture(scope="module")
def checked(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    base = tmp_path_factory.mktemp("check")
    out = base / "photos-check-001"
    found = document("check", photos, "-e", "builtin", "--store", base / "store", "--out", out)
    return out, found


def test_what_was_planted_is_told(checked: tuple[Path, dict[str, object]]) -> None:
    out, found = checked
    assert found["schema"] == "dinoprobe.check/1"
    assert found["parts"] == {"train": 50, "test": 49}
    findings = found["findings"]
    assert isinstance(findings, list)
    told = {(f["kind"], f["key"], f["related"]) for f in findings}
    assert ("leak", "train/red/03.png", "test/red/copy.jpg") in told
    assert ("unusable", "train/red/broken.jpg") in {pair[:2] for pair in told}
    assert ("blank", "train/blue/blank.png", None) in told
    (leak,) = (f for f in findings if f["kind"] == "leak")
    assert leak["reason"].startswith("mirrored, as test/red/copy.jpg")
    (again,) = (f for f in findings if f["kind"] == "duplicate")
    assert {again["key"], again["related"]} == {"train/red/05.png", "train/red/again.png"}
    labels = [f for f in findings if f["kind"] == "label"]
    assert (labels[0]["key"], labels[0]["suggestion"]) == ("train/red/wrong.png", "blue")
    assert findings[0]["severity"] == "high"
    assert {path.name for path in out.iterdir()} == {"check.json", "check.csv"}
    saved = json.loads((out / "check.json").read_text())
    assert {**saved, "out": str(out)} == found
    with (out / "check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [f["key"] or "" for f in findings]
    assert list(rows[0])[:7] == ["key", "kind", "score", "suggestion", "related", "split", "label"]


def test_in_words_the_worst_comes_first(
    checked: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    store = checked[0].parent / "store"
    result = invoke("check", photos, "-e", "builtin", "--store", store, "--out", tmp_path / "c")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("99 images of 2 classes (train 50, test 49); 1 could not be used")
    assert lines[2] == "Look at these first"
    assert "1 copy across parts" in lines[3]
    assert len(lines) < 40
    assert any(line.startswith("Trial: of 5 labels changed on purpose") for line in lines)
    assert lines[-1].endswith("check.csv")
    again = invoke("check", photos, "-e", "builtin", "--store", store, "--out", tmp_path / "c")
    assert again.exit_code == 2
    assert "not an empty directory" in again.stderr


def test_images_without_labels_are_checked(
    checked: tuple[Path, dict[str, object]], photos: Path, tmp_path: Path
) -> None:
    for path in (photos / "train").rglob("*.png"):
        shutil.copy(path, tmp_path / f"{path.parent.name}-{path.name}")
    shutil.copy(tmp_path / "red-05.png", tmp_path / "red-06 (copy).png")
    store = checked[0].parent / "store"
    found = document(
        "check", str(tmp_path / "*.png"), "-e", "builtin", "--store", store, "--out", tmp_path / "c"
    )
    assert found["labelled"] == 0
    assert found["counts"] == {"duplicate": 2, "blank": 1} | {
        kind: n
        for kind, n in dict(found["counts"]).items()
        if kind == "outlier"  # type: ignore[call-overload]
    }


def test_train_notes_the_check(checked: tuple[Path, dict[str, object]], photos: Path) -> None:
    base = checked[0].parent
    found = document(
        "train", photos, "-e", "builtin", "--head", "lda", "--store", base / "store",
        "--out", base / "run",
    )  # fmt: skip
    (note,) = (n for n in found["notes"] if "dinoprobe check found" in n)  # type: ignore[attr-defined]
    assert "1 copy across parts" in note
    assert "dinoprobe check found" in (base / "run" / "report.html").read_text(encoding="utf-8")


def test_one_call_in_python(photos: Path, tmp_path: Path) -> None:
    encoder = dp.Encoder.from_pretrained("builtin", device="cpu")
    found = dp.check(photos / "train", encoder, store=str(tmp_path / "store"))
    assert found.n == 50
    assert len(found.of("duplicate")) == 1
    assert found.of("label")[0].key == "red/wrong.png"


def test_no_encoder_and_no_images_are_told(tmp_path: Path) -> None:
    result = invoke("check", tmp_path, "--json")
    assert result.exit_code == 2
    assert "no encoder was given" in json.loads(result.stdout)["message"]
    assert invoke("check", tmp_path / "none", "-e", "builtin").exit_code == 2
