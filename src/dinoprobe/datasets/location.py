"""Places: a local path, or a URI that fsspec knows. Opening, reading, and what fails there.

A source keeps only the text of its place, so it pickles in a few bytes and works in another
process. fsspec keeps one connection per kind of store, so looking it up again costs about 20 µs.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, final

from dinoprobe.datasets.names import nearest, utf8
from dinoprobe.errors import DatasetError, DatasetNotFoundError
from dinoprobe.types import Source, Stamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "updated")


@contextmanager
def only_oserror(place: str) -> Iterator[None]:
    """Turns whatever a library raises while it reads `place` into an OSError.

    The clients of the stores behind fsspec raise families of their own (botocore, aiohttp,
    google.api_core), which can not be listed without importing them.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        message = str(error) or type(error).__name__
        raise OSError(f"{utf8(place)}: can not be read ({message})") from error


@final
class FileSource(Source):
    """A file on this machine. `path` may hold undecodable bytes as surrogates."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"FileSource({self.path!r})"

    def read(self) -> bytes:
        """The bytes of the file. A pipe or a socket is refused before it is opened."""
        with only_oserror(self.path):
            self._regular()
            with open(self.path, "rb") as file:
                return file.read()

    def stamp(self) -> Stamp:
        """Size and time of change."""
        with only_oserror(self.path):
            status = self._regular()
        return Stamp(status.st_size, status.st_mtime_ns)

    def _regular(self) -> os.stat_result:
        status = os.stat(self.path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{utf8(self.path)}: not a regular file")
        return status


@final
class RemoteSource(Source):
    """An object of a store that fsspec reads. `known` is the stamp that the listing gave."""

    __slots__ = ("known", "uri")

    def __init__(self, uri: str, known: Stamp | None = None) -> None:
        self.uri = uri
        self.known = known

    def __repr__(self) -> str:
        return f"RemoteSource({self.uri!r})"

    def read(self) -> bytes:
        """The bytes of the object."""
        with only_oserror(self.uri):
            filesystem, path = _filesystem(self.uri)
            return bytes(filesystem.cat_file(path))

    def stamp(self) -> Stamp | None:
        """What the listing said, or None: asking each object again is not cheap."""
        return self.known


def is_remote(place: str) -> bool:
    """Whether this is a URI, and not one of this machine's files."""
    return "://" in place and not place.startswith(("file://", "local://"))


def local_path(place: str) -> str:
    """A `file://` URI as a path; anything else as it is."""
    for scheme in ("file://", "local://"):
        if place.startswith(scheme):
            return place.removeprefix(scheme)
    return place


def source_at(place: str) -> Source:
    """The source for a path or a URI. Nothing is opened."""
    return RemoteSource(place) if is_remote(place) else FileSource(local_path(place))


_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it.

    Raises DatasetError for an unknown scheme, or when its package is not installed.
    """
    try:
        return _filesystem(uri)
    except ImportError as error:
        raise DatasetError(_not_installed(uri, error)) from error
    except ValueError as error:
        raise DatasetError(_unknown_scheme(uri, error)) from error
    except OSError as error:
        raise DatasetError(f"{uri}: the store can not be opened ({error}).") from error


def _filesystem(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(uri)
    return filesystem, path


def _not_installed(uri: str, error: ImportError) -> str:
    package = _PACKAGES.get(uri.partition("://")[0])
    text = f"{uri}: this kind of store needs a package that is not installed ({error})."
    return f"{text} Install it with: pip install {package}" if package else text


def _unknown_scheme(uri: str, error: ValueError) -> str:
    from fsspec import available_protocols

    scheme = uri.partition("://")[0]
    close = nearest(scheme, available_protocols())
    if scheme in available_protocols() or close is None:
        return f"{uri}: not a place that fsspec can open ({error})."
    return f"{uri}: the scheme '{scheme}://' is not known. Did you mean '{close}://'?"


def open_binary(place: str) -> Any:
    """A seekable binary file at a path or a URI. Raises OSError."""
    with only_oserror(place):
        if not is_remote(place):
            source = FileSource(local_path(place))
            source.stamp()
            return open(source.path, "rb")
        filesystem, path = _filesystem(place)
        return filesystem.open(path, "rb")


def read_range(place: str, start: int, size_bytes: int) -> bytes:
    """`size_bytes` bytes from `start`. Raises OSError, also when the file ends before."""
    with only_oserror(place):
        if is_remote(place):
            filesystem, path = _filesystem(place)
            found = bytes(filesystem.cat_file(path, start=start, end=start + size_bytes))
        else:
            with open(local_path(place), "rb") as file:
                file.seek(start)
                found = file.read(size_bytes)
    if len(found) != size_bytes:
        raise OSError(
            f"{utf8(place)}: ends early ({len(found):,} of {size_bytes:,} bytes at {start:,})"
        )
    return found


def stamp_from(info: Mapping[str, Any]) -> Stamp | None:
    """A stamp out of one record of an fsspec listing, or None when it has no time of change."""
    changed = next((info[name] for name in _TIME_FIELDS if info.get(name)), None)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    size_bytes = info.get("size")
    if not isinstance(changed, int | float) or not isinstance(size_bytes, int):
        return None
    return Stamp(size_bytes, int(changed * 1_000_000_000))


def not_found(place: str) -> DatasetNotFoundError:
    """The error for a place where nothing is, with the sibling that is spelt most like it."""
    parent, _, name = place.rstrip("/").rpartition("/")
    siblings = _siblings(place, parent)
    hint = "Check the spelling."
    if siblings is None:
        hint = f"Its folder '{utf8(parent)}' does not exist either."
    elif close := nearest(name, siblings):
        hint = f"Did you mean '{utf8(parent + '/' if parent else '')}{utf8(close)}'?"
    return DatasetNotFoundError(
        f"{utf8(place)}: nothing is there. "
        f"Expected an image, a folder, a table or an archive. {hint}"
    )


def _siblings(place: str, parent: str) -> list[str] | None:
    try:
        if is_remote(place):
            filesystem, path = _filesystem(parent + "/")
            found = filesystem.ls(path, detail=False)
            return [str(name).rstrip("/").rpartition("/")[2] for name in found]
        return os.listdir(local_path(parent) or ("/" if place.startswith("/") else "."))
    except (OSError, ValueError, ImportError):
        return None
