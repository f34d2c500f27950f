"""Splits and folds: what belongs together stays together, whatever the order of the files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoprobe.datasets import (
    SplitRow,
    assign_splits,
    check_classes,
    folds,
    leaks,
    read_split,
    split_notes,
    write_split,
)
from dinoprobe.errors import ConfigurationError, DatasetError, FormatError

if TYPE_CHECKING:
    from pathlib import Path


class Row(NamedTuple):
    key: str
    label: str | None
    group: str | None
    content: str | None


@st.composite
def datasets(draw: st.DrawFn) -> list[Row]:
    count = draw(st.integers(1, 40))
    few = st.none() | st.integers(0, 8).map(str)
    return [
        Row(f"{i}.jpg", draw(st.sampled_from(["cat", "dog", "fox", None])), draw(few), draw(few))
        for i in range(count)
    ]


def split(rows: list[Row], seed: int = 0, fraction: float = 0.2) -> dict[str, str]:
    keys, labels, groups, hashes = zip(*rows, strict=True)
    return assign_splits(
        keys, labels, groups=groups, hashes=hashes, seed=seed, test_fraction=fraction
    )


def units(rows: list[Row]) -> list[set[int]]:
    """Connected rows, found the slow way."""
    found: list[set[int]] = []
    for i, row in enumerate(rows):
        touching = [
            unit
            for unit in found
            if any(
                (row.group and row.group == rows[j].group)
                or (row.content and row.content == rows[j].content)
                for j in unit
            )
        ]
        found = [unit for unit in found if unit not in touching] + [{i}.union(*touching)]
    return found


def units_of_each_class(rows: list[Row]) -> dict[str | None, list[set[int]]]:
    holding = defaultdict(list)
    for unit in units(rows):
        for label in {rows[i].label for i in unit}:
            holding[label].append(unit)
    return holding


@given(datasets(), st.integers(0, 3), st.sampled_from([0.05, 0.2, 0.5, 0.95]))
@settings(max_examples=80, deadline=None)
def test_groups_and_identical_images_never_cross(
    rows: list[Row], seed: int, fraction: float
) -> None:
    found = split(rows, seed, fraction)
    assert list(found) == [row.key for row in rows]
    for unit in units(rows):
        assert len({found[rows[i].key] for i in unit}) == 1


@given(datasets(), st.sampled_from([0.05, 0.2, 0.95]))
@settings(max_examples=80, deadline=None)
def test_every_class_is_trained_on(rows: list[Row], fraction: float) -> None:
    found = split(rows, fraction=fraction)
    for holding in units_of_each_class(rows).values():
        assert "train" in {found[rows[min(unit)].key] for unit in holding}


@given(st.lists(st.sampled_from(["cat", "dog", "fox"]), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_every_class_of_two_independent_images_is_tested(labels: list[str]) -> None:
    found = split([Row(f"{i}", label, None, None) for i, label in enumerate(labels)])
    for label in set(labels):
        sides = {found[f"{i}"] for i, other in enumerate(labels) if other == label}
        assert sides == ({"train", "test"} if labels.count(label) > 1 else {"train"})


@given(datasets(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_files_does_not_matter(rows: list[Row], random) -> None:
    shuffled = random.sample(rows, len(rows))
    assert split(rows) == split(shuffled) == split(rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_smallest_hashes_of_seed_and_key_are_tested(seed: int) -> None:
    keys = [f"cat/{i}" for i in range(10)]
    by_hash = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest())
    found = split([Row(key, "cat", None, None) for key in keys], seed)
    assert {key for key, side in found.items() if side == "test"} == set(by_hash[:2])


def test_the_fraction_is_kept_in_each_class() -> None:
    rows = [Row(f"{i}", "cat" if i < 900 else "dog", None, None) for i in range(1000)]
    found = split(rows)
    assert sum(found[f"{i}"] == "test" for i in range(900)) == 180
    assert sum(found[f"{i}"] == "test" for i in range(900, 1000)) == 20


def test_adding_images_moves_few() -> None:
    rows = [Row(f"{i}", "cat", None, None) for i in range(1000)]
    before, after = split(rows[:900]), split(rows)
    assert sum(before[key] != after[key] for key in before) < 45


def test_a_large_group_does_not_swallow_the_test_part() -> None:
    rows = [Row(f"{i}", "cat", "big" if i < 90 else f"{i}", None) for i in range(100)]
    found = split(rows)
    assert {found[f"{i}"] for i in range(90)} == {"train"}
    assert "test" in found.values()


def test_a_class_with_one_unit_is_trained_on_and_noted() -> None:
    keys, labels = ["a", "b", "c", "d"], ["cat", "cat", "dog", "dog"]
    groups = ["g", "g", None, None]
    found = assign_splits(keys, labels, groups=groups)
    assert found["a"] == found["b"] == "train"
    assert split_notes(keys, labels, groups=groups)[0].startswith("1 class has one independent")
    assert split_notes(keys, labels) == ()


@pytest.mark.parametrize("fraction", [0, 1, -1, 2, float("nan")])
def test_a_fraction_must_be_one(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        assign_splits(["a"], ["cat"], test_fraction=fraction)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        assign_splits(["a", "b"], ["cat"])


@given(datasets(), st.integers(2, 4), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_folds_keep_units_whole_and_leave_each_class_to_train_on(
    rows: list[Row], n_folds: int, seed: int
) -> None:
    keys, labels, groups, hashes = zip(*rows, strict=True)
    try:
        found = folds(labels, keys=keys, groups=groups, hashes=hashes, n_folds=n_folds, seed=seed)
    except DatasetError:
        return
    assert found.shape == (len(rows),)
    assert set(found.tolist()) <= {-1, *range(n_folds)}
    for unit in units(rows):
        assert len({int(found[i]) for i in unit}) == 1
    for holding in units_of_each_class(rows).values():
        where = {int(found[min(unit)]) for unit in holding}
        assert -1 in where or len(where) > 1


def test_folds_are_balanced_and_reproducible() -> None:
    labels = ["cat"] * 50 + ["dog"] * 25
    found = folds(labels, n_folds=5)
    assert np.bincount(found).tolist() == [15] * 5
    assert np.bincount(found[50:]).tolist() == [5] * 5
    np.testing.assert_array_equal(found, folds(labels, n_folds=5))
    assert (found != folds(labels, n_folds=5, seed=1)).any()


def test_folds_do_not_depend_on_the_order_when_there_are_keys_or_hashes() -> None:
    names, labels = [f"h{i}" for i in range(20)], ["cat", "dog"] * 10
    for column in ("keys", "hashes"):
        one = folds(labels, n_folds=4, **{column: names})
        other = folds(labels[::-1], n_folds=4, **{column: names[::-1]})
        np.testing.assert_array_equal(one, other[::-1])


def test_too_few_units_for_the_folds() -> None:
    with pytest.raises(DatasetError, match="3 folds of 2 independent"):
        folds(["cat", "cat", "dog"], n_folds=3)
    with pytest.raises(ConfigurationError, match="n_folds is 1"):
        folds(["cat", "cat"], n_folds=1)


def test_leaks_pair_the_first_with_each_other_side() -> None:
    keys = ["a", "b", "c", "d", "e", "f", "g"]
    splits = ["test", "train", "train", "val", None, "train", "test"]
    hashes = ["x", "x", "x", "x", "x", None, None]
    assert leaks(keys, splits, hashes) == [("b", "a"), ("b", "d")]
    assert leaks(keys, ["train"] * 7, hashes) == []


def test_a_class_missing_in_train_names_the_nearest_spelling() -> None:
    with pytest.raises(DatasetError, match=r"'Cat', 'eel'.*'cat', 'dog'\. 'Cat' is close to 'cat'"):
        check_classes(["dog", "cat", None], ["Cat", "dog", "eel"])


def test_a_class_missing_in_test_is_a_note() -> None:
    assert check_classes(["dog", "cat"], ["dog"]) == ("1 class has no test image: 'cat'.",)
    assert check_classes(["dog"], ["dog", None]) == ()
    assert check_classes(["dog"], []) == ()


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    st.lists(
        st.tuples(
            text,
            st.none() | text,
            st.sampled_from(["train", "val", "test", None]),
            st.none() | text,
        ),
        unique_by=lambda row: row[0],
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_a_split_file_gives_back_what_was_written(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.getbasetemp() / "split.csv"
    write_split(path, rows)
    assert read_split(path) == [SplitRow(*row) for row in rows]


def test_the_bytes_of_a_split_file(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    write_split(path, [("cat/1,2.jpg", "cat", "train", None), SplitRow("ü", None, None, "g", "0a")])
    assert path.read_bytes() == (
        b'key,label,split,group,content_hash\r\n"cat/1,2.jpg",cat,train,,\r\n\xc3\xbc,,,g,0a\r\n'
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the columns are \[\]"),
        (b"key,label\n", "the columns are"),
        (b"\xff", "not a UTF-8 CSV file"),
        (b"key,label,split,group,content_hash\na,b,c,d,\n", "line 2 has the split 'c'"),
        (b"key,label,split,group,content_hash\na,b\n", r"line 2 has 2 cells\. Expected 5"),
        (
            b"key,label,split,group,content_hash\na,b,test,,\na,b,train,,\n",
            "the key 'a' is there twice",
        ),
        (b'key,label,split,group,content_hash\r\n"a,b,test,\n', "not a UTF-8 CSV file"),
    ],
)
def test_damaged_split_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_split(tmp_path / "split.csv")


@pytest.mark.parametrize("seed", range(30))
def test_groups_of_several_classes_still_leave_each_class_on_both_sides(seed: int) -> None:
    rows = [Row(f"{label}{i}", label, None, None) for label in "abd" for i in range(2)]
    for label in "abd":
        rows += [Row(f"{label}z{i}", i, f"group {label}", None) for i in (label, "z")]
    found = split(rows, seed)
    for label in "abdz":
        assert {found[row.key] for row in rows if row.label == label} == {"train", "test"}
