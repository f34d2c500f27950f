"""How far a user is on the way to a repository's files. Asks, fetches nothing, accepts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinoprobe.encoder.hub import client
from dinoprobe.encoder.hub.listing import file_url, list_files
from dinoprobe.encoder.hub.refusal import RefusedError, sentence, to_error

if TYPE_CHECKING:
    from dinoprobe.errors import EncoderError


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`state` is `granted` (gated, and given), `open`, or one of `refusal.State`; `error` is what
    to raise for it, None where access is given. `token_place` says where a token was found.
    """

    state: str
    sentence: str
    user: str | None
    token_place: str | None
    error: EncoderError | None = None

    @property
    def token_found(self) -> bool:
        """Whether there is a token, valid or not."""
        return self.token_place is not None


def diagnose(hub_id: str, revision: str | None = None) -> Diagnosis:
    """What the hub says of this repository and this user; never raises for a refusal."""
    place = client.token_place()
    user: str | None = None
    try:
        if client.is_offline():
            raise RefusedError("offline")
        listing = list_files(hub_id, revision)
        user = client.user_name()
        client.head(file_url(hub_id, listing.commit, listing.largest.name))
    except RefusedError as refused:
        error = to_error(refused, hub_id, revision, user, place)
        return Diagnosis(refused.state, sentence(refused, hub_id, user), user, place, error)
    size = sum(file.size_bytes for file in listing.files)
    state = "granted" if listing.gated else "open"
    words = "given by the owner" if listing.gated else "open to everyone"
    text = f"{words}; {size / 1e6:,.1f} MB at commit {listing.commit[:12]}"
    return Diagnosis(state, text, user, place)
