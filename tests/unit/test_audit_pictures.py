"""Odd files: what they are told to be, and that ordinary ones are not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.unit.test_duplicates import saved

import dinoprobe as dp
from dinoprobe.audit.pictures import facts_of, failed_files, odd_files
from dinoprobe.errors import ImageError
from dinoprobe.preprocess import image_facts

if TYPE_CHECKING:
    from pathlib import Path


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Kinds by file, of 60 ordinary pictures and one of each oddness."""
    folder = tmp_path_factory.mktemp("odd")
    for i in range(60):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 64)).save(folder / f"{i:02d}.png")
    noise(80, 20).save(folder / "small.png")
    noise(400, 90).save(folder / "long.png")
    noise(8000, 6400, "L").save(folder / "large.jpg", quality=20)
    Image.new("RGB", (80, 64), (200, 10, 10)).save(folder / "blank.png")
    noise(80, 64, "L").save(folder / "grey.png")
    Image.fromarray(np.zeros((64, 80), np.uint16) + np.arange(80, dtype=np.uint16) * 800).save(
        folder / "deep.png"
    )
    noise(80, 64, "RGBA").save(folder / "glass.png")
    (folder / "named.jpg").write_bytes(saved(noise(81, 64), format="PNG"))
    frames = [noise(80, 64), Image.new("RGB", (80, 64))]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "empty.png").write_bytes(b"")
    dataset = dp.open_dataset(folder)
    features = dp.embed(dataset, dp.Encoder.from_pretrained("builtin", device="cpu"))
    facts = facts_of(features, {sample.key: sample for sample in dataset.samples})
    kinds: dict[str, set[str]] = {}
    for finding in (*odd_files(features, facts), *failed_files(features)):
        assert json.dumps(finding.to_dict())
        assert finding.reason
        assert finding.action
        kinds.setdefault(finding.key or "", set()).add(finding.kind)
    return kinds


def test_each_odd_file_is_told_as_what_it_is(found: dict[str, set[str]]) -> None:
    assert found == {
        "blank.png": {"blank"},
        "deep.png": {"colours"},
        "empty.png": {"unusable"},
        "glass.png": {"colours"},
        "grey.png": {"colours"},
        "large.jpg": {"large", "colours"},
        "long.png": {"elongated"},
        "moving.gif": {"animated"},
        "named.jpg": {"extension"},
        "small.png": {"small", "elongated"},
    }


def test_facts_of_one_file() -> None:
    facts = image_facts(saved(noise(500, 300), format="JPEG"))
    assert (facts.format, facts.width, facts.height) == ("JPEG", 500, 300)
    assert (facts.colours, facts.more_frames) == ("colour", False)
    assert facts.thumbnail.shape == (32, 32, 3)
    assert facts.thumbnail.dtype == np.uint8
    array = image_facts(np.zeros((40, 30), dtype=np.uint16))
    assert (array.format, array.colours, array.width) == (None, "deep", 30)
    with pytest.raises(ImageError, match="empty file"):
        image_facts(b"")


def test_a_file_is_upright_before_it_is_measured() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    facts = image_facts(saved(noise(90, 40), format="JPEG", exif=turned))
    assert (facts.width, facts.height) == (40, 90)


def test_odd_files_of_others_give_facts_or_a_failure(shared_corpus: Path) -> None:
    """Nothing but ImageError comes, whatever the file; and most can be told of."""
    told = 0
    files = [path for path in sorted(shared_corpus.rglob("*")) if path.is_file()]
    for path in files:
        if path.stat().st_size > 2_000_000:
            continue
        try:
            facts = image_facts(path.read_bytes(), bands=(1, 2, 3))
        except ImageError:
            continue
        told += 1
        assert facts.thumbnail.shape == (32, 32, 3), path
        assert min(facts.width, facts.height) > 0, path
    assert told > 100
