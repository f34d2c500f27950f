"""The file of corrections: what is read of it, whole or cut, and what a dataset becomes by it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from dinoprobe.datasets import DataSettings, open_dataset, write_split
from dinoprobe.datasets.corrections import (
    Change,
    State,
    corrected,
    header,
    parse_corrections,
    row_of,
    states,
    to_bytes,
)
from dinoprobe.errors import DatasetError, FormatError
from dinoprobe.types import content_hash

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = ['a "quoted", name.png', "two\nlines.png", "a\rreturn\r\n.png", "=1+1.png", "grün/é.png"]


def change(key: str, action: int = 1, rows: int = 1, **values: object) -> Change:
    plain = Change("2026-01-01T00:00:00", action, rows, key, "ab", "cat", "dog", False, None)
    return plain._replace(**values)  # type: ignore[arg-type]


def file_of(*changes: Change) -> bytes:
    return header() + to_bytes([row_of(each) for each in changes])


def test_what_is_written_is_read() -> None:
    written = [
        *(change(key, 1, len(HOSTILE)) for key in HOSTILE),
        change("b.png", 2, old=None, new=None, dropped=True),
        change("b.png", 3, undoes=2),
    ]
    data = file_of(*written)
    assert parse_corrections(data, "f") == (written, len(data))


def test_a_file_cut_anywhere_has_only_whole_actions() -> None:
    first = [change("one.png")]
    second = [change(key, 2, len(HOSTILE)) for key in HOSTILE]
    data, end = file_of(*first, *second), len(file_of(*first))
    for cut in range(len(data)):
        found = parse_corrections(data[:cut], "f")
        if cut < len(header()):
            assert found == ([], 0)
        elif cut < end:
            assert found == ([], len(header()) if cut >= len(header()) else 0), cut
        else:
            assert found == (first, end), cut


def test_an_empty_file_is_no_correction() -> None:
    assert parse_corrections(b"", "f") == ([], 0)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"key,label\n", "the first line"),
        (header() + b"1,2,3\n", "line 2 has 3 cells"),
        (header() + b"t,one,1,k,h,a,b,,\r\n", "line 2 is not readable"),
        (header() + b"t,1,1,k,h,a,b,yes,\r\n", "line 2 is not readable"),
        (header() + b"t,1,2,k,h,a,b,,\r\nt,2,2,k,h,a,b,,\r\n", "belongs to another action"),
        (header() + b"t,1,1,\xff,h,a,b,,\r\n", "not a UTF-8"),
    ],
)
def test_damage_is_told_with_its_line(data: bytes, found: str) -> None:
    with pytest.raises(FormatError, match=found):
        parse_corrections(data, "labels.csv")


def test_the_last_state_counts() -> None:
    found = states([change("a"), change("a", 2, new="cow"), change("a", 3, dropped=True)])
    assert found == {"a": ("ab", State("dog", dropped=True))}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            colour = (i * 40, 90 if name == "cat" else 0, 10)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def write(path: Path, *changes: Change) -> str:
    path.write_bytes(file_of(*changes))
    return str(path)


def test_a_dataset_is_corrected_where_the_bytes_are_those_that_were_seen(photos: Path) -> None:
    def digest(key: str) -> str:
        return content_hash((photos / key).read_bytes())

    path = write(
        photos.parent / "labels.csv",
        change("cat/0.png", 1, content_hash=digest("cat/0.png")),
        change("cat/1.png", 2, content_hash="another"),
        change("dog/2.png", 3, content_hash=digest("dog/2.png"), new="dog", dropped=True),
        change("gone.png", 4),
    )
    before = open_dataset(str(photos))
    found = DataSettings(source=str(photos), labels=path).open()
    labels = {sample.key: sample.label for sample in found.samples}
    expected = {sample.key: sample.label for sample in before.samples if sample.key != "dog/2.png"}
    assert labels == expected | {"cat/0.png": "dog"}
    assert found.notes[-2].endswith("1 labels are corrected, and 1 images are left out.")
    assert "2 corrections are of images that are others now, or are gone" in found.notes[-1]


def test_a_new_label_is_a_class(photos: Path) -> None:
    digest = content_hash((photos / "cat/0.png").read_bytes())
    path = write(photos.parent / "l.csv", change("cat/0.png", content_hash=digest, new="lynx"))
    assert corrected(open_dataset(str(photos)), path).classes == ("cat", "dog", "lynx")


def test_a_split_of_another_run_is_kept(photos: Path) -> None:
    path = photos.parent / "split.csv"
    write_split(path, [("cat/0.png", "cat", "test", "g"), ("dog/0.png", "dog", "train")])
    found = DataSettings(source=str(photos), split=str(path)).open()
    parts = {s.key: (s.split, s.group) for s in found.samples if s.split}
    assert parts == {"cat/0.png": ("test", "g"), "dog/0.png": ("train", None)}


def test_a_split_of_other_images_is_refused(photos: Path) -> None:
    path = photos.parent / "split.csv"
    write_split(path, [("else.png", "cat", "test")])
    with pytest.raises(DatasetError, match=r"none of the 6 images"):
        replace(DataSettings(source=str(photos)), split=str(path)).open()
