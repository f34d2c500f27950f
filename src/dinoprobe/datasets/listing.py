"""What lies below a folder: images, archives, and what was passed over. Nothing is opened.

`os.scandir` gives a file's kind with its name, so there is no stat per file
(`benchmarks/list_files.py` measures 200,000 files).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from operator import attrgetter
from typing import final

from dinoprobe.datasets.ignored import Ignored
from dinoprobe.datasets.layout import Entry
from dinoprobe.datasets.location import FileSource, RemoteSource, filesystem_of, stamp_from
from dinoprobe.datasets.names import (
    NOT_A_FILE,
    NOT_AN_IMAGE,
    is_archive,
    is_image_name,
    noise,
    noise_in,
    utf8,
)
from dinoprobe.errors import DatasetError


@dataclass(slots=True)
class Listing:
    """Images and archives by their path below the root, in the order of names."""

    images: list[Entry] = field(default_factory=list)
    archives: list[tuple[str, str]] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)


def list_local(root: str) -> Listing:
    """Everything below a folder of this machine. Raises DatasetError when it can not be listed.

    Links to folders are followed after all real folders, and only to folders not seen before; so
    a loop ends, and a real folder is never hidden by a link to it.
    """
    walk = _Walk()
    try:
        walk.folder(root, "")
    except OSError as error:
        raise DatasetError(f"{utf8(root)}: can not be listed ({error.strerror}).") from error
    while walk.links:
        links, walk.links = sorted(walk.links), []
        for below, path in links:
            walk.follow(path, below)
    walk.listing.images.sort(key=_path)
    walk.listing.archives.sort()
    return walk.listing


_name = attrgetter("name")
_path = attrgetter("path")


@final
class _Walk:
    """One walk: what was found, the folders seen, the links still to follow."""

    def __init__(self) -> None:
        self.listing = Listing()
        self.links: list[tuple[str, str]] = []
        self._seen: set[tuple[int, int]] = set()

    def folder(self, root: str, below_root: str) -> None:
        """Lists a folder, called `below_root` in the dataset, and all real folders in it."""
        pending = [(root, below_root)]
        while pending:
            path, below = pending.pop()
            try:
                new = self._is_new(path)
                folders = self._files(path, f"{below}/" if below else "") if new else []
            except OSError as error:
                if not below:
                    raise
                self._note("folder", below, f"it can not be listed ({error.strerror})")
                continue
            if not new:
                self._note("folder", below, "it was listed already, by way of a link")
            pending += reversed(folders)

    def follow(self, path: str, below: str) -> None:
        """Follows a link to a folder, unless that folder was listed already."""
        if self._is_new(path, remember=False):
            self.folder(path, below)
        else:
            self._note("link", below, "it leads to a folder that is listed already")

    def _files(self, path: str, prefix: str) -> list[tuple[str, str]]:
        """Takes up the files directly in a folder; returns its real folders."""
        folders = []
        add = self.listing.images.append
        with os.scandir(path) as found:
            entries = sorted(found, key=_name)
        for entry in entries:
            name = entry.name
            if name[0] in "._dDeEtT" and (reason := noise(name)):
                self.listing.ignored.add(prefix + name, reason)
            elif entry.is_file(follow_symlinks=False) and is_image_name(name):
                add(Entry(prefix + name, FileSource(entry.path)))
            elif entry.is_dir(follow_symlinks=False):
                folders.append((entry.path, prefix + name))
            elif entry.is_dir():
                self.links.append((prefix + name, entry.path))
            else:
                self._other(entry, prefix)
        return folders

    def _other(self, entry: os.DirEntry[str], prefix: str) -> None:
        listing, path = self.listing, prefix + entry.name
        broken = entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110
        if not entry.is_file() and not broken:
            listing.ignored.add(path, NOT_A_FILE)
        elif is_image_name(entry.name):
            listing.images.append(Entry(path, FileSource(entry.path)))
        elif is_archive(entry.name):
            listing.archives.append((path, entry.path))
        else:
            listing.ignored.add(path, NOT_AN_IMAGE)

    def _is_new(self, path: str, *, remember: bool = True) -> bool:
        status = os.stat(path)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            return False
        if remember:
            self._seen.add(identity)
        return True

    def _note(self, kind: str, below: str, reason: str) -> None:
        self.listing.notes.append(f"The {kind} '{utf8(below)}' is not followed: {reason}.")


def list_remote(uri: str) -> Listing:
    """Everything below a folder of a store. Raises DatasetError when it can not be listed."""
    filesystem, root = filesystem_of(uri)
    try:
        found = filesystem.find(root, detail=True)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{uri}: can not be listed ({error}).") from error
    listing, start = Listing(), len(root.rstrip("/")) + 1
    for name in sorted(found):
        below = name[start:]
        if reason := noise_in(below):
            listing.ignored.add(below, reason)
        elif is_image_name(below):
            source = RemoteSource(filesystem.unstrip_protocol(name), stamp_from(found[name]))
            listing.images.append(Entry(below, source))
        elif is_archive(below):
            listing.archives.append((below, filesystem.unstrip_protocol(name)))
        else:
            listing.ignored.add(below, NOT_AN_IMAGE)
    return listing
