"""A store for runs that keep nothing: no Lance, whose import takes 0.6 s."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from dinoprobe.store.values import WHOLE, Entry, KnownHashes, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt


@final
class MemoryStore:
    """A store that lives as long as the object: for runs that keep nothing."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[dict[str, npt.NDArray[np.float32]]]]] = {}
        self._entries: dict[tuple[str, str], dict[str, Entry]] = {}

    def known(self, fingerprint: str, *, parts: Sequence[str] = WHOLE) -> KnownHashes:
        """The hashes that have a row with these parts."""
        names = self._rows.get(fingerprint, ())
        return frozenset(name for name in names if self._first(fingerprint, name, parts))

    def get(self, fingerprint: str, hashes: Iterable[str], *, parts: Sequence[str] = WHOLE) -> Rows:
        """The rows of these hashes, of these parts in this order."""
        import numpy as np

        rows = {name: self._first(fingerprint, name, parts) for name in dict.fromkeys(hashes)}
        found = [np.concatenate([row[part] for part in parts]) for row in rows.values() if row]
        X = np.stack(found) if found else np.empty((0, 0), np.float32)
        return Rows({name: i for i, name in enumerate(name for name in rows if rows[name])}, X)

    def append(
        self,
        fingerprint: str,
        hashes: Sequence[str],
        X: npt.NDArray[np.float32],
        *,
        parts: Sequence[str] = WHOLE,
        description: Mapping[str, object] | None = None,  # noqa: ARG002
    ) -> None:
        """Add rows. The first row of a hash that has the wanted parts counts."""
        rows = self._rows.setdefault(fingerprint, {})
        for name, row in zip(hashes, X, strict=True):
            cut = row.reshape(len(parts), -1)
            if not self._first(fingerprint, name, parts):
                rows.setdefault(name, []).append(dict(zip(parts, cut, strict=True)))

    def manifest(self, fingerprint: str, dataset_uri: str) -> dict[str, Entry]:
        """The last entry of each key."""
        return dict(self._entries.get((fingerprint, dataset_uri), {}))

    def record(self, fingerprint: str, dataset_uri: str, entries: Sequence[Entry]) -> None:
        """Add entries."""
        known = self._entries.setdefault((fingerprint, dataset_uri), {})
        known.update((entry.key, entry) for entry in entries)

    def _first(
        self, fingerprint: str, name: str, parts: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The first row of this hash with these parts; an empty one where there is none."""
        rows = self._rows.get(fingerprint, {}).get(name, ())
        return next((row for row in rows if row.keys() >= set(parts)), {})

    def compact(self, fingerprint: str, dataset_uri: str | None = None) -> None:
        """Nothing to tidy."""
