"""What a repository holds at a commit: the files that make a checkpoint, with sizes and digests."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dinoprobe.encoder.hub import client
from dinoprobe.encoder.hub.refusal import RefusedError
from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHECKPOINT_FILES = [
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "LICENSE*",
]


# A commit and a digest become names in the cache: nothing else may reach a path.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{5,127}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file. `sha256` is there for large ones, `blob_id` for the others: git's SHA-1, or what
    a mirror calls it.
    """

    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None

    @property
    def digest(self) -> str:
        """What the hub's cache calls the file."""
        return self.sha256 or self.blob_id or ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit. `gated` says whether its files need permission."""

    hub_id: str
    commit: str
    gated: bool
    files: tuple[RemoteFile, ...]

    @property
    def largest(self) -> RemoteFile:
        """The largest weights: what is asked for to see whether access is given.

        A gated repository gives its LICENSE to everyone, so that tells nothing.
        """
        return max(self.files, key=lambda f: (f.name.endswith(".safetensors"), f.size_bytes))


def list_files(hub_id: str, revision: str | None) -> Listing:
    """The checkpoint's files at this revision. Raises RefusedError; EncoderError without any."""
    where = quote(revision or "main", safe="")
    value = client.get_json(f"api/models/{hub_id}/revision/{where}?blobs=true")
    if not isinstance(value, dict) or not _COMMIT.fullmatch(str(value.get("sha"))):
        detail = f"{client.endpoint()} gave no commit of {hub_id}"
        raise RefusedError("unreachable", detail)
    siblings = value.get("siblings")
    files = tuple(_wanted(siblings if isinstance(siblings, list) else ()))
    if not any(file.name.endswith(".safetensors") for file in files):
        msg = (
            f"{hub_id}: the repository holds no .safetensors file. Expected a checkpoint in the "
            "transformers format or in timm's; other files can run code when read."
        )
        raise EncoderError(msg)
    return Listing(hub_id, value["sha"], bool(value.get("gated")), files)


def _wanted(siblings: Iterable[Any]) -> Iterable[RemoteFile]:
    for entry in siblings:
        name = str(entry.get("rfilename", "")) if isinstance(entry, dict) else ""
        plain = name and "/" not in name and "\\" not in name and not name.startswith(".")
        if plain and any(fnmatchcase(name, pattern) for pattern in CHECKPOINT_FILES):
            yield _read(name, entry)


def _read(name: str, entry: Mapping[str, Any]) -> RemoteFile:
    """A digest that is none is left out: to someone without access the hub shows asterisks."""
    lfs = entry.get("lfs")
    lfs = lfs if isinstance(lfs, dict) else {}
    sha256, git = str(lfs.get("sha256")), str(entry.get("blobId"))
    size = lfs.get("size", entry.get("size"))
    return RemoteFile(
        name,
        size if isinstance(size, int) and size >= 0 else -1,
        sha256 if _SHA256.fullmatch(sha256) else None,
        git if _COMMIT.fullmatch(git) and not lfs else None,
    )


def completed(listing: Listing) -> Listing:
    """The same with every size and digest, asked for one by one where a listing lacks them.

    Raises RefusedError, also where they are not told.
    """
    files = tuple(
        file if file.digest and file.size_bytes >= 0 else _asked(listing, file)
        for file in listing.files
    )
    return replace(listing, files=files)


def _asked(listing: Listing, file: RemoteFile) -> RemoteFile:
    answer = client.head(file_url(listing.hub_id, listing.commit, file.name))
    digest = digest_of(answer.headers)
    size = answer.headers.get("x-linked-size") or answer.headers.get("content-length") or ""
    if digest is None or not size.isdecimal():
        detail = f"{client.endpoint()} tells no size or digest of {file.name}, as a hub does"
        raise RefusedError("unreachable", detail)
    if _SHA256.fullmatch(digest):
        return RemoteFile(file.name, int(size), digest, None)
    return RemoteFile(file.name, int(size), None, digest)


def digest_of(headers: Mapping[str, str]) -> str | None:
    """The digest that an answer names, if it can name a file in the cache."""
    found = headers.get("x-linked-etag") or headers.get("etag") or ""
    found = found.removeprefix("W/").strip('"')
    return found if _DIGEST.fullmatch(found) else None


def is_git_digest(text: str | None) -> bool:
    """Whether this is git's SHA-1 of a file, which can be computed from it."""
    return text is not None and _COMMIT.fullmatch(text) is not None


def file_url(hub_id: str, commit: str, name: str) -> str:
    """Where the hub gives a file, or says where it is."""
    return f"{client.endpoint()}/{hub_id}/resolve/{commit}/{quote(name)}"
