"""Zips and tars: layouts, shards, hostile names, damage, reading."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import threading
import zipfile
from typing import TYPE_CHECKING

import pytest

from dinoprobe.datasets import member, open_dataset, tars, zips
from dinoprobe.errors import ConfigurationError, DatasetError, DatasetNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"cat/1.jpg": b"one", "dog/deep/2.PNG": b"two" * 1000, "dog/3.jpg": b"three"}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return make_zip(path, files)
    kind = path.suffix[1:].replace("tgz", "gz")
    return make_tar(path, files, "w" if kind == "tar" else f"w:{kind}")


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "A.ZIP.tar"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_class_folders_in_an_archive(tmp_path: Path, name: str) -> None:
    files = FILES | {"__MACOSX/cat/._1.jpg": b"x", "cat/Thumbs.db": b"x", "readme.md": b"x"}
    dataset = open_dataset(make(tmp_path / name, files))
    assert {s.key: s.label for s in dataset.samples} == {
        "cat/1.jpg": "cat",
        "dog/deep/2.PNG": "dog",
        "dog/3.jpg": "dog",
    }
    copies = pickle.loads(pickle.dumps(list(dataset.samples)))
    assert {s.key: s.source.read() for s in copies} == FILES
    assert {s.key: s.source.read() for s in reversed(dataset.samples)} == FILES
    assert dataset.ignored == {"left by an operating system": 2, "not an image by name": 1}
    assert dataset.samples[0].source.stamp() == (3, (tmp_path / name).stat().st_mtime_ns)
    assert dataset.notes == ()


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_split_folders_and_one_folder_around_everything(tmp_path: Path, name: str) -> None:
    files = {f"photos/{s}/cat/1.jpg": b"x" for s in ("train", "test")}
    dataset = open_dataset(make(tmp_path / name, files))
    assert [(s.key, s.label, s.split) for s in dataset.samples] == [
        ("photos/train/cat/1.jpg", "cat", "train"),
        ("photos/test/cat/1.jpg", "cat", "test"),
    ]
    assert "'photos'" in dataset.notes[0]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_hostile_names_are_read_and_write_nothing(tmp_path: Path, name: str) -> None:
    files = {"../../evil.jpg": b"1", "/etc/evil.jpg": b"2", "cat/../../evil.jpg": b"3"}
    (tmp_path / "in").mkdir()
    before = sorted(os.walk(tmp_path))
    dataset = open_dataset(make(tmp_path / "in" / name, files))
    assert [s.key for s in dataset.samples] == ["evil.jpg", "etc/evil.jpg", "cat/evil.jpg"]
    assert [s.source.read() for s in dataset.samples] == [b"1", b"2", b"3"]
    assert "3 names point outside" in dataset.notes[0]
    (tmp_path / "in" / name).unlink()
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_name_that_occurs_twice_gives_both(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cat/1.jpg", b"old")
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("cat/1.jpg", b"new")
    else:
        make_tar(path, {"cat/1.jpg": b"old"})
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("cat/1.jpg")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"new"))
    samples = open_dataset(path).samples
    assert {s.key: s.source.read() for s in samples} == {"cat/1.jpg": b"old", "cat/1.jpg#2": b"new"}


def test_names_in_a_tar_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, {"caf\udce9/\udcff.jpg": b"x", "日本/1.jpg": b"y"})
    assert [(s.key, s.label) for s in open_dataset(path).samples] == [
        (r"caf\xe9/\xff.jpg", r"caf\xe9"),
        ("日本/1.jpg", "日本"),
    ]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".cls", b"cat\n"),
        (".txt", b"cat"),
        (".json", b'{"label": "cat"}'),
        (".json", b'"cat"'),
        (".JSON", b'{"cls": "cat", "w": 3}'),
    ],
)
def test_webdataset_layout(tmp_path: Path, name: str, suffix: str, text: bytes) -> None:
    files = {"x/001.jpg": b"image", f"x/001{suffix}": text}
    files |= {"x/002.big.jpg": b"2", "x/002.cls": b"7"}
    dataset = open_dataset(make(tmp_path / name, files))
    assert [(s.key, s.label, s.source.read()) for s in dataset.samples] == [
        ("x/001.jpg", "cat", b"image"),
        ("x/002.big.jpg", "7", b"2"),
    ]
    assert (dataset.classes, dataset.ignored, dataset.notes) == (("7", "cat"), {}, ())


def test_an_image_without_a_label_file_is_unlabelled_and_said(tmp_path: Path) -> None:
    files = {"1.jpg": b"", "1.cls": b"3", "2.jpg": b"", "3.jpg": b"", "3.json": b"{]"}
    files |= {"4.cls": b"1"}
    dataset = open_dataset(make_tar(tmp_path / "a.tar", files))
    assert [s.label for s in dataset.samples] == ["3", None, None]
    assert dataset.notes == ("2 images have no label file beside it.",)
    assert dataset.ignored == {"not an image by name": 2}


def test_a_caption_is_not_a_label(tmp_path: Path) -> None:
    files = {"cat/1.jpg": b"", "cat/1.txt": b"two\nlines", "cat/1.json": b'{"w": 3}'}
    assert open_dataset(make_tar(tmp_path / "a.tar", files)).classes == ("cat",)


def shards(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_tar(folder / name, {"0.jpg": b"%d" % number, "0.cls": b"%d" % (number % 2)})


def test_shards_by_list_glob_braces_and_folder_are_the_same(tmp_path: Path) -> None:
    shards(tmp_path, "s-008.tar", "s-009.tar", "s-010.tar")
    sources = [
        [tmp_path / f"s-{number:03d}.tar" for number in (8, 9, 10)],
        str(tmp_path / "s-*.tar"),
        str(tmp_path / "s-{008..010}.tar"),
        str(tmp_path / "s-{008,009,010}.tar"),
        [str(tmp_path / "s-00?.tar"), str(tmp_path / "s-{010..010}.tar")],
        tmp_path,
    ]
    for source in sources:
        dataset = open_dataset(source)
        assert [(s.key, s.label) for s in dataset.samples] == [
            ("s-008.tar/0.jpg", "0"),
            ("s-009.tar/0.jpg", "1"),
            ("s-010.tar/0.jpg", "0"),
        ]
        assert [s.source.read() for s in dataset.samples] == [b"0", b"1", b"2"]


def test_split_folders_of_shards(tmp_path: Path) -> None:
    shards(tmp_path, "train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar")
    for source in (tmp_path, f"{tmp_path}/{{train,val}}/{{0..1}}.tar"):
        dataset = open_dataset(source)
        assert [(s.key, s.split) for s in dataset.samples][1:3] == [
            ("train/1.tar/0.jpg", "train"),
            ("val/0.tar/0.jpg", "val"),
        ]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path, "s-0.tar", "s-1.tar")
    with pytest.raises(DatasetNotFoundError, match=r"s-2\.tar: nothing is there"):
        open_dataset(f"{tmp_path}/s-{{0..2}}.tar")
    with pytest.raises(DatasetNotFoundError, match="nothing matches"):
        open_dataset(f"{tmp_path}/z-*.tar")
    with pytest.raises(ConfigurationError, match="no columns"):
        open_dataset(f"{tmp_path}/s-*.tar", label_column="x")


def test_a_file_whose_name_has_braces_is_itself(tmp_path: Path) -> None:
    shards(tmp_path, "{1..2}.tar")
    assert len(open_dataset(tmp_path / "{1..2}.tar")) == 1


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
@pytest.mark.parametrize("data", [b"", b"no archive at all" * 100])
def test_an_archive_that_can_not_be_read(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=r"not a readable|no images in the archive"):
        open_dataset(tmp_path / name)


def test_archives_without_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="only 1 not an image by name"):
        open_dataset(make_zip(tmp_path / "a.zip", {"readme.md": b"x"}))
    with pytest.raises(DatasetError, match="it is empty"):
        open_dataset(make_tar(tmp_path / "a.tar", {}))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_truncated_tar_gives_what_is_whole(tmp_path: Path, name: str) -> None:
    files = {f"cat/{number}.jpg": os.urandom(20_000) for number in range(4)}
    path = make(tmp_path / name, files)
    path.write_bytes(path.read_bytes()[:50_000])
    dataset = open_dataset(path)
    assert "archive ends early" in dataset.notes[0]
    assert [s.key for s in dataset.samples] == [f"cat/{number}.jpg" for number in range(3)]
    assert [s.source.read() for s in dataset.samples[:2]] == list(files.values())[:2]
    with pytest.raises(OSError, match=r"ends early|ended before"):
        dataset.samples[2].source.read()
    assert dataset.samples[0].source.read() == files["cat/0.jpg"]


def test_a_damaged_header_inside_a_tar_is_said(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"cat/{number}.jpg": b"x" for number in range(3)})
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"\xaa" * 512
    path.write_bytes(data)
    dataset = open_dataset(path)
    assert len(dataset) == 1
    assert "damaged header at byte 1,024" in dataset.notes[0]
    path.write_bytes(data[:1024])
    assert "no end mark" in open_dataset(path).notes[0]


def test_a_truncated_zip_is_an_error(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatasetError, match="not a readable zip"):
        open_dataset(path)


def test_a_damaged_member_of_a_zip_fails_alone(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"cat/1.jpg": b"a" * 5000, "cat/2.jpg": b"b"})
    data = bytearray(path.read_bytes())
    data[45:50] = b"\xff" * 5
    path.write_bytes(data)
    samples = open_dataset(path).samples
    with pytest.raises(OSError, match=r"cat/1\.jpg: can not be read"):
        samples[0].source.read()
    assert samples[1].source.read() == b"b"


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"cat/1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="encrypted"):
        open_dataset(path).samples[0].source.read()


def test_a_member_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"cat/1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + 24
    data[start : start + 4] = struct.pack("<I", member.MEMBER_LIMIT_BYTES + 1)
    path.write_bytes(data)
    with pytest.raises(OSError, match="The limit is 268,435,456 bytes"):
        open_dataset(path).samples[0].source.read()
    source = tars.TarSource(str(path), "1.jpg", 0, member.MEMBER_LIMIT_BYTES + 1)
    with pytest.raises(OSError, match="The limit is"):
        source.read()


def test_links_and_pipes_in_a_tar_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("1.jpg", tarfile.SYMTYPE), ("2.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"cat/{name}")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("cat/3.jpg"))
    dataset = open_dataset(path)
    assert [s.key for s in dataset.samples] == ["cat/3.jpg"]
    assert dataset.ignored == {"a link in an archive": 1, "not a regular file": 1}
    assert dataset.samples[0].source.read() == b""


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_that_changes_or_goes_away(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, {"cat/1.jpg": b"old"})
    source = open_dataset(path).samples[0].source
    assert source.read() == b"old"
    make(path, {"dog/2.jpg": b"young", "dog/3.jpg": b"new"})
    os.utime(path, ns=(1, 1))
    assert [s.source.read() for s in open_dataset(path).samples] == [b"young", b"new"]
    if name == "a.zip":
        with pytest.raises(OSError, match="has changed"):
            source.read()
    path.unlink()
    with pytest.raises(OSError, match=r"a\."):
        source.stamp()
    if name != "a.tar.gz":
        with pytest.raises(OSError, match=r"a\."):
            source.read()


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_many_threads_read_one_archive(tmp_path: Path, name: str) -> None:
    files = {f"cat/{number}.jpg": os.urandom(5_000) for number in range(60)}
    samples = open_dataset(make(tmp_path / name, files)).samples
    wrong: list[str] = []

    def check(offset: int) -> None:
        for index in range(offset, 60, 2):
            sample = samples[index]
            if sample.source.read() != files[sample.key]:
                wrong.append(sample.key)

    threads = [threading.Thread(target=check, args=(number % 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_packed_tar_is_read_far_behind_its_window(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tars, "_WINDOW_BYTES", 4096)
    monkeypatch.setattr(tars, "_CHUNK_BYTES", 1000)
    files = {f"cat/{number}.jpg": os.urandom(3_000) for number in range(10)}
    samples = open_dataset(make(tmp_path / "a.tar.gz", files)).samples
    for index in (9, 0, 5, 4, 4, 8, 1):
        assert samples[index].source.read() == files[samples[index].key]


def test_few_archives_stay_open(tmp_path: Path) -> None:
    for number in range(40):
        make_zip(tmp_path / f"{number:02d}.zip", {"a.jpg": b"z%d" % number})
        make_tar(tmp_path / f"{number:02d}.tar.gz", {"a.jpg": b"t%d" % number}, "w:gz")
    read = [s.source.read() for s in open_dataset(tmp_path).samples]
    assert read == [b"%b%d" % (kind, n) for n in range(40) for kind in (b"t", b"z")]
    assert len(zips._opened) <= 16
    assert len(tars._streams) <= 8


def test_a_forked_process_opens_archives_anew() -> None:
    for module in (zips, tars):
        module._forget()
    assert not zips._opened
    assert not tars._streams


def test_json_numbers_are_labels(tmp_path: Path) -> None:
    files = {"1.jpg": b"", "1.json": json.dumps({"target": 12}).encode()}
    assert open_dataset(make_zip(tmp_path / "a.zip", files)).classes == ("12",)
