import errno
import hashlib
import json
import math
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest

from dinoprobe import files
from dinoprobe.errors import FormatError
from dinoprobe.files import (
    WriteError,
    atomic_writer,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    to_json,
    write_atomic,
    write_json,
)


def test_text_and_bytes_arrive_and_nothing_stays_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "Grüße\n")
    write_atomic(str(tmp_path / "b.bin"), b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "Grüße\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"")
        save_tensors(tmp_path / "b", {"x": np.zeros(2)})
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o640}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with pytest.raises(TypeError), atomic_writer(path) as file:
        file.writelines([b"half of the n", "ew"])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_path_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    write_atomic(path, b"old")
    with pytest.raises(WriteError, match=r"big\.bin: the disk is full; 12,345 bytes") as caught:  # noqa: SIM117
        with atomic_writer(path, size_bytes=12_345):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(caught.value, OSError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_never_replaced() -> None:
    with pytest.raises(WriteError, match="a device or a pipe"):
        write_atomic("/dev/full", b"x")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_folder_and_a_missing_folder_are_refused_with_advice(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "a"):
        with pytest.raises(WriteError, match=r"can not be written .* Choose another place"):
            write_atomic(path, b"x")


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"


def test_file_and_folder_are_synced_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def rename(self: Path, target: str) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomic(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "folder"]


def test_json_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1, 2.5, None, True]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "b": "é",')
    assert text.endswith("}\n")
    assert read_json(tmp_path / "a.json") == {"b": "é", "a": [1, 2.5, None, True]}


def test_json_survives_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", {name: "\\udce9"})
    assert read_json(tmp_path / "a.json") == {name: "\\udce9"}
    (tmp_path / "a.json").read_bytes().decode("utf-8")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1.0, math.nan]}, r"value\.a\[1\]"),
        ({"b": math.inf}, r"value\.b"),
        ({"c": {"d": np.float32(1)}}, r"value\.c\.d"),
    ],
)
def test_json_refuses_what_it_has_no_word_for(tmp_path: Path, value: object, place: str) -> None:
    with pytest.raises(FormatError, match=rf"a\.json: {place} can not be written as JSON"):
        write_json(tmp_path / "a.json", value)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_damaged_json_is_a_format_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"a\.json: not a JSON document"):
        read_json(tmp_path / "a.json")


def test_one_line_of_json() -> None:
    assert json.loads(to_json({"a": 1})) == {"a": 1}
    assert b"\n" not in to_json({"a": [1, 2]})


def test_tensors_come_back_equal_whatever_their_layout(tmp_path: Path) -> None:
    arrays = {
        "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "turned": np.arange(12, dtype=np.int64).reshape(3, 4).T,
        "strided": np.arange(10, dtype=np.float64)[::3],
        "scalar": np.asarray(2.5),
        "empty": np.zeros((0, 4), dtype=np.float16),
        "big endian": np.arange(3, dtype=">f4"),
    }
    save_tensors(tmp_path / "a.safetensors", arrays, {"note": "x"})
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape, name
        np.testing.assert_array_equal(loaded[name], array)


def test_loaded_tensors_do_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": np.ones(4)})
    loaded = load_tensors(path)["x"]
    path.write_bytes(b"")
    np.testing.assert_array_equal(loaded, np.ones(4))


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x: object"):
        save_tensors(tmp_path / "a", {"x": np.asarray(["a"], dtype=object)})


@pytest.mark.parametrize("keep", [0, 4, 9, 40, -1])
def test_a_cut_tensor_file_is_a_format_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": np.ones(64)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"a\.safetensors: not a readable safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"[]",
        b"\xff\xff",
    ],
)
def test_a_lying_header_is_a_format_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(FormatError):
        load_tensors(path)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
