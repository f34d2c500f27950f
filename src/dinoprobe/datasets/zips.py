"""Images in a zip, read where they are.

`zipfile` shares one file position, so reads of one archive take turns under a lock; opening it per
thread would read the directory again (about 1 s for 200,000 members).
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple, final

from dinoprobe.datasets.location import FileSource, is_remote, local_path, only_oserror, open_binary
from dinoprobe.datasets.member import MEMBER_LIMIT_BYTES, Member, Members
from dinoprobe.datasets.names import utf8
from dinoprobe.errors import DatasetError
from dinoprobe.types import Source, Stamp

if TYPE_CHECKING:
    import zipfile

_OPEN_LIMIT = 16
_ENCRYPTED = 0x1


class _Opened(NamedTuple):
    zip: zipfile.ZipFile
    infos: list[zipfile.ZipInfo]
    lock: threading.Lock
    stamp: Stamp | None


_opened: dict[str, _Opened] = {}
_opened_lock = threading.Lock()


def _forget() -> None:
    """A forked process shares file positions with its parent, so it opens archives anew."""
    global _opened_lock  # noqa: PLW0603
    _opened_lock = threading.Lock()
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@final
class ZipSource(Source):
    """A member of a zip, by its place in the directory: names may occur twice."""

    __slots__ = ("index", "member", "place")

    def __init__(self, place: str, index: int, member: str) -> None:
        self.place = place
        self.index = index
        self.member = member

    def __repr__(self) -> str:
        return f"ZipSource({self.place!r}, {self.index}, {self.member!r})"

    def read(self) -> bytes:
        """The member's bytes. Raises OSError when it is encrypted, damaged or over 256 MiB."""
        where = f"{utf8(self.place)}:{utf8(self.member)}"
        with only_oserror(where):
            opened = _open(self.place)
            with opened.lock:
                return opened.zip.read(_checked(opened, self.index, self.member, where))

    def stamp(self) -> Stamp | None:
        """The size of the member and the archive's time of change; None in a store."""
        with only_oserror(self.place):
            changed = _stamp(self.place)
            if changed is None:
                return None
            infos = _open(self.place).infos
        if self.index >= len(infos):
            raise OSError(f"{utf8(self.place)}:{utf8(self.member)}: the archive has changed")
        return Stamp(infos[self.index].file_size, changed.mtime_ns)


def list_zip(place: str) -> Members:
    """The members of a zip. Raises DatasetError when its directory can not be read."""
    try:
        with only_oserror(place):
            _opened.pop(place, None)
            opened = _open(place)
    except OSError as error:
        raise DatasetError(
            f"{utf8(place)}: not a readable zip ({error}). Expected a whole, undamaged archive; "
            "copy it again."
        ) from error
    members = Members()
    for index, info in enumerate(opened.infos):
        if not info.is_dir():
            _add(members, place, index, info)
    return members


def _add(members: Members, place: str, index: int, info: zipfile.ZipInfo) -> None:
    path = members.clean(info.filename)
    kind = members.wants(path, info.file_size)
    source = ZipSource(place, index, info.filename)
    if kind == "image":
        members.images.append(Member(path, source))
    elif kind == "sidecar":
        try:
            members.sidecars[path] = source.read()
        except OSError as error:
            members.notes.append(f"A label file can not be read: {error}.")


def _checked(opened: _Opened, index: int, member: str, where: str) -> zipfile.ZipInfo:
    info = opened.infos[index] if index < len(opened.infos) else None
    if info is None or info.filename != member:
        raise OSError(f"{where}: the archive has changed since it was listed")
    if info.flag_bits & _ENCRYPTED:
        raise OSError(f"{where}: encrypted. Expected a zip without a password")
    if info.file_size > MEMBER_LIMIT_BYTES:
        raise OSError(
            f"{where}: {info.file_size:,} bytes when unpacked. "
            f"The limit is {MEMBER_LIMIT_BYTES:,} bytes"
        )
    return info


def _stamp(place: str) -> Stamp | None:
    return None if is_remote(place) else FileSource(local_path(place)).stamp()


def _open(place: str) -> _Opened:
    """The opened archive, from a small cache; opened again when the file has changed."""
    import zipfile

    stamp = _stamp(place)
    with _opened_lock:
        found = _opened.get(place)
        if found is not None and found.stamp == stamp:
            return found
        archive = zipfile.ZipFile(open_binary(place) if stamp is None else local_path(place))
        while len(_opened) >= _OPEN_LIMIT:
            _opened.pop(next(iter(_opened)))
        opened = _opened[place] = _Opened(archive, archive.infolist(), threading.Lock(), stamp)
        return opened
