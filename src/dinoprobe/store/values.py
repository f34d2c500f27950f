"""What goes into a store and comes out of it, and what the engine asks of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.types import Stamp


WHOLE = ("vector",)  # the one part of a row that is never taken apart


class Rows(NamedTuple):
    """Features that were found: the row of `X`, `(n, d)` float32, for each content hash."""

    position: dict[str, int]
    X: npt.NDArray[np.float32]


class Entry(NamedTuple):
    """What the manifest says of one file. Without a stamp the file has to be read again."""

    key: str
    stamp: Stamp | None = None
    content_hash: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    failure_kind: str | None = None
    failure_reason: str | None = None
    more_frames: bool = False


class Verification(NamedTuple):
    """How many rows a fingerprint has, how many are damaged in a part, how many repeat a sound one
    of the same hash and parts.
    """

    rows: int
    damaged: int
    repeated: int


class KnownHashes(Protocol):
    """Which hashes a store seems to have; a rare false yes is allowed."""

    def __contains__(self, content_hash: object, /) -> bool: ...


class RowStore(Protocol):
    """What the engine needs of a store. A row is made of `parts` of one width."""

    def known(self, fingerprint: str, *, parts: Sequence[str] = WHOLE) -> KnownHashes:
        """The hashes that have a row with these parts, without reading the rows."""

    def get(self, fingerprint: str, hashes: Iterable[str], *, parts: Sequence[str] = WHOLE) -> Rows:
        """The sound rows of these hashes, of these parts in this order."""

    def append(
        self,
        fingerprint: str,
        hashes: Sequence[str],
        X: npt.NDArray[np.float32],
        *,
        parts: Sequence[str] = WHOLE,
        description: Mapping[str, object] | None = None,
    ) -> None:
        """Add rows, all or none."""

    def manifest(self, fingerprint: str, dataset_uri: str) -> dict[str, Entry]:
        """The last entry of each key."""

    def record(self, fingerprint: str, dataset_uri: str, entries: Sequence[Entry]) -> None:
        """Add entries, all or none."""

    def compact(self, fingerprint: str, dataset_uri: str | None = None) -> None:
        """Tidy up after a run."""
