"""Files that are either whole or absent: written beside, synced, renamed.

A kill or a power loss at any moment leaves the old file or the new one, never half of one. The
price is one fsync of the file and one of its folder, 1 to 10 ms on a disk, so this is for what a
user keeps (heads, reports, tables) and not for thousands of small files. `safetensors.save_file`
alone does not sync and leaves mode 0600; `save_tensors` gives it the same guarantees.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dinoprobe.errors import DinoprobeError, FormatError

if TYPE_CHECKING:
    import numpy.typing as npt

_STALE_S = 24 * 3600
_DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class WriteError(DinoprobeError, OSError):
    """A file that can not be written: a full disk, no permission, no such folder."""


def user_cache() -> Path:
    """The per-user place: DINOPROBE_CACHE, else XDG_CACHE_HOME/dinoprobe, else ~/.cache/dinoprobe.

    Features lie in its folder `features`, imported encoders in `encoders`, compiled graphs in
    `graphs`, results of start-up tests in `selftests`. The last two can be removed at any time.
    """
    cache = os.environ.get("DINOPROBE_CACHE")
    if not cache:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        cache = os.path.join(home, "dinoprobe")
    return Path(cache).expanduser()


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Put `data` at `path`, all or nothing. Text is UTF-8. Raises WriteError."""
    content = data.encode() if isinstance(data, str) else data
    with atomic_writer(path, size_bytes=len(content)) as file:
        file.write(content)


@contextmanager
def atomic_writer(
    path: str | os.PathLike[str], *, size_bytes: int | None = None
) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` when the block ends well, and not at all otherwise.

    The mode follows the umask, a symbolic link is written through, and the folder must exist.
    `size_bytes` is only for the message on a full disk. Raises WriteError.
    """
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".dinoprobe-{secrets.token_hex(8)}.tmp")
    try:
        _refuse_special(target)
        with open(temporary, "xb") as file:
            yield file
            size_bytes = max(size_bytes or 0, file.tell())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
        _sync_folder(os.path.dirname(target))
    except OSError as error:
        raise _write_error(path, error, size_bytes) from error
    finally:
        with suppress(OSError):
            Path(temporary).unlink()


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON in its own order, as `to_json` makes it."""
    try:
        text = to_json(value, indent=2)
    except FormatError as error:
        raise FormatError(f"{_show(path)}: {error}") from error
    write_atomic(path, text + b"\n")


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """The UTF-8 JSON of `value`. Raises FormatError where a number is NaN or infinite.

    A file name that is not UTF-8 holds lone surrogates; they become JSON's own escapes, so every
    name survives `read_json`.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        place = _not_json(value, "value")
        raise FormatError(
            f"{place or 'value'} can not be written as JSON ({error}). "
            "Expected null, booleans, finite numbers, strings, lists and dictionaries."
        ) from error
    return text.encode("utf-8", "backslashreplace")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises FormatError on damage, FileNotFoundError where none is."""
    try:
        return json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{_show(path)}: not a JSON document ({error}). Restore the file or write it again."
        ) from error


def valid_text(value: str | None) -> str | None:
    """Text that Arrow accepts, also where it came from a name that is not UTF-8."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def save_tensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays as one safetensors file, all or nothing.

    Holds the whole file in memory once more. Raises WriteError, and FormatError for a type that
    safetensors has no name for.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save

    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        data = save(plain, metadata=dict(metadata) if metadata else None)
    except (SafetensorError, KeyError, ValueError) as error:
        types = ", ".join(f"{name}: {array.dtype}" for name, array in plain.items())
        raise FormatError(
            f"{_show(path)}: not writable as safetensors ({error}); arrays are {types}. "
            "Expected integers, floats or booleans."
        ) from error
    write_atomic(path, data)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, read and not mapped, so a later change can not reach them.

    Raises FormatError on damage, FileNotFoundError where there is none.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(Path(path).read_bytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(
            f"{_show(path)}: not a readable safetensors file ({error}). "
            "Restore the file or write it again."
        ) from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes in hex, read in pieces: about 1.8 GiB/s."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Make a finished folder of plain files last through a loss of power, before it is renamed."""
    for path in sorted(Path(folder).iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    _sync_folder(os.fspath(folder))


@contextmanager
def staged_folder(folder: Path, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder beside `folder`, whose place it takes when the block ends well, and else leaves.

    What is at the place stays where `is_whole` says so, for then another process was faster with
    the same; what is left of something broken is removed. Siblings that a kill left a day ago or
    earlier are removed, too.
    """
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    staging = root / f".staging-{secrets.token_hex(8)}"
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        if folder.exists() and not is_whole(folder):
            shutil.rmtree(folder)
        try:
            staging.rename(folder)
        except OSError:
            if not is_whole(folder):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    for folder in root.glob(".staging-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def umask() -> int:
    """The user's mask for new files; there is no way to read it but to set it."""
    current = os.umask(0)
    os.umask(current)
    return current


def _refuse_special(target: str) -> None:
    """Renaming over a device would replace the device itself."""
    try:
        mode = Path(target).stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a device or a pipe, not a regular file")


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return  # Windows has no handle on a folder to sync
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_error(
    path: str | os.PathLike[str], error: OSError, size_bytes: int | None
) -> WriteError:
    needed = f"; {size_bytes:,} bytes are needed" if size_bytes else ""
    if error.errno in _DISK_FULL:
        return WriteError(
            f"{_show(path)}: the disk is full{needed}. "
            "What was there before is untouched. Free some space and run again."
        )
    reason = error.strerror or str(error)
    return WriteError(
        f"{_show(path)}: can not be written ({reason}). "
        "Expected a file in an existing folder that you may write to. Choose another place."
    )


def _not_json(value: object, place: str) -> str | None:
    """Where in `value` the first thing is that JSON can not hold, such as `value.accuracy`."""
    if isinstance(value, Mapping):
        places = (_not_json(item, f"{place}.{key}") for key, item in value.items())
        return next((found for found in places if found), None)
    if isinstance(value, list | tuple):
        places = (_not_json(item, f"{place}[{index}]") for index, item in enumerate(value))
        return next((found for found in places if found), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    return None if value is None or isinstance(value, str | int) else place


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _show(path: str | os.PathLike[str]) -> str:
    """A path that prints anywhere, also where its name is not UTF-8."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
