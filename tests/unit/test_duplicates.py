"""Nearly identical images: found among altered copies of real pictures, and not among others."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from tests.unit.test_partition import features

import dinoprobe as dp
from dinoprobe import duplicates
from dinoprobe.duplicates import (
    Leak,
    NearPair,
    clusters,
    leaks,
    near_duplicates,
    neighbours,
    too_many,
    without_leaks,
)
from dinoprobe.evaluation import wilson
from dinoprobe.likeness import Look, correlation
from dinoprobe.partition import dealt_folds, partition, set_aside
from dinoprobe.preprocess import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.types import Features


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def altered(image: Image.Image, how: str) -> bytes:
    width, height = image.size
    if how == "quality":
        return saved(image, format="JPEG", quality=40)
    if how == "size":
        return saved(image.resize((width * 3 // 5, height * 3 // 5)), format="PNG")
    if how == "light":
        return saved(ImageEnhance.Brightness(image).enhance(1.05), format="PNG")
    return saved(image.crop((max(1, width // 50), 0, width, height)), format="PNG")


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[bytes]:
    """60 hand signs of six classes, alike in ground, light and hand, and 30 photographs."""
    signs = [
        sorted((shared_data / "sign-digits" / str(digit)).iterdir())[:10] for digit in range(6)
    ]
    clothes = sorted((shared_data / "clothing" / "validation").rglob("*.jpg"))[:30]
    return [path.read_bytes() for path in (*(p for each in signs for p in each), *clothes)]


@pytest.fixture(scope="module")
def encoder() -> dp.Encoder:
    return dp.Encoder.from_pretrained("builtin", device="cpu")


def found_among(files: list[bytes], encoder: dp.Encoder) -> set[tuple[int, int]]:
    pixels = [prepare(file, encoder.preprocessing) for file in files]
    X = np.concatenate(
        [encoder.encode(torch.stack(pixels[i : i + 32])) for i in range(0, len(pixels), 32)]
    )
    data = with_features(features(["a"] * len(files)), X)
    rows = {name: row for row, name in enumerate(data.hashes)}
    pairs = near_duplicates(data, lambda row: pixels[row])
    return {(rows[pair.first], rows[pair.second]) for pair in pairs}


def test_different_pictures_of_one_class_are_not_flagged(
    photos: list[bytes], encoder: dp.Encoder
) -> None:
    assert found_among(photos, encoder) == set()


@pytest.mark.parametrize(
    ("how", "least"), [("quality", 1.0), ("size", 1.0), ("light", 0.9), ("shift", 0.75)]
)
def test_altered_copies_are_found(
    photos: list[bytes], encoder: dp.Encoder, how: str, least: float
) -> None:
    chosen = list(range(0, len(photos), 2))
    images = [Image.open(io.BytesIO(photos[row])).convert("RGB") for row in chosen]
    found = found_among([*photos, *(altered(image, how) for image in images)], encoder)
    own = {(row, len(photos) + place) for place, row in enumerate(chosen)}
    assert len(found & own) >= least * len(own)
    assert found <= own


def looks(seed: int) -> torch.Tensor:
    rough = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def test_pixels_tell_a_cut_from_another_picture() -> None:
    whole, other = Look(looks(0)), Look(looks(1))
    cut = Look(looks(0)[:, 6:, 3:])
    assert correlation(whole, Look(looks(0))) == pytest.approx(1)
    assert correlation(whole, cut) == pytest.approx(correlation(cut, whole))
    assert correlation(whole, cut) > 0.985 > float(whole.whole @ cut.whole)
    assert correlation(whole, other) < 0.5
    assert correlation(whole, None) == 0


def test_one_colour_is_no_picture() -> None:
    red, redder = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    red[0], redder[0] = 200, 210
    assert correlation(Look(red), Look(redder)) == 0
    noise = torch.randint(-20, 20, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    first, second = (red.int() + noise).clamp(0, 255).to(torch.uint8)
    assert correlation(Look(first), Look(second)) < 0.5


def test_candidates_are_those_of_the_whole_table() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 20)).astype(np.float32) + 5
    X[60:80] = X[:20] + 0.2 * rng.normal(size=(20, 20))
    Z = X - X.mean(axis=0)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    table = np.triu(Z @ Z.T, 1)
    expected = np.argwhere(table >= duplicates.CANDIDATE_COSINE)
    assert len(expected) >= 20
    assert neighbours(X, X, itself=True) == [(int(i), int(j)) for i, j in expected]
    for query, row in neighbours(X[:60], X[60:80], itself=False):
        assert query == row
    assert neighbours(np.ones((3, 4), np.float32), np.ones((3, 4), np.float32), itself=True) == []


def with_features(data: Features, X: np.ndarray) -> Features:
    return replace(data, X=X.astype(np.float32))


def test_test_images_change_nothing_about_the_others() -> None:
    """Five copies in the test part would crowd out a neighbour, move the mean and join two rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 20))
    X[1] = X[0] + 0.05 * rng.normal(size=20)
    X[25:] = X[0] + 0.01 * rng.normal(size=(5, 20))
    alone = near_duplicates(with_features(features(["a"] * 25), X[:25]), lambda _: looks(0))
    assert [pair[:2] for pair in alone] == [("h0", "h1")]
    data = with_features(features(["a"] * 30, ["train"] * 25 + ["test"] * 5), X)
    tested = set_aside(data)
    assert tested == [False] * 25 + [True] * 5
    both = near_duplicates(data, lambda _: looks(0), tested)
    assert [pair for pair in both if int(pair.first[1:]) < 25] == alone
    assert {pair.first for pair in both} == {"h0", *(f"h{i}" for i in range(25, 30))}


def test_a_test_image_joins_no_others() -> None:
    data = features(["a", "b"] * 4, ["train"] * 6 + ["test"] * 2)
    pairs = [NearPair("h6", "h0", 0.99), NearPair("h6", "h1", 0.99)]
    parts = partition(data, seed=0, test_fraction=0.2, pairs=pairs)
    assert set(parts.near) == {None}
    assert [leak.key for leak in parts.leaks] == ["006.png"]


def test_identical_files_are_looked_at_once() -> None:
    X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    X[2] = X[0]
    data = with_features(features(["a"] * 4, hashes=["x", "y", "x", "z"]), X)
    assert near_duplicates(data, lambda _: looks(0)) == []  # no two features are near


def test_clusters_hold_together_what_pairs_join() -> None:
    pairs = [NearPair("b", "c", 1.0), NearPair("c", "a", 1.0), NearPair("x", "y", 1.0)]
    names = clusters(["a", "b", "c", "d", "y", "x", "a"], pairs)
    assert names == ("a", "a", "a", None, "x", "x", "a")


def test_a_split_and_its_folds_keep_near_duplicates_on_one_side() -> None:
    data = features(["a", "b"] * 40)
    pairs = [NearPair(f"h{i}", f"h{i + 40}", 0.99) for i in range(40)]
    parts = partition(data, seed=0, test_fraction=0.25, pairs=pairs)
    assert {parts.splits[i] == parts.splits[i + 40] for i in range(40)} == {True}
    assert {parts.splits[i] for i in range(80)} == {"train", "test"}
    assert any("80 images are nearly identical to another one" in note for note in parts.notes)
    without = partition(data, seed=0, test_fraction=0.25)
    assert any(without.splits[i] != without.splits[i + 40] for i in range(40))
    folds = dealt_folds(data, seed=0, near=parts.near)
    assert folds[:40].tolist() == folds[40:].tolist()
    assert parts.leaks == ()


def test_leaks_of_a_given_split() -> None:
    given = ["train", "train", "val", "test", "test", "test", "test"]
    data = features(list("abaabab"), given, hashes=["p", "q", "r", "s", "p", "t", "u"])
    pairs = [NearPair("q", "s", 0.99), NearPair("r", "s", 0.995), NearPair("t", "u", 0.999)]
    parts = partition(data, seed=0, test_fraction=0.2, pairs=pairs)
    assert parts.leaks == (
        Leak("003.png", "a", "002.png", "a", "near", 0.995),
        Leak("004.png", "b", "000.png", "a", "identical", 1.0),
    )
    assert any("1 test image is nearly identical" in note for note in parts.notes)
    assert leaks(data, given, []) == [parts.leaks[1]]


def test_the_accuracy_without_leaks() -> None:
    correct = {"a": True, "b": False, "c": True}
    leak = Leak("a", "x", "t", "x", "near", 0.99)
    found = without_leaks(correct, [leak])
    assert found == (1, 2, 0.5, wilson(1, 2))
    assert "1 test image stands in another part too" in str(found)
    assert without_leaks(correct, []) is None
    nothing = without_leaks({"a": True}, [leak])
    assert nothing == (1, 0, None, None)
    assert "none is left" in str(nothing)


def test_too_many_images_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not too_many(features(["a"] * 10))
    monkeypatch.setattr(duplicates, "MOST_PRODUCTS", 10 * 10 * 2 - 1)
    assert too_many(features(["a"] * 10))
