"""Copies planted among real pictures are found, and few others; mirrored and cut ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.unit.test_duplicates import saved
from tests.unit.test_partition import features

import dinoprobe as dp
from dinoprobe.audit.copies import copies
from dinoprobe.audit.neighbourhood import neighbourhood
from dinoprobe.audit.pictures import Pictures, facts_of
from dinoprobe.demo.render import digit_parts, render_scenes
from dinoprobe.duplicates import pixels_of
from dinoprobe.lookalikes import _areas, lookalikes
from dinoprobe.preprocess import decode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dinoprobe.types import Features

HOW = ("resized", "re-encoded", "mirrored", "cropped")


@pytest.fixture(scope="module")
def encoder() -> dp.Encoder:
    return dp.Encoder.from_pretrained("builtin", device="cpu")


def altered(image: Image.Image, how: str, rng: np.random.Generator) -> bytes:
    """A copy; a cut one keeps nine tenths of each side, anywhere."""
    width, height = image.size
    if how == "resized":
        return saved(image.resize((width * 6 // 10, height * 6 // 10)), format="PNG")
    if how == "re-encoded":
        return saved(image, format="JPEG", quality=60)
    if how == "mirrored":
        return saved(ImageOps.mirror(image), format="JPEG", quality=90)
    left, top = (int(rng.integers(0, side // 10 + 1)) for side in (width, height))
    box = (left, top, left + width * 9 // 10, top + height * 9 // 10)
    return saved(image.crop(box), format="JPEG", quality=90)


def planted(
    files: Sequence[bytes], encoder: dp.Encoder, each: int
) -> tuple[dict[str, float], float]:
    """The share of copies of each kind that stand with their original, and the precision."""
    rng = np.random.default_rng(0)
    rows = rng.choice(len(files), each * len(HOW), replace=False).tolist()
    ways = [HOW[place % len(HOW)] for place in range(len(rows))]
    images = [Image.fromarray(decode(files[row]).pixels) for row in rows]
    made = [altered(image, how, rng) for image, how in zip(images, ways, strict=True)]
    found = copied([*files, *made], encoder)
    own = {
        (row, len(files) + place): way
        for place, (row, way) in enumerate(zip(rows, ways, strict=True))
    }
    share = {
        how: sum(way == how and pair in found for pair, way in own.items()) / each for how in HOW
    }
    return share, len(found & set(own)) / len(found)


def copied(files: Sequence[bytes], encoder: dp.Encoder) -> set[tuple[int, int]]:
    dataset = dp.open_dataset(list(files))
    data = dp.embed(dataset, encoder)
    samples = {sample.key: sample for sample in dataset.samples}
    read = pixels_of(data, dataset, encoder.preprocessing)
    found = copies(data, Pictures(facts_of(data, samples), read), neighbourhood(data))
    place = {key: row for row, key in enumerate(data.keys)}
    pairs = [(place[f.related or ""], place[f.key or ""]) for f in found.findings]
    return {(min(pair), max(pair)) for pair in pairs}


def test_copies_of_real_pictures(encoder: dp.Encoder, shared_data: Path) -> None:
    signs = sorted((shared_data / "sign-digits").rglob("*.JPG"))[::6]
    clothes = sorted((shared_data / "clothing" / "train").rglob("*.jpg"))[::4]
    share, precision = planted([p.read_bytes() for p in (*signs, *clothes)], encoder, 30)
    assert precision >= 0.95
    assert np.mean(list(share.values())) >= 0.9
    assert min(share["resized"], share["re-encoded"], share["mirrored"]) >= 0.95
    assert share["cropped"] >= 0.8


def test_copies_of_rendered_pictures(encoder: dp.Encoder) -> None:
    scenes = render_scenes(digit_parts()[0][:120], 0)
    files = [saved(Image.fromarray(scene), format="PNG") for scene in scenes]
    share, precision = planted(files, encoder, 8)
    assert precision >= 0.95
    assert min(share.values()) >= 0.9


def some(labels: Sequence[str | None], splits: Sequence[str | None], hashes: str) -> Features:
    return features(list(labels), list(splits), hashes=list(hashes))


def test_the_worst_kind_of_copy_is_told() -> None:
    data = some(
        ["a", "a", "a", "b", "b", "b"],
        ["train", "test", "train", "train", "train", "val"],
        "xxyyzz",
    )
    found = copies(data, Pictures(), None)
    told = {f.key: (f.kind, f.severity, f.related, f.suggestion) for f in found.findings}
    assert told == {
        "000.png": ("leak", "high", "001.png", "remove"),
        "003.png": ("conflict", "high", "002.png", "a"),
        "004.png": ("leak", "medium", "005.png", "remove"),
    }
    assert found.figures["identical"] == 3
    assert [f.cluster for f in found.findings] == [1, 2, 3]
    assert "Pixels are not at hand" in found.notes[0]


def test_labels_are_not_needed() -> None:
    found = copies(some([None] * 3, [None] * 3, "xxy"), Pictures(), None)
    (finding,) = found.findings
    assert (finding.kind, finding.label, finding.related) == ("duplicate", None, "000.png")


def test_thumbnails_of_one_colour_are_like_no_other() -> None:
    blank = np.full((4, 32, 32, 3), 200, np.uint8)
    blank[:2] += np.random.default_rng(0).integers(0, 2, (2, 32, 32, 3), dtype=np.uint8)
    assert lookalikes(blank) == []
    assert lookalikes(blank[:1]) == []


def test_areas_are_means_of_pixels() -> None:
    values = np.arange(32.0)
    np.testing.assert_allclose(_areas(0, 1, 8, 32) @ values, values.reshape(8, 4).mean(axis=1))
    part = _areas(0.05, 0.9, 8, 32) @ values  # 28.8 pixels from 1.6 on
    np.testing.assert_allclose(np.diff(part), 3.6, atol=0.3)


def test_a_cut_and_a_mirrored_thumbnail_ask_for_their_picture() -> None:
    rng = np.random.default_rng(0)
    rough = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)) for _ in range(30)]
    whole = [image.resize((200, 200), Image.Resampling.BICUBIC) for image in rough]
    both = [*whole, whole[3].crop((12, 5, 192, 185)), ImageOps.mirror(whole[7])]
    small = [np.asarray(image.resize((32, 32), Image.Resampling.BOX)) for image in both]
    assert lookalikes(np.stack(small)) == [(3, 30), (7, 31)]
