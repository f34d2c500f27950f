"""Folders: layouts, names, links, and what is passed over."""

from __future__ import annotations

import os
import pickle
import socket
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from dinoprobe.datasets import open_dataset
from dinoprobe.errors import ConfigurationError, DatasetError, DatasetNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.types import Dataset


def put(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number % 256, 0, 0)).save(file, "PNG")
    return root


def rows(dataset: Dataset) -> list[tuple[str, str | None, str | None]]:
    return [(s.key, s.label, s.split) for s in dataset.samples]


def test_class_folders_become_labels_and_nested_folders_do_not(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "cat/1.jpg", "dog/2024/may/2.PNG", "cat/b.JpEg"))
    assert rows(dataset) == [
        ("cat/1.jpg", "cat", None),
        ("cat/b.JpEg", "cat", None),
        ("dog/2024/may/2.PNG", "dog", None),
    ]
    assert dataset.classes == ("cat", "dog")
    assert dataset.notes == ()
    assert dataset.uri == str(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "DEV"])
def test_split_folders_in_any_case_are_splits(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(put(tmp_path, "Train/cat/1.jpg", f"{name}/cat/1.jpg", "TEST/cat/1.jpg"))
    assert {s.split for s in dataset.samples} == {"train", "val", "test"}
    assert dataset.classes == ("cat",)


def test_classes_called_train_plane_and_bus_stay_classes(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "train/1.jpg", "plane/1.jpg", "bus/1.jpg"))
    assert dataset.classes == ("bus", "plane", "train")
    assert all(s.split is None for s in dataset.samples)


def test_a_lone_train_folder_is_a_split_and_a_lone_test_folder_is_a_class(tmp_path: Path) -> None:
    alone = open_dataset(put(tmp_path / "a", "train/cat/1.jpg"))
    assert rows(alone) == [("train/cat/1.jpg", "cat", "train")]
    other = open_dataset(put(tmp_path / "b", "test/cat/1.jpg"))
    assert rows(other) == [("test/cat/1.jpg", "test", None)]
    assert "'test'" in other.notes[0]


def test_folders_without_images_do_not_hide_the_splits(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "test/cat/1.jpg", ".cache/x.jpg")
    (tmp_path / "annotations").mkdir()
    assert {s.split for s in open_dataset(tmp_path).samples} == {"train", "test"}


def test_a_class_in_one_split_only_is_said(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg"))
    assert dataset.notes == ("1 class has no image in 'test': 'dog'.",)


def test_split_folders_without_classes_are_unlabelled_and_said(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "train/1.jpg", "test/1.jpg"))
    assert rows(dataset) == [("test/1.jpg", None, "test"), ("train/1.jpg", None, "train")]
    assert "taken for splits" in dataset.notes[0]


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "b.jpg", "a.webp"))
    assert rows(dataset) == [("a.webp", None, None), ("b.jpg", None, None)]
    assert (dataset.classes, dataset.notes) == ((), ())


def test_images_next_to_class_folders_are_unlabelled_and_said(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, "cat/1.jpg", "loose.jpg"))
    assert rows(dataset)[1] == ("loose.jpg", None, None)
    assert "1 image lies next to the class folders" in dataset.notes[0]


def test_other_files_are_counted_by_reason(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/._1.jpg", "cat/.hidden.jpg", "__MACOSX/cat/1.jpg")
    for name in ("cat/Thumbs.db", "cat/.DS_Store", "readme.txt", "jpg", "data.zip"):
        (tmp_path / name).write_bytes(b"x")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    assert dataset.ignored == {
        "left by an operating system": 4,
        "hidden": 1,
        "not an image by name": 2,
        "an archive next to images": 1,
    }


SUFFIXES = "jpg jpeg jpe jfif png webp gif bmp dib tif tiff avif avifs heic heif apng mpo"


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_every_image_suffix_counts_in_any_case(tmp_path: Path, suffix: str) -> None:
    for name in (f"a.{suffix}", f"b.{suffix.upper()}"):
        (tmp_path / name).write_bytes(b"x")
    assert len(open_dataset(tmp_path)) == 2


def test_a_folder_called_like_an_image_is_walked(tmp_path: Path) -> None:
    assert rows(open_dataset(put(tmp_path, "x.jpg/1.jpg"))) == [("x.jpg/1.jpg", "x.jpg", None)]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (folder / "\udcff.jpg").write_bytes(b"image")
    put(tmp_path, "日本/ü.jpg", r"caf\xe9/\xff.jpg")
    dataset = open_dataset(tmp_path)
    keys = [s.key for s in dataset.samples]
    assert len(set(keys)) == 3
    assert {"日本/ü.jpg", r"caf\xe9/\xff.jpg", r"caf\xe9/\xff.jpg#2"} == set(keys)
    assert all(key.encode() for key in keys)
    assert b"image" in [s.source.read() for s in dataset.samples]
    assert [s.source.read() for s in pickle.loads(pickle.dumps(list(dataset.samples)))]
    assert open_dataset(folder).samples[0].key == r"\xff.jpg"


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "far", "1.jpg")
    root = put(tmp_path / "root", "dog/1.jpg")
    (root / "cat").symlink_to(tmp_path / "far")
    (root / "cat-again").symlink_to(tmp_path / "far")
    dataset = open_dataset(root)
    assert rows(dataset) == [("cat/1.jpg", "cat", None), ("dog/1.jpg", "dog", None)]
    assert "'cat-again'" in dataset.notes[0]


def test_loops_of_links_end_and_are_said(tmp_path: Path) -> None:
    root = put(tmp_path / "root", "cat/1.jpg")
    (root / "cat" / "up").symlink_to(root)
    (root / "all").symlink_to(tmp_path)
    dataset = open_dataset(root)
    assert [s.key for s in dataset.samples] == ["cat/1.jpg"]
    assert any("'cat/up'" in note for note in dataset.notes)
    assert any("'all/root'" in note for note in dataset.notes)


def test_a_real_folder_is_listed_under_its_own_name_in_spite_of_a_link(tmp_path: Path) -> None:
    root = put(tmp_path, "zebra/1.jpg")
    (root / "alias").symlink_to(root / "zebra")
    assert rows(open_dataset(root)) == [("zebra/1.jpg", "zebra", None)]


def test_links_to_files_are_images_and_broken_ones_fail_when_read(tmp_path: Path) -> None:
    root = put(tmp_path, "cat/1.jpg")
    (root / "cat/2.jpg").symlink_to(root / "cat/1.jpg")
    (root / "cat/3.jpg").symlink_to(root / "nowhere.jpg")
    samples = open_dataset(root).samples
    assert samples[0].source.read() == samples[1].source.read()
    for act in (samples[2].source.read, samples[2].source.stamp):
        with pytest.raises(OSError, match=r"3\.jpg"):
            act()


def test_pipes_and_sockets_are_never_opened(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, "cat/1.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    monkeypatch.chdir(tmp_path / "cat")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("s.jpg")
        dataset = open_dataset(tmp_path)
    assert (len(dataset), dataset.ignored) == (1, {"not a regular file": 2})
    with pytest.raises(OSError, match="not a regular file"):
        open_dataset([tmp_path / "cat" / "pipe.jpg"]).samples[0].source.read()


def test_a_folder_that_can_not_be_listed_is_said(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, "cat/1.jpg", "dog/1.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    assert dataset.notes == (
        "The folder 'dog' is not followed: it can not be listed (Permission denied).",
    )


def test_stamp_follows_the_file(tmp_path: Path) -> None:
    source = open_dataset(put(tmp_path, "1.jpg")).samples[0].source
    status = (tmp_path / "1.jpg").stat()
    assert source.stamp() == (status.st_size, status.st_mtime_ns)
    (tmp_path / "1.jpg").write_bytes(b"longer")
    assert source.stamp().size_bytes == 6


def test_listing_does_not_stat_files(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, *(f"cat/{number}.jpg" for number in range(20)))
    counted: list[object] = []
    stat = os.stat
    monkeypatch.setattr("os.stat", lambda *a, **k: counted.append(a) or stat(*a, **k))
    open_dataset(tmp_path)
    assert not [place for (place, *_) in counted if str(place).endswith(".jpg")]


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no images found, it is empty\. Expected <class>"):
        open_dataset(tmp_path)


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("hi")
    with pytest.raises(DatasetError, match=r"only other files \(1 not an image by name\)"):
        open_dataset(tmp_path)


def test_a_missing_path_names_the_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"Did you mean '.*/photos'"):
        open_dataset(tmp_path / "photo")
    with pytest.raises(FileNotFoundError, match="does not exist either"):
        open_dataset(tmp_path / "no" / "such")
    with pytest.raises(DatasetNotFoundError, match="an empty path"):
        open_dataset("")
    with pytest.raises(DatasetNotFoundError, match="Check the spelling"):
        open_dataset(tmp_path / "zzzzzz")


def test_columns_of_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="label column 'kind'"):
        open_dataset(put(tmp_path, "cat/1.jpg"), label_column="kind")


def test_a_metadata_table_leads(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\n2.jpg,fox\n")
    assert rows(open_dataset(tmp_path)) == [("2.jpg", "fox", None)]


def test_a_metadata_table_without_labels_gives_way_to_the_folders(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat/1.jpg", "text": "a cat"}\n')
    dataset = open_dataset(tmp_path)
    assert rows(dataset) == [("cat/1.jpg", "cat", None)]
    assert "metadata.jsonl" in dataset.notes[0]
    given = open_dataset(tmp_path, label_column="text")
    assert given.classes == ("a cat",)


def test_two_metadata_tables_are_not_used(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("x")
    assert "so none is used" in open_dataset(tmp_path).notes[0]


def test_file_uris_are_paths(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg")
    assert open_dataset(f"file://{tmp_path}").uri == str(tmp_path)
