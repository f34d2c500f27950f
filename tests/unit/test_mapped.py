"""Arrays in files that have no name: they are read like any, and leave nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dinoprobe import mapped as module
from dinoprobe.errors import MismatchError, StoreError
from dinoprobe.mapped import blocks, folder_of, gathered, mapped, take


def open_files(folder: Path) -> list[str]:
    """Files of a folder that this process holds, with a name or without."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if str(folder) in line]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_array_has_no_name_and_goes_with_its_last_view(tmp_path: Path) -> None:
    X = mapped((10, 3), np.float32, tmp_path)
    X[:] = np.arange(30).reshape(10, 3)
    view = X[2:, 1:]
    assert list(tmp_path.iterdir()) == []
    assert len(open_files(tmp_path)) == 1
    assert view[0].tolist() == [7, 8]
    del X
    gc.collect()
    assert len(open_files(tmp_path)) == 1
    del view
    gc.collect()
    assert open_files(tmp_path) == []


def test_views_know_their_folder_and_copies_have_none(tmp_path: Path) -> None:
    X = mapped((10, 4), np.float32, tmp_path)
    assert folder_of(X) == folder_of(X[3:, ::2]) == folder_of(np.asarray(X)) == tmp_path
    for copy in (X[[1, 2]], X + 1, X.astype(np.float64), np.zeros((2, 2)), None):
        assert folder_of(copy) is None


def test_a_file_that_a_user_mapped_is_left_alone(tmp_path: Path) -> None:
    own = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", shape=(10, 2))
    assert folder_of(own) is None
    assert folder_of(take(own, np.arange(3))) is None


def test_rows_are_taken_into_a_file_by_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    X = mapped((100, 4), np.float32, tmp_path)
    X[:] = np.random.default_rng(0).normal(size=X.shape)
    rows = np.random.default_rng(1).permutation(100)[:37]
    assert [len(part) for part in blocks(X, rows)] == [4] * 9 + [1]
    found = take(X, rows)
    assert folder_of(found) == tmp_path
    assert np.array_equal(found, np.array(X)[rows])


@pytest.mark.parametrize("rows", [[], [5, 5, 1]])
def test_rows_in_memory_are_one_block(rows: list[int]) -> None:
    X, chosen = np.arange(12.0).reshape(6, 2), np.array(rows, dtype=np.intp)
    assert [part.tolist() for part in blocks(X, chosen)] == [rows]
    assert np.array_equal(take(X, chosen), X[chosen])


def test_an_empty_array(tmp_path: Path) -> None:
    X = mapped((0, 4), np.float32, tmp_path)
    assert take(X, np.arange(0)).shape == (0, 4)


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=r"no room for 4,000 bytes .*No space left.*--memory"):
        mapped((100, 10), np.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        mapped((2, 2), np.float32, tmp_path / "absent")


def test_blocks_of_any_number_are_gathered_in_a_file(tmp_path: Path) -> None:
    parts = [(np.full((n, 3), n, dtype=np.float32), [f"class {n}"] * n) for n in (2, 5, 1)]
    X, y = gathered(iter(parts), tmp_path)
    assert folder_of(X) == tmp_path
    assert np.array_equal(X, np.concatenate([rows for rows, _ in parts]))
    assert y.tolist() == [label for _, labels in parts for label in labels]
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_do_not_fit_or_end_early_leave_nothing(tmp_path: Path) -> None:
    def interrupted(error: Exception) -> object:
        yield np.zeros((2, 3), np.float32), ["a", "b"]
        raise error

    for error in (StoreError("row ab12 is damaged"), FileNotFoundError("no such file")):
        with pytest.raises(type(error)) as caught:
            gathered(interrupted(error), tmp_path)
        assert caught.value is error
    block = (np.zeros((2, 3), np.float32), ["a", "b"])
    with pytest.raises(MismatchError, match=r"Block 2 .*\(2, 4\) and 2 labels; expected \(2, 3\)"):
        gathered([block, (np.zeros((2, 4), np.float32), ["a", "b"])], tmp_path)
    with pytest.raises(MismatchError, match="no blocks"):
        gathered([], tmp_path)
    assert list(tmp_path.iterdir()) == []
