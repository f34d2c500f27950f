"""Which rows train and which test, from given splits and from none."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.errors import DatasetError
from dinoprobe.partition import partition, selection_folds
from dinoprobe.types import Features


def features(
    labels: list[str | None],
    splits: list[str | None] | None = None,
    groups: list[str | None] | None = None,
    hashes: list[str] | None = None,
) -> Features:
    n = len(labels)
    return Features(
        keys=tuple(f"{i:03d}.png" for i in range(n)),
        X=np.zeros((n, 2), dtype=np.float32),
        y=np.array(labels, dtype=object),
        classes=tuple(sorted({label for label in labels if label})),
        fingerprint="f",
        hashes=tuple(hashes or [f"h{i}" for i in range(n)]),
        splits=tuple(splits or [None] * n),  # type: ignore[arg-type]
        groups=tuple(groups or [None] * n),
    )


def test_without_a_split_one_is_made_and_said() -> None:
    parts = partition(features(["a", "b"] * 50), seed=0, test_fraction=0.2)
    assert len(parts.rows("test")) == 20
    assert len(parts.rows("train")) == 80
    assert not parts.given
    assert "20% of the images were set aside" in parts.notes[0]


def test_a_made_split_is_reproducible_and_follows_the_seed() -> None:
    data = features(["a", "b"] * 50)
    first = partition(data, seed=0, test_fraction=0.2)
    assert first == partition(data, seed=0, test_fraction=0.2)
    assert first.splits != partition(data, seed=1, test_fraction=0.2).splits


def test_groups_and_identical_images_stay_on_one_side() -> None:
    groups = [f"g{i // 4}" for i in range(40)]
    hashes = [f"h{i // 2}" for i in range(40)]
    parts = partition(
        features(["a", "b"] * 20, groups=groups, hashes=hashes), seed=3, test_fraction=0.3
    )
    for names in (groups, hashes):
        sides = {(name, split) for name, split in zip(names, parts.splits, strict=True)}
        assert len(sides) == len(set(names))


def test_given_splits_are_used() -> None:
    given = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    parts = partition(features(["a", "b"] * 5, given), seed=0, test_fraction=0.5)
    assert list(parts.splits) == given
    assert parts.given
    assert parts.notes == ()


def test_validation_without_test_becomes_the_test_part() -> None:
    parts = partition(
        features(["a", "b"] * 3, ["train"] * 4 + ["val"] * 2), seed=0, test_fraction=0.5
    )
    assert parts.rows("test").tolist() == [4, 5]
    assert len(parts.rows("val")) == 0
    assert "validation part is the test part and chose nothing" in parts.notes[0]


def test_only_a_training_folder_is_split_further() -> None:
    parts = partition(features(["a", "b"] * 10, ["train"] * 20), seed=0, test_fraction=0.2)
    assert len(parts.rows("test")) == 4


def test_rows_without_label_or_split_are_said() -> None:
    labels = ["a", "b", "a", "b", None, "a"]
    splits = ["train", "train", "test", "test", "test", None]
    parts = partition(features(labels, splits), seed=0, test_fraction=0.2)
    assert parts.splits == ("train", "train", "test", "test", None, "train")
    assert any("1 images without a label" in note for note in parts.notes)
    assert any("1 images without a split" in note for note in parts.notes)


def test_a_leak_between_given_parts_is_said() -> None:
    data = features(["a", "b"] * 2, ["train", "train", "test", "test"], hashes=["x", "y", "x", "z"])
    (note,) = partition(data, seed=0, test_fraction=0.2).notes
    assert note.startswith("1 identical images stand in two parts, first 000.png and 002.png")


def test_a_class_that_is_only_tested_is_an_error() -> None:
    data = features(["cat", "dog", "Cat", "dog"], ["train", "train", "test", "test"])
    with pytest.raises(DatasetError, match="'Cat' is close to 'cat'"):
        partition(data, seed=0, test_fraction=0.2)


def test_a_class_that_is_never_tested_is_said() -> None:
    data = features(
        ["cat", "dog", "cow", "cow", "dog"], ["train", "train", "train", "test", "test"]
    )
    (note,) = partition(data, seed=0, test_fraction=0.2).notes
    assert "cat" in note


@pytest.mark.parametrize("labels", [[None, None], ["a", "a", "a"], []])
def test_fewer_than_two_classes_is_an_error(labels: list[str | None]) -> None:
    with pytest.raises(DatasetError, match="expected at least 2"):
        partition(features(labels), seed=0, test_fraction=0.2)


def test_one_image_a_class_can_not_be_tested() -> None:
    with pytest.raises(DatasetError, match="images to train on and images to test on"):
        partition(features(["a", "b"]), seed=0, test_fraction=0.2)


def test_folds_are_the_validation_part_where_there_is_one() -> None:
    folds = selection_folds(features(["a", "b"] * 2), ["train", "val", "train", "val"], seed=0)
    assert folds.tolist() == [-1, 0, -1, 0]


def test_folds_keep_identical_images_together() -> None:
    data = features(["a", "b"] * 10, hashes=[f"h{i // 4}" for i in range(20)])
    folds = selection_folds(data, ["train"] * 20, seed=0)
    assert len(set(zip(data.hashes, folds.tolist(), strict=True))) == 5


def test_too_few_images_give_fewer_folds_and_at_last_none() -> None:
    assert selection_folds(features(["a", "a", "b", "b"]), ["train"] * 4, seed=0).max() < 5
    assert selection_folds(features(["a", "b"]), ["train"] * 2, seed=0).tolist() == [-1, -1]


def test_a_group_on_both_sides_of_a_given_split_is_said() -> None:
    data = features(
        ["a", "b"] * 2, ["train", "train", "test", "test"], groups=["p", "q", "p", None]
    )
    (note,) = partition(data, seed=0, test_fraction=0.2).notes
    assert "1 groups have images in the test part and outside of it, first 'p'" in note
