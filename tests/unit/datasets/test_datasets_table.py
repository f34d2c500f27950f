"""Tables: formats, columns by name and by flag, paths, damage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinoprobe.datasets import open_dataset
from dinoprobe.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from pathlib import Path

ROWS: list[dict[str, Any]] = [
    {"path": "a.jpg", "label": "cat", "split": "train", "group": "g1", "other": 1},
    {"path": "sub/b.jpg", "label": "dog", "split": "Validation", "group": "g2", "other": 2},
    {"path": "c.jpg", "label": None, "split": None, "group": None, "other": 3},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(rows[0])
    cells = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    if path.suffix == ".csv":
        path.write_text("\n".join(",".join(row) for row in [names, *cells]) + "\n")
    elif path.suffix == ".tsv":
        path.write_text("\r\n".join("\t".join(row) for row in [names, *cells]))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_each_format_gives_the_same_samples(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jpg").write_bytes(b"bytes of b")
    dataset = open_dataset(write(tmp_path / f"t.{suffix}", ROWS))
    assert [(s.key, s.label, s.split, s.group) for s in dataset.samples] == [
        ("a.jpg", "cat", "train", "g1"),
        ("sub/b.jpg", "dog", "val", "g2"),
        ("c.jpg", None, None, None),
    ]
    assert dataset.classes == ("cat", "dog")
    assert dataset.samples[1].source.read() == b"bytes of b"
    with pytest.raises(FileNotFoundError):
        dataset.samples[0].source.read()


@pytest.mark.parametrize("path", ["path", "image_path", "file_name", "Image", " filepath ", "URL"])
@pytest.mark.parametrize("label", ["label", "Class", "target"])
def test_the_usual_names_are_found(tmp_path: Path, path: str, label: str) -> None:
    table = write(tmp_path / "t.csv", [{label: "cat", "x": "1", path: "a.jpg"}])
    assert open_dataset(table).samples[0][::2] == ("a.jpg", "cat", None)


def test_given_columns_win(tmp_path: Path) -> None:
    rows = [{"path": "a.jpg", "label": "cat", "where": "b.jpg", "kind": "fox", "set": "test"}]
    for suffix in ("csv", "parquet"):
        dataset = open_dataset(
            write(tmp_path / f"t.{suffix}", rows),
            path_column="where",
            label_column="kind",
            split_column="set",
            group_column="label",
        )
        sample = dataset.samples[0]
        assert (sample.key, *sample[2:]) == ("b.jpg", "fox", "test", "cat")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_given_column_that_is_not_there_names_the_nearest(tmp_path: Path, suffix: str) -> None:
    table = write(tmp_path / f"t.{suffix}", [{"path": "a.jpg", "species": "cat"}])
    with pytest.raises(DatasetError, match=r"no column 'specie'.*'path', 'species'.*'species'\?"):
        open_dataset(table, label_column="specie")


def test_a_table_without_paths_names_its_columns(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [{"a": "1", "b": "2"}])
    with pytest.raises(DatasetError, match=r"no column of paths among 'a', 'b'\. Expected one of"):
        open_dataset(table)


def test_repeated_paths_get_unique_keys_and_a_note(tmp_path: Path) -> None:
    names = ["a.jpg", "a.jpg", "a.jpg#2", "a.jpg"]
    dataset = open_dataset(write(tmp_path / "t.csv", [{"path": name} for name in names]))
    assert [s.key for s in dataset.samples] == ["a.jpg", "a.jpg#3", "a.jpg#2", "a.jpg#4"]
    assert "2 images repeat a path" in dataset.notes[0]


def test_labels_are_text_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.jpg", "label": label} for i, label in enumerate([3.0, None, 2.5])]
    assert [s.label for s in open_dataset(write(tmp_path / "t.parquet", rows)).samples] == [
        "3",
        None,
        "2.5",
    ]
    (tmp_path / "t.jsonl").write_text('{"path": "a.jpg", "label": NaN}\n{"path": "b.jpg"}\n')
    assert [s.label for s in open_dataset(tmp_path / "t.jsonl").samples] == [None, None]
    table = write(tmp_path / "t.csv", [{"path": "a.jpg", "label": "007"}])
    assert open_dataset(table).classes == ("007",)


def test_a_byte_order_mark_and_undecodable_bytes_are_fine(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,label\n\xff.jpg,caf\xe9\n")
    (sample,) = open_dataset(tmp_path / "t.csv").samples
    assert (sample.key, sample.label) == (r"\xff.jpg", r"caf\xe9")
    assert sample.source.path == f"{tmp_path}/\udcff.jpg"


def test_absolute_paths_and_urls(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    table = tmp_path / "t.csv"
    table.write_text(
        f"path\n{tmp_path}/x.bin\nfile://{tmp_path}/x.bin\nhttp://localhost:9/a.jpg\nnope://b.jpg\n"
    )
    sources = [s.source for s in open_dataset(table).samples]
    assert sources[0].read() == sources[1].read() == b"x"
    for source in sources[2:]:
        with pytest.raises(OSError, match=r"\.jpg: can not be read"):
            source.read()


def test_a_path_with_a_null_byte_fails_as_oserror(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a\\u0000.jpg"}')
    source = open_dataset(tmp_path / "t.jsonl").samples[0].source
    for act in (source.read, source.stamp):
        with pytest.raises(OSError, match="null"):
            act()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the table is empty"),
        ("t.csv", b"path,label\n", "no rows"),
        ("t.csv", b"path,label\na.jpg,cat,x\n", r"row 1 has 3 cells\. Expected 2"),
        ("t.csv", b"path,label\n,cat\n", "row 1 has no path"),
        ("t.csv", b'path\n"' + b"a" * 200_000 + b'"\n', "line 2: field larger than"),
        ("t.csv", b"path,split\na.jpg,holdout\n", "row 1 has the split 'holdout'"),
        ("t.jsonl", b"", "the table is empty"),
        ("t.jsonl", b"{]\n", "line 1 is not JSON"),
        ("t.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("t.jsonl", b'{"path": 3}\n', "row 1 has no path in 'path' .found int 3"),
        ("t.parquet", b"PAR1 no", "not a readable Parquet file"),
    ],
)
def test_damaged_tables_say_where(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / name)


def test_a_lone_surrogate_in_json_is_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "\\ud800.jpg", "label": "\\ud800"}')
    (sample,) = open_dataset(tmp_path / "t.jsonl").samples
    assert (sample.key, sample.label) == (r"\xed\xa0\x80.jpg", r"\xed\xa0\x80")
    with pytest.raises(OSError, match="can not be read"):
        sample.source.read()


def test_classes_of_one_split_only_are_said(tmp_path: Path) -> None:
    rows = [
        {"path": "a", "label": "cat", "split": "train"},
        {"path": "b", "label": "dog", "split": "test"},
    ]
    notes = open_dataset(write(tmp_path / "t.csv", rows)).notes
    assert notes == (
        "1 class has no image in 'train': 'dog'.",
        "1 class has no image in 'test': 'cat'.",
    )


def test_columns_of_an_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    for source in (tmp_path / "a.jpg", [tmp_path / "a.jpg"], b"x"):
        with pytest.raises(ConfigurationError, match="has no columns"):
            open_dataset(source, path_column="p")
