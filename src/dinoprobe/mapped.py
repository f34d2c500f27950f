"""Arrays in files of their own, for more numbers than memory should hold.

Such an array is a `numpy.memmap` of a file that has lost its name, so that the system removes it
with the array, also after a kill; its pages are the system's, which takes them back when memory is
wanted. The space is reserved at once: to write into a mapped file on a full disk ends a process
without a word.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX, delete=False) as file:
            try:
                _reserve(file.fileno(), size)
                found = np.memmap(file.name, dtype=dtype, mode="r+", shape=shape)
            finally:
                with suppress(PermissionError):  # Windows keeps a mapped file's name
                    Path(file.name).unlink()
    except OSError as error:
        raise StoreError(
            f"{folder}: no room for {size:,} bytes of features ({error.strerror or error}). "
            "Expected a folder on a disk with that much free. Free some space, choose --out on "
            "another disk, or give a larger --memory."
        ) from error
    return found


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


def _reserve(descriptor: int, size: int) -> None:
    """Take the space on the disk, or raise OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
