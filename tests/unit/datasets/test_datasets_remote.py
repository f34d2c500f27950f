"""Stores behind fsspec, with its memory file system."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from dinoprobe.datasets import location, open_dataset
from dinoprobe.errors import DatasetError, DatasetNotFoundError
from dinoprobe.types import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{name}/1.jpg", data)
    return buffer.getvalue()


def tarred(mode: str, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{name}/1.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(source: Any) -> dict[str, tuple[str | None, bytes]]:
    samples = pickle.loads(pickle.dumps(list(open_dataset(source).samples)))
    return {s.key: (s.label, s.source.read()) for s in samples}


def test_a_folder(store: Any) -> None:
    for name in ("cat/1.jpg", "dog/a/2.PNG", "dog/Thumbs.db", ".x/3.jpg", "readme.md", "a.zip"):
        store.pipe(f"/bucket/{name}", name.encode())
    dataset = open_dataset("memory://bucket")
    assert read("memory://bucket/") == {
        "cat/1.jpg": ("cat", b"cat/1.jpg"),
        "dog/a/2.PNG": ("dog", b"dog/a/2.PNG"),
    }
    assert dataset.uri == "memory://bucket"
    assert sum(dataset.ignored.values()) == 4
    assert dataset.samples[0].source.stamp() is None


def test_split_folders_and_metadata(store: Any) -> None:
    for name in ("train/cat/1.jpg", "test/cat/1.jpg"):
        store.pipe(f"/b/{name}", b"x")
    assert {s.split for s in open_dataset("memory://b").samples} == {"train", "test"}
    store.pipe("/b/metadata.csv", b"file_name,label\ntrain/cat/1.jpg,fox\n")
    assert read("memory://b") == {"train/cat/1.jpg": ("fox", b"x")}


def test_one_image_a_list_and_a_glob(store: Any) -> None:
    store.pipe("/b/1.bin", b"one")
    store.pipe("/b/2.bin", b"two")
    assert read("memory://b/1.bin") == {"1.bin": (None, b"one")}
    assert read(["memory://b/1.bin"]) == {"memory://b/1.bin": (None, b"one")}
    assert [data for _, data in read("memory://b/*.bin").values()] == [b"one", b"two"]
    with pytest.raises(DatasetNotFoundError, match="nothing matches"):
        open_dataset("memory://b/*.jpg")


def test_a_table_reaches_only_into_its_store(store: Any) -> None:
    store.pipe("/b/t/x.jpg", b"x")
    store.pipe("/b/t/t.csv", b"path\nx.jpg\n/b/t/x.jpg\nmemory://b/t/x.jpg\n/etc/passwd\n")
    dataset = open_dataset("memory://b/t/t.csv")
    assert [s.source.read() for s in dataset.samples[:3]] == [b"x"] * 3
    with pytest.raises(FileNotFoundError):
        dataset.samples[3].source.read()


def test_archives(store: Any) -> None:
    store.pipe("/b/a.zip", zipped(cat=b"1", dog=b"2"))
    store.pipe("/b/a.tar", tarred("w", cat=b"1", dog=b"2"))
    store.pipe("/b/a.tar.gz", tarred("w:gz", cat=b"1", dog=b"2"))
    expected = {"cat/1.jpg": ("cat", b"1"), "dog/1.jpg": ("dog", b"2")}
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        assert read(f"memory://b/{name}") == expected
        assert open_dataset(f"memory://b/{name}").samples[0].source.stamp() is None
    assert len(open_dataset("memory://b/a.{tar,zip}")) == 4
    assert len(open_dataset("memory://b")) == 6


def test_an_archive_that_was_replaced_is_read_anew(store: Any) -> None:
    for data in (b"old", b"young"):
        store.pipe("/b/a.zip", zipped(cat=data))
        assert read("memory://b/a.zip") == {"cat/1.jpg": ("cat", data)}


def test_what_is_missing_is_named(store: Any) -> None:
    store.pipe("/b/photos/1.jpg", b"x")
    with pytest.raises(DatasetNotFoundError, match=r"Did you mean 'memory://b/photos'\?"):
        open_dataset("memory://b/photo")
    with pytest.raises(DatasetNotFoundError, match="nothing is there"):
        open_dataset("memory://b/photo.zip")
    store.pipe("/b/texts/1.txt", b"x")
    with pytest.raises(DatasetError, match="no images found"):
        open_dataset("memory://b/texts")


def test_an_object_that_goes_away_fails_as_oserror(store: Any) -> None:
    store.pipe("/b/1.jpg", b"x")
    source = open_dataset("memory://b/1.jpg").samples[0].source
    store.rm("/b/1.jpg")
    with pytest.raises(FileNotFoundError):
        source.read()


def test_unknown_schemes_and_missing_packages() -> None:
    with pytest.raises(DatasetError, match=r"'memry://' is not known\. Did you mean 'memory://'"):
        open_dataset("memry://b")
    with pytest.raises(DatasetError, match="needs a package that is not installed"):
        open_dataset("oci://b/x")


@pytest.mark.parametrize(
    ("info", "stamp"),
    [
        ({"size": 3, "mtime": 2.5}, Stamp(3, 2_500_000_000)),
        ({"size": 3, "LastModified": datetime.fromtimestamp(2, UTC)}, Stamp(3, 2_000_000_000)),
        ({"size": 3, "last_modified": "yesterday"}, None),
        ({"size": None, "mtime": 1}, None),
        ({"size": 3}, None),
    ],
)
def test_stamps_of_a_listing(info: dict[str, Any], stamp: Stamp | None) -> None:
    assert location.stamp_from(info) == stamp
    assert location.RemoteSource("memory://x", stamp).stamp() == stamp


def test_whatever_a_library_raises_becomes_oserror() -> None:
    def fail() -> None:
        raise KeyError("token")

    with pytest.raises(OSError, match="s3://x: can not be read") as caught:  # noqa: SIM117
        with location.only_oserror("s3://x"):
            fail()
    assert isinstance(caught.value.__cause__, KeyError)
