"""Images in a tar, read where they are.

A plain tar is indexed once by its headers, then each member is a range of bytes: reads need no
lock, and in a store they are ranged requests. A compressed tar has no such ranges; it is unpacked
as a stream, in order, and a window of the last 64 MiB serves readers that are slightly out of
order.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, final

from dinoprobe.datasets.location import (
    FileSource,
    is_remote,
    local_path,
    only_oserror,
    open_binary,
    read_range,
)
from dinoprobe.datasets.member import MEMBER_LIMIT_BYTES, Member, Members
from dinoprobe.datasets.names import NOT_A_FILE, PACKED_TAR_SUFFIXES, utf8
from dinoprobe.errors import DatasetError
from dinoprobe.types import Source, Stamp

if TYPE_CHECKING:
    import tarfile

_WINDOW_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_OPEN_LIMIT = 8
_LINK = "a link in an archive"


@final
class TarSource(Source):
    """A member of a tar: `size_bytes` from `start` in the archive, unpacked if it is packed."""

    __slots__ = ("member", "place", "size_bytes", "start")

    def __init__(self, place: str, member: str, start: int, size_bytes: int) -> None:
        self.place = place
        self.member = member
        self.start = start
        self.size_bytes = size_bytes

    def __repr__(self) -> str:
        return f"TarSource({self.place!r}, {self.member!r}, {self.start}, {self.size_bytes})"

    def read(self) -> bytes:
        """The member's bytes. Raises OSError when the archive ends early or it is over 256 MiB."""
        where = f"{utf8(self.place)}:{utf8(self.member)}"
        if self.size_bytes > MEMBER_LIMIT_BYTES:
            raise OSError(
                f"{where}: {self.size_bytes:,} bytes. The limit is {MEMBER_LIMIT_BYTES:,} bytes"
            )
        with only_oserror(where):
            if is_packed(self.place):
                return _stream(self.place).read_at(self.start, self.size_bytes)
            return read_range(self.place, self.start, self.size_bytes)

    def stamp(self) -> Stamp | None:
        """The size of the member and the archive's time of change; None in a store."""
        if is_remote(self.place):
            return None
        changed = FileSource(local_path(self.place)).stamp()
        return Stamp(self.size_bytes, changed.mtime_ns)


def is_packed(place: str) -> bool:
    """Whether this tar is compressed, by its name."""
    return place.lower().endswith(PACKED_TAR_SUFFIXES)


def list_tar(place: str) -> Members:
    """The members of a tar, as far as it can be read; a note says when it ends early.

    Raises DatasetError when not even the first header can be read.
    """
    members = Members()
    with _streams_lock:
        _streams.pop(place, None)
    try:
        with only_oserror(place), open_binary(place) as raw:
            file = _unpacking(place, raw) if is_packed(place) else raw
            end = _index(place, file, members)
    except OSError as error:
        if not _count(members):
            raise DatasetError(
                f"{utf8(place)}: not a readable tar ({error}). Expected a whole, undamaged "
                "archive; copy it again."
            ) from error
        end = str(error)
    if end:
        members.notes.append(
            f"{utf8(place)}: archive ends early, after {_count(members):,} files ({end})."
        )
    return members


def _count(members: Members) -> int:
    return len(members.images) + len(members.sidecars) + members.ignored.counts.total()


def _index(place: str, file: Any, members: Members) -> str | None:
    """Adds every member; returns why the archive ends early, or None when it ends properly.

    `tarfile` takes a damaged header after the first for the end, so what is there is looked at.
    """
    import tarfile

    watched = _LastBlock(file)
    with tarfile.open(fileobj=watched, mode="r:") as archive:  # type: ignore[call-overload]
        for info in archive:
            _add(place, info, file, members)
            archive.members.clear()
    if any(watched.last):
        return f"damaged header at byte {archive.offset:,}"
    return None if watched.last else "no end mark"


@final
class _LastBlock:
    """A file that remembers what was read last: going back in a packed file unpacks it again."""

    def __init__(self, file: Any) -> None:
        self.last = b""
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read

    def read(self, size_bytes: int) -> bytes:
        self.last = self._read(size_bytes)
        return self.last


def _add(place: str, info: tarfile.TarInfo, file: Any, members: Members) -> None:
    if info.isdir():
        return
    if not info.isreg() or info.issparse():
        reason = _LINK if info.issym() or info.islnk() else NOT_A_FILE
        members.ignored.add(members.clean(info.name), reason)
        return
    path = members.clean(info.name)
    kind = members.wants(path, info.size)
    if kind == "image":
        source = TarSource(place, info.name, info.offset_data, info.size)
        members.images.append(Member(path, source))
    elif kind == "sidecar":
        file.seek(info.offset_data)
        members.sidecars[path] = file.read(info.size)


def _unpacking(place: str, raw: Any) -> Any:
    """The file object that unpacks `raw`, by the suffix."""
    suffix = place.lower()
    if suffix.endswith((".bz2", ".tbz2")):
        import bz2

        return bz2.BZ2File(raw)
    if suffix.endswith((".xz", ".txz")):
        import lzma

        return lzma.LZMAFile(raw)
    import gzip

    return gzip.GzipFile(fileobj=raw)


@final
class _Stream:
    """Random reads from a stream that can only go forwards or start again."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._file: Any = None
        self._raw: Any = None
        self._rewind()

    def read_at(self, start: int, size_bytes: int) -> bytes:
        """Bytes of the unpacked archive. Raises EOFError when it ends before."""
        with self._lock:
            if start < self._end - self._kept:
                self._rewind()
            try:
                return self._read(start, start + size_bytes)
            except BaseException:
                self._rewind()
                raise

    def _read(self, start: int, stop: int) -> bytes:
        found = bytearray()
        position = self._end - self._kept
        for chunk in self._window:
            found += chunk[max(start - position, 0) : max(stop - position, 0)]
            position += len(chunk)
        while position < stop:
            chunk = self._file.read1(_CHUNK_BYTES)
            if not chunk:
                raise EOFError(f"archive ends early, at byte {position:,}; expected {stop:,}")
            self._keep(chunk)
            found += chunk[max(start - position, 0) : max(stop - position, 0)]
            position += len(chunk)
        return bytes(found)

    def _keep(self, chunk: bytes) -> None:
        self._window.append(chunk)
        self._end += len(chunk)
        self._kept += len(chunk)
        while self._kept > _WINDOW_BYTES:
            self._kept -= len(self._window.popleft())

    def _rewind(self) -> None:
        self._window: deque[bytes] = deque()
        self._end = self._kept = 0
        if self._raw is not None:
            self._raw.close()
        self._raw = open_binary(self._place)
        self._file = _unpacking(self._place, self._raw)

    def __del__(self) -> None:
        if self._raw is not None:
            self._raw.close()


_streams: dict[str, _Stream] = {}
_streams_lock = threading.Lock()


def _stream(place: str) -> _Stream:
    with _streams_lock:
        found = _streams.get(place)
        if found is None:
            while len(_streams) >= _OPEN_LIMIT:
                _streams.pop(next(iter(_streams)))
            found = _streams[place] = _Stream(place)
        return found


def _forget() -> None:
    """A forked process shares file positions with its parent, so it opens archives anew."""
    global _streams_lock  # noqa: PLW0603
    _streams_lock = threading.Lock()
    _streams.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
