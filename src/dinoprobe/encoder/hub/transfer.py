"""One file to its place in the cache: by ranges, going on after a cut or a kill, then checked.

The unfinished file is named by its digest, so what another process or another day left of the same
content is used, and of any other content is not. A lock, huggingface_hub's own, keeps two processes
from writing one file.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

from dinoprobe.encoder.hub import client
from dinoprobe.encoder.hub.cache import (
    blob_of,
    cache_root,
    content_of,
    part_of,
    repository_folder,
    size_of,
)
from dinoprobe.encoder.hub.listing import digest_of, file_url, is_git_digest
from dinoprobe.encoder.hub.refusal import RefusedError
from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dinoprobe.encoder.hub.listing import Listing, RemoteFile

TRIES_WITHOUT_PROGRESS = 5
WAIT_S = 1.0  # before the second try, doubled for each one that brings nothing
_LONGEST_WAIT_S = 60
_PATIENCE_S = 1.0  # before saying that another process holds the file


class Transfer(Protocol):
    """Who wants to know how far a download is. Called from one thread."""

    def start(self, total_bytes: int, already_bytes: int, name: str) -> None:
        """`total_bytes` in all, `already_bytes` of them here before; `name` of the repository."""

    def advance(self, count: int) -> None:
        """So many more bytes came in; negative where a server began again."""

    def finish(self) -> None:
        """The download is over."""


class NoTransfer:
    """Says nothing."""

    def start(self, total_bytes: int, already_bytes: int, name: str) -> None:
        """Does nothing."""

    def advance(self, count: int) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


def fetch(
    listing: Listing, file: RemoteFile, transfer: Transfer, say: Callable[[str], None]
) -> Path:
    """The content of this file, fetched if it is not here. Raises RefusedError, EncoderError."""
    if (here := content_of(listing, file)) is not None:
        return here
    blob = blob_of(listing, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(blob)
    had = size_of(part)
    with _locked(listing.hub_id, file.digest, say):
        if (here := content_of(listing, file)) is not None:  # another process was first
            transfer.advance(file.size_bytes - min(had, file.size_bytes))
            return here
        _download(listing, file, part, transfer, say)
        _check(listing, file, part)
        with part.open("rb+") as finished:
            os.fsync(finished.fileno())
        part.replace(blob)
    return blob


@contextmanager
def _locked(hub_id: str, digest: str, say: Callable[[str], None]) -> Iterator[None]:
    """huggingface_hub's lock of a blob; says so where another process holds it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder = cache_root() / ".locks" / repository_folder(hub_id).name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.lock"
    lock = WeakFileLock(path, timeout=_PATIENCE_S)
    try:
        lock.__enter__()
    except TimeoutError:
        say(f"{hub_id}: another process is fetching the same file; waiting for it")
        lock = WeakFileLock(path)
        lock.__enter__()
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _download(
    listing: Listing, file: RemoteFile, part: Path, transfer: Transfer, say: Callable[[str], None]
) -> None:
    """Bytes until the file is whole: after a cut it goes on, and gives up after a few tries in a
    row that brought nothing.
    """
    part.touch()
    fruitless, have = 0, size_of(part)
    while have != file.size_bytes:
        reason, wait_s = _attempt(listing, file, part, transfer)
        now = size_of(part)
        if now == file.size_bytes:
            return
        fruitless = 0 if now > have else fruitless + 1
        if fruitless >= TRIES_WITHOUT_PROGRESS or (wait_s or 0) > _LONGEST_WAIT_S:
            raise RefusedError("broken-off", f"{file.name} broke off at {_of(now, file)}: {reason}")
        say(f"{file.name}: connection lost at {_of(now, file)} ({reason}); going on")
        time.sleep(wait_s or WAIT_S * 2**fruitless)
        have = now


def _attempt(
    listing: Listing, file: RemoteFile, part: Path, transfer: Transfer
) -> tuple[str, int | None]:
    """One request: why it ended before the file was whole, and how long the hub asks to wait.

    Raises RefusedError without access.
    """
    try:
        _request(listing, file, part, size_of(part), transfer)
    except RefusedError as refused:
        if refused.state not in {"unreachable", "busy"}:
            raise
        return refused.detail, refused.wait_s
    except Exception as error:
        if not client.is_transport_error(error):
            raise
        return client.reason(error), None
    return "the server ended the answer early", None


def _of(have: int, file: RemoteFile) -> str:
    return f"{have / 1e6:.1f} of {file.size_bytes / 1e6:.1f} MB"


def _request(listing: Listing, file: RemoteFile, part: Path, have: int, transfer: Transfer) -> None:
    """One answer, appended to what is there; written anew where the server knows no ranges."""
    url = file_url(listing.hub_id, listing.commit, file.name)
    target = _target(url, file)
    headers = {"range": f"bytes={have}-"} if have else {}
    with client.stream("GET", target, headers=headers) as response:
        if response.status_code == 416:  # more is here than there is
            part.write_bytes(b"")
            transfer.advance(-have)
            return
        _raise_for_status(response, target)
        goes_on = response.status_code == 206 and _starts_at(response, have)
        if have and not goes_on:
            transfer.advance(-have)
        _append(response, part, have if goes_on else 0, file, transfer)


def _append(response: Any, part: Path, start: int, file: RemoteFile, transfer: Transfer) -> None:
    """Bytes as they come, unbuffered: a kill or a cut leaves all that has arrived."""
    left = file.size_bytes - start
    with part.open("rb+", buffering=0) as out:
        out.truncate(start)
        out.seek(start)
        for chunk in response.iter_bytes():
            left -= len(chunk)
            if left < 0:
                out.truncate(0)
                msg = (
                    f"{file.name}: the server sends more than the {file.size_bytes:,} bytes that "
                    "it listed. Expected the file as published. Run the command again; if it "
                    "happens twice, a proxy or a mirror (HF_ENDPOINT) is the cause."
                )
                raise EncoderError(msg)
            out.write(chunk)
            transfer.advance(len(chunk))


def _raise_for_status(response: Any, url: str) -> None:
    """The store behind the hub knows no accounts: what it refuses is asked for again by the hub."""
    if client.is_hub(url) or response.status_code < 400:
        client.raise_for_status(response)
        return
    host = urlsplit(url).hostname
    raise RefusedError("busy", f"status {response.status_code} from {host}, where the files lie")


def _target(url: str, file: RemoteFile) -> str:
    """Where the bytes are, after checking that they are still those of the listing."""
    answer = client.head(url)
    found = digest_of(answer.headers)
    if found is None and "html" in answer.headers.get("content-type", ""):
        raise RefusedError("unreachable", f"a web page came in place of {file.name}")
    comparable = found is not None and len(found) == len(file.digest)
    if found is not None and comparable and found != file.digest:
        msg = (
            f"{url}: has changed on the server since it was listed (digest {found[:12]}, expected "
            f"{file.digest[:12]}). Run the command again."
        )
        raise EncoderError(msg)
    location = answer.headers.get("location") if answer.status_code // 100 == 3 else None
    return urljoin(url, location) if location else url


def _starts_at(response: Any, have: int) -> bool:
    found: str = response.headers.get("content-range", "")
    return found.startswith(f"bytes {have}-")


def _check(listing: Listing, file: RemoteFile, part: Path) -> None:
    """Compare the whole file with its published digest; what does not fit is removed."""
    size, expected = part.stat().st_size, file.digest
    found = digest_as_published(part, file)
    if found == expected:
        return
    part.unlink()
    msg = (
        f"{listing.hub_id}/{file.name}: what arrived has the digest {found[:12]}, expected "
        f"{expected[:12]} ({size:,} bytes of {file.size_bytes:,}). It was damaged or changed on "
        "the way, "
        "and is removed. Run the command again; a proxy may be the cause."
    )
    raise EncoderError(msg)


def digest_as_published(path: Path, file: RemoteFile) -> str:
    """The digest of what is here, of the kind that was published; a mirror's own kind is taken
    as it is.
    """
    if file.sha256 is not None:
        return _sha256(path)
    return _git_sha1(path) if is_git_digest(file.blob_id) else file.digest


def differs(path: Path, file: RemoteFile) -> bool:
    """Whether what is here is not what was published."""
    return digest_as_published(path, file) != file.digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path) -> str:
    """git's name for a file: SHA-1 over a header and the content; an identity, not a safeguard."""
    header = f"blob {path.stat().st_size}\0"
    digest = hashlib.sha1(header.encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()
