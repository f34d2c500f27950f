"""A store for runs that keep nothing: no Lance, whose import takes 0.6 s."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from dinoprobe.store.values import Entry, KnownHashes, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt


@final
class MemoryStore:
    """A store that lives as long as the object: for runs that keep nothing."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
        self._entries: dict[tuple[str, str], dict[str, Entry]] = {}

    def known(self, fingerprint: str) -> KnownHashes:
        """The hashes that have a row."""
        return frozenset(self._rows.get(fingerprint, ()))

    def get(self, fingerprint: str, hashes: Iterable[str]) -> Rows:
        """The rows of these hashes."""
        import numpy as np

        rows = self._rows.get(fingerprint, {})
        found = [name for name in dict.fromkeys(hashes) if name in rows]
        X = np.stack([rows[name] for name in found]) if found else np.empty((0, 0), np.float32)
        return Rows({name: row for row, name in enumerate(found)}, X)

    def append(
        self,
        fingerprint: str,
        hashes: Sequence[str],
        X: npt.NDArray[np.float32],
        *,
        description: Mapping[str, object] | None = None,  # noqa: ARG002
    ) -> None:
        """Add rows. The first row of a hash stays."""
        rows = self._rows.setdefault(fingerprint, {})
        for name, row in zip(hashes, X, strict=True):
            rows.setdefault(name, row)

    def manifest(self, fingerprint: str, dataset_uri: str) -> dict[str, Entry]:
        """The last entry of each key."""
        return dict(self._entries.get((fingerprint, dataset_uri), {}))

    def record(self, fingerprint: str, dataset_uri: str, entries: Sequence[Entry]) -> None:
        """Add entries."""
        known = self._entries.setdefault((fingerprint, dataset_uri), {})
        known.update((entry.key, entry) for entry in entries)

    def compact(self, fingerprint: str, dataset_uri: str | None = None) -> None:
        """Nothing to tidy."""
