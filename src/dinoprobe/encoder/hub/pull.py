"""From an id to a complete snapshot in the cache: asked for, fetched, or fallen back on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dinoprobe.encoder.hub import cache, client
from dinoprobe.encoder.hub.listing import (
    Listing,
    RemoteFile,
    completed,
    file_url,
    list_files,
)
from dinoprobe.encoder.hub.refusal import RefusedError, to_error
from dinoprobe.encoder.hub.transfer import NoTransfer, Transfer, differs, fetch
from dinoprobe.encoder.placement import gigabytes
from dinoprobe.errors import AccessError, EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a download would take: access is given, these files, this much of them missing here.

    `user` is the account that a gated repository gives them to.
    """

    hub_id: str
    commit: str
    gated: bool
    files: tuple[RemoteFile, ...]
    missing_bytes: int
    free_bytes: int
    cache: Path
    user: str | None = None

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)


def preflight(hub_id: str, revision: str | None) -> Preflight:
    """Ask for the files and for access to them, and count; nothing is fetched.

    Raises AccessError, EncoderNotFoundError, HubUnreachableError or EncoderError.
    """
    try:
        plan = _preflight(_listing(hub_id, revision))
    except RefusedError as refused:
        raise _error(refused, hub_id, revision) from refused
    return replace(plan, user=client.user_name()) if plan.gated else plan


def pull(
    hub_id: str,
    revision: str | None,
    *,
    progress: Transfer | None = None,
    say: Callable[[str], None] = lambda _: None,
    verify: bool = False,
) -> tuple[Path, str]:
    """The folder of the snapshot and its commit, with everything that was missing fetched.

    `verify` computes the digests of files that were here before, and fetches those that differ.
    Offline, a complete snapshot is enough. Raises what `preflight` does, and EncoderError for a
    full disk or a wrong digest.
    """
    here = cache.cached(hub_id, revision) if client.is_offline() else None
    if here is not None:
        say(f"{hub_id}: offline; the cache holds it, commit {here[1][:12]}.")
        return here
    try:
        listing = _listing(hub_id, revision)
        if verify:
            _remove_damaged(listing, say)
        return _pull(listing, revision, progress or NoTransfer(), say)
    except RefusedError as refused:
        raise _error(refused, hub_id, revision) from refused


def download(
    hub_id: str,
    revision: str | None,
    *,
    progress: Transfer | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Path, str]:
    """As `pull`, but the cache answers where it can: for a commit at once, when the hub is offline,
    out of reach or refuses, by a sentence.
    """
    here = cache.cached(hub_id, revision)
    if here is not None and (client.is_offline() or _is_settled(hub_id, revision, here[0])):
        return here
    try:
        if client.is_offline():
            raise RefusedError("offline")
        if here is None:
            say(f"{hub_id}: asking the hub for access")
        listing = list_files(hub_id, revision)
        complete = cache.cached(hub_id, listing.commit)
        if complete is not None and all((complete[0] / f.name).exists() for f in listing.files):
            with suppress(OSError):  # a cache for reading alone is good enough
                cache.write_ref(hub_id, revision or "main", listing.commit)
            return complete
        _require_access(listing)
        return _pull(completed(listing), revision, progress or NoTransfer(), say)
    except RefusedError as refused:
        error = _error(refused, hub_id, revision)
        if here is None or not isinstance(error, AccessError):
            raise error from refused
        reason = str(error).split("\n", maxsplit=1)[0].rstrip(":")
        say(f"{reason} Using the copy in the cache, commit {here[1][:12]}.")
        return here


def _is_settled(hub_id: str, revision: str | None, snapshot: Path) -> bool:
    """Whether the hub can add nothing to this commit. transformers leaves out the preprocessor's
    file, which timm's copies do not have.
    """
    whole = hub_id.startswith("timm/") or (snapshot / "preprocessor_config.json").is_file()
    return cache.is_commit(revision) and whole


def _error(refused: RefusedError, hub_id: str, revision: str | None) -> EncoderError:
    named = {"not-accepted", "pending", "rejected", "token-scope"}
    user = client.user_name() if refused.state in named else None
    return to_error(refused, hub_id, revision, user, client.token_place())


def _listing(hub_id: str, revision: str | None) -> Listing:
    if client.is_offline():
        raise RefusedError("offline")
    listing = list_files(hub_id, revision)
    _require_access(listing)
    return completed(listing)


def _require_access(listing: Listing) -> None:
    """A gated repository lists its files for everyone and gives them to some: ask for one."""
    client.head(file_url(listing.hub_id, listing.commit, listing.largest.name))


def _preflight(listing: Listing) -> Preflight:
    return Preflight(
        listing.hub_id,
        listing.commit,
        listing.gated,
        listing.files,
        cache.missing(listing),
        cache.free_bytes(cache.cache_root()),
        cache.cache_root(),
    )


def _pull(
    listing: Listing, revision: str | None, transfer: Transfer, say: Callable[[str], None]
) -> tuple[Path, str]:
    plan = _preflight(listing)
    _refuse_full_disk(plan)
    snapshot = cache.repository_folder(listing.hub_id) / "snapshots" / listing.commit
    if plan.missing_bytes:
        transfer.start(plan.total_bytes, plan.total_bytes - plan.missing_bytes, listing.hub_id)
    try:
        for file, content in [(f, fetch(listing, f, transfer, say)) for f in listing.files]:
            cache.link(snapshot, file.name, content)
        cache.write_ref(listing.hub_id, revision or "main", listing.commit)
    except OSError as error:
        reason = error.strerror or error
        msg = f"{plan.cache}: can not be written ({reason}). HF_HOME moves the cache."
        raise EncoderError(msg) from error
    finally:
        if plan.missing_bytes:
            transfer.finish()
    return snapshot, listing.commit


def _refuse_full_disk(plan: Preflight) -> None:
    if plan.missing_bytes <= plan.free_bytes:
        return
    msg = (
        f"{plan.hub_id}: {gigabytes(plan.missing_bytes)} are to be fetched and {plan.cache} has "
        f"{gigabytes(plan.free_bytes)} free. Free some space, or set HF_HOME to a larger disk."
    )
    raise EncoderError(msg)


def _remove_damaged(listing: Listing, say: Callable[[str], None]) -> None:
    for file in listing.files:
        content = cache.content_of(listing, file)
        if content is not None and differs(content, file):
            say(f"{file.name}: differs from what was published; fetching it again")
            content.unlink()
