"""Datasets of the Hugging Face library: saved, by name, as objects."""

from __future__ import annotations

import io
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from dinoprobe.datasets import open_dataset
from dinoprobe.errors import DatasetError, DatasetNotFoundError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

library = pytest.importorskip("datasets")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: tuple[int, ...] = (1, 0, -1), **more: list[Any]) -> Any:
    features = {"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])}
    features |= {name: library.Value("string") for name in more}
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(len(labels))]}
    columns |= {"label": list(labels), **more}
    return library.Dataset.from_dict(columns, features=library.Features(features))


def test_an_object_keeps_encoded_images_and_names_of_classes() -> None:
    dataset = open_dataset(table(group=["a", "b", "b"]))
    assert [(s.key, s.label, s.split, s.group) for s in dataset.samples] == [
        ("0", "dog", None, "a"),
        ("1", "cat", None, "b"),
        ("2", None, None, "b"),
    ]
    assert dataset.classes == ("cat", "dog")
    copies = pickle.loads(pickle.dumps(list(dataset.samples)))
    assert [s.source.read() for s in copies] == [png(0), png(1), png(2)]


def test_a_dict_has_splits(tmp_path: Path) -> None:
    parts = library.DatasetDict(
        {"train": table(), "validation": table((0, 0)), "extra": table((1,))}
    )
    parts.save_to_disk(tmp_path / "saved")
    for source in (parts, tmp_path / "saved"):
        dataset = open_dataset(source)
        assert [(s.key, s.split) for s in dataset.samples][2:] == [
            ("train/2", "train"),
            ("validation/0", "val"),
            ("validation/1", "val"),
            ("extra/0", None),
        ]
        assert dataset.samples[0].source.read() == png(0)
        assert "'extra' is none of train, val and test: its 1 images" in dataset.notes[0]
        assert "'val': 'dog'" in dataset.notes[1]


def test_one_saved_table(tmp_path: Path) -> None:
    table().select([2, 0]).save_to_disk(tmp_path / "saved")
    dataset = open_dataset(tmp_path / "saved")
    assert [s.label for s in dataset.samples] == [None, "dog"]
    assert dataset.samples[1].source.read() == png(0)


def test_a_damaged_save_is_refused(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{]")
    with pytest.raises(DatasetError, match="can not be loaded"):
        open_dataset(tmp_path / "saved")


def test_given_columns_and_a_column_of_paths(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    rows = {"where": [str(tmp_path / "a.jpg"), None], "kind": ["x", "y"], "part": ["test", None]}
    source = library.Dataset.from_dict(rows)
    dataset = open_dataset(
        source, path_column="where", label_column="kind", split_column="part", group_column="kind"
    )
    assert [tuple(s[2:]) for s in dataset.samples] == [("x", "test", "x"), ("y", None, "y")]
    assert dataset.samples[0].source.read() == b"a"
    with pytest.raises(OSError, match="no image in column 'where'"):
        dataset.samples[1].source.read()
    with pytest.raises(DatasetError, match=r"no column 'kin' for the label.*Did you mean 'kind'"):
        open_dataset(source, path_column="where", label_column="kin")
    with pytest.raises(DatasetError, match="no column of images among 'where', 'kind', 'part'"):
        open_dataset(source)


def test_a_class_label_of_another_name_is_found() -> None:
    assert open_dataset(table().rename_column("label", "fine")).classes == ("cat", "dog")


def test_streams_and_empty_tables_are_refused() -> None:
    with pytest.raises(DatasetError, match="a streamed dataset"):
        open_dataset(table().to_iterable_dataset())
    with pytest.raises(DatasetError, match="no rows"):
        open_dataset(table(()))


def test_by_name(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True)
        (tmp_path / "pets" / name).write_bytes(png(9))
    dataset = open_dataset(f"hf-dataset:{tmp_path}/pets")
    assert sorted((s.label, s.split) for s in dataset.samples) == [
        ("cat", "test"),
        ("cat", "train"),
        ("dog", "train"),
    ]
    assert dataset.samples[0].source.read() == png(9)
    with pytest.raises(DatasetNotFoundError, match="hf-dataset:"):
        open_dataset(f"hf-dataset:{tmp_path}/nothing")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"dinoprobe\[datasets\]"):
        open_dataset("hf-dataset:owner/name")
