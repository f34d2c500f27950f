"""Hugging Face's own cache: found, read and written as huggingface_hub lays it out.

models--OWNER--NAME/blobs/DIGEST              the content
models--OWNER--NAME/snapshots/COMMIT/FILE     a link to it
models--OWNER--NAME/refs/REVISION             a file that holds the commit
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dinoprobe.encoder.weights import weight_files
from dinoprobe.errors import DinoprobeError
from dinoprobe.files import write_atomic

if TYPE_CHECKING:
    from dinoprobe.encoder.hub.listing import Listing, RemoteFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def cache_root() -> Path:
    """HF_HUB_CACHE, as huggingface_hub reads it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(hub_id: str) -> Path:
    """Where this repository lies in the cache, whether it is there or not."""
    return cache_root() / ("models--" + hub_id.replace("/", "--"))


def is_commit(revision: str | None) -> bool:
    """Whether this revision names one commit, which never changes."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def cached(hub_id: str, revision: str | None = None) -> tuple[Path, str] | None:
    """The folder and the commit of a complete snapshot, without a network; else None."""
    folder = repository_folder(hub_id)
    commit = _commit(folder, revision or "main")
    snapshot = folder / "snapshots" / commit if commit else None
    if snapshot is None or not is_complete(snapshot):
        return None
    return snapshot, commit or ""


def is_complete(snapshot: Path) -> bool:
    """Whether config.json and all weights, each shard of an index too, are there."""
    if not (snapshot / "config.json").is_file():
        return False
    try:
        return all(path.is_file() for path in weight_files(snapshot))
    except (DinoprobeError, OSError):
        return False


def _commit(folder: Path, revision: str) -> str | None:
    if is_commit(revision):
        return revision
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        pass
    if not _SHORT_COMMIT.fullmatch(revision) or not (folder / "snapshots").is_dir():
        return None
    found = [p.name for p in (folder / "snapshots").iterdir() if p.name.startswith(revision)]
    return found[0] if len(found) == 1 else None


def link(snapshot: Path, name: str, content: Path) -> None:
    """Show a blob in a snapshot: a relative link. Where links are not to be had it is moved there,
    as huggingface_hub does: a second copy of the largest checkpoint would take 27 GB.
    """
    snapshot.mkdir(parents=True, exist_ok=True)
    place = snapshot / name
    if place == content or (place.exists() and place.resolve() == content.resolve()):
        return
    temporary = snapshot / f".{name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    if _linked(temporary, content):
        temporary.replace(place)
    else:
        content.replace(place)


def _linked(place: Path, content: Path) -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_SYMLINKS:
        return False
    try:
        place.symlink_to(os.path.relpath(content, place.parent))
    except (OSError, NotImplementedError):
        return False
    return True


def write_ref(hub_id: str, revision: str, commit: str) -> None:
    """Remember which commit a branch or a tag is, as huggingface_hub does; not for commits."""
    if is_commit(revision) or {"", ".", ".."} & set(re.split(r"[/\\]", revision)):
        return
    path = repository_folder(hub_id) / "refs" / revision
    if path.is_file() and path.read_text(encoding="utf-8") == commit:
        return  # a cache that several share may be read-only
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, commit)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that may not exist yet."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free


def blob_of(listing: Listing, file: RemoteFile) -> Path:
    """Where the content of a file lies, or would."""
    return repository_folder(listing.hub_id) / "blobs" / file.digest


def content_of(listing: Listing, file: RemoteFile) -> Path | None:
    """The content of a file if it is here with the right size: a blob, or a copy by its name."""
    snapshot = repository_folder(listing.hub_id) / "snapshots" / listing.commit
    places = (blob_of(listing, file), snapshot / file.name)
    found = (path for path in places if path.is_file() and size_of(path) == file.size_bytes)
    return next(found, None)


def missing(listing: Listing) -> int:
    """Bytes still to be fetched, counting what an earlier try left."""
    total = 0
    for file in listing.files:
        if content_of(listing, file) is None:
            total += max(0, file.size_bytes - size_of(part_of(blob_of(listing, file))))
    return total


def part_of(blob: Path) -> Path:
    """Where an unfinished transfer of this blob lies."""
    return blob.with_name(blob.name + ".dinoprobe.part")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
