"""Arrays in files of their own, for more numbers than memory should hold.

Such an array is a `numpy.memmap` of a file that has lost its name, so that the system removes it
with the array, also after a kill; its pages are the system's, which takes them back when memory is
wanted. The space is reserved at once: to write into a mapped file on a full disk ends a process
without a word.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import MismatchError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

PREFIX = "dinoprobe-features-"
"""How these files are told from those that a user has mapped, beside which nothing is written."""
BLOCK_BYTES = 16 << 20
"""What is copied, or read for a prediction, at a time."""


def mapped(shape: tuple[int, ...], dtype: npt.DTypeLike, folder: Path) -> npt.NDArray[Any]:
    """A new array of zeros in a file in `folder`. Raises StoreError where the disk has no room."""
    import numpy as np

    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    with _nameless(folder) as file, _reported(folder, size):
        _reserve(file.fileno(), size)
        return np.memmap(file.name, dtype=dtype, mode="r+", shape=shape)


def gathered(
    blocks: Iterable[tuple[npt.NDArray[np.float32], Sequence[str]]], folder: Path
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.object_]]:
    """Features `(n, d)` in a file in `folder`, and their labels `(n,)`, from blocks of both.

    Raises MismatchError for blocks that do not fit each other, StoreError for a full disk; what the
    iterator raises goes on to the caller. The file is gone then.
    """
    import numpy as np

    labels: list[str] = []
    width: int | None = None
    with _nameless(folder) as file:
        for number, (X, y) in enumerate(blocks, start=1):
            rows = np.ascontiguousarray(X, dtype="<f4")
            width = rows.shape[-1] if width is None else width
            if rows.shape != (len(y), width):
                raise MismatchError(
                    f"Block {number} has features of shape {rows.shape} and {len(y)} labels; "
                    f"expected ({len(y)}, {width}), as the blocks before it."
                )
            with _reported(folder, rows.nbytes):
                file.write(rows.data)
            labels.extend(y)
        if width is None:
            raise MismatchError("There are no blocks of features; expected at least one.")
        with _reported(folder):
            file.flush()
        found = np.memmap(file.name, dtype="<f4", mode="r+", shape=(len(labels), width))
    y_found = np.empty(len(labels), dtype=object)
    y_found[:] = labels
    return found, y_found


def folder_of(X: Any) -> Path | None:
    """The folder of the file behind such an array, or a view of it; None for any other array."""
    import numpy as np

    while X is not None:
        if isinstance(X, np.memmap) and X.filename and Path(X.filename).name.startswith(PREFIX):
            return Path(X.filename).parent
        X = getattr(X, "base", None)
    return None


def take(X: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """These rows of X, in a file of their own where X is in one."""
    folder = folder_of(X)
    if folder is None:
        return X[rows]
    found = mapped((len(rows), *X.shape[1:]), X.dtype, folder)
    start = 0
    for some in blocks(X, rows):
        found[start : start + len(some)] = X[some]
        start += len(some)
    return found


def blocks(X: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    """These row numbers in parts of `BLOCK_BYTES` where X is in a file, else all of them."""
    size = len(rows)
    if folder_of(X) is not None:
        size = max(1, BLOCK_BYTES // max(1, X[:1].nbytes))
    for start in range(0, max(len(rows), 1), max(size, 1)):
        yield rows[start : start + size]


@contextmanager
def _nameless(folder: Path) -> Iterator[Any]:
    """A file that loses its name at the end."""
    with _reported(folder):
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX, delete=False)  # noqa: SIM115
    try:
        yield file
    finally:
        file.close()
        with suppress(PermissionError):  # Windows keeps a mapped file's name
            Path(file.name).unlink()


@contextmanager
def _reported(folder: Path, size: int = 0) -> Iterator[None]:
    """Map errors of the disk to StoreError."""
    try:
        yield
    except OSError as error:
        needed = f" for {size:,} bytes" if size else ""
        raise StoreError(
            f"{folder}: no room{needed} of features ({error.strerror or error}). Expected a folder "
            "on a disk with that much free. Free some space, choose --out on another disk, or give "
            "a larger --memory."
        ) from error


def _reserve(descriptor: int, size: int) -> None:
    """Take the space on the disk, or raise OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
