"""Names, keys, patterns, and what importing costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoprobe.datasets import is_image_name, names, shards
from dinoprobe.errors import DatasetError


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, dinoprobe.datasets;"
        "print(sorted({'numpy', 'torch', 'pyarrow', 'datasets', 'fsspec', 'PIL'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"


@given(st.binary(max_size=12))
def test_a_key_is_valid_utf8_and_valid_names_are_kept(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    key = names.utf8(name)
    assert key.encode().decode() == key
    if not any(0xDC80 <= ord(letter) <= 0xDCFF for letter in name):
        assert key == name


def test_lone_surrogates_of_other_origin_are_valid_too() -> None:
    assert names.utf8("\ud800.jpg").encode()


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#2#2", "a#3"]), max_size=12))
def test_unique_keys_are_unique_and_keep_what_was_unique(keys: list[str]) -> None:
    result, changed = names.unique(keys)
    assert len(set(result)) == len(keys)
    assert changed == sum(a != b for a, b in zip(keys, result, strict=True))
    for key in set(keys):
        assert result[keys.index(key)] == key


@pytest.mark.parametrize("name", ["jpg", "a", "a.", ".", "a.jpg.txt", "jpg.d"])
def test_what_is_no_image_by_name(name: str) -> None:
    assert not is_image_name(name)


def test_nearest_ignores_case_and_says_nothing_when_far() -> None:
    assert names.nearest("cat", ["Cat", "dog"]) == "Cat"
    assert names.nearest("zebra", ["cat", "dog"]) is None


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{1..3}", ["a1", "a2", "a3"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{a,}", ["a", ""]),
        ("{a}", ["{a}"]),
        ("{a}{b,c}", ["{a}b", "{a}c"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert shards.expand(pattern) == expected


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{0..9999}{0..9999}"])
def test_too_many_places_are_refused(pattern: str) -> None:
    with pytest.raises(DatasetError, match="more than 1,000,000 places"):
        shards.expand(pattern)
