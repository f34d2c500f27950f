"""The store on Lance: where things lie, and its verbs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from dinoprobe.errors import ConfigurationError
from dinoprobe.files import user_cache
from dinoprobe.mapped import mapped
from dinoprobe.store.commits import (
    PAGE_BYTES,
    append_staged,
    append_table,
    compact_dataset,
    load_lance,
    open_dataset,
    paged,
    reported,
    stage_table,
)
from dinoprobe.store.tables import (
    DESCRIPTION_KEY,
    Prefixes,
    checked,
    collect,
    columns,
    digest,
    dimension,
    entries_of,
    feature_table,
    manifest_table,
    matching,
    prefixes,
    scanned,
    sound_blocks,
    stored_parts,
    verified,
)
from dinoprobe.store.values import WHOLE, Entry, KnownHashes, Rows, Verification

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

_TAKE_ROWS = 1 << 15
_SUPERSEDED_ROWS = 10_000


@final
class FeatureStore:
    """Features and manifests at a local path or an object-store URI (s3://, gs://, az://).

    A table is found by `encoder.base_fingerprint`, for its columns are the parts of poolings.

    Safe for several threads and processes at once. `uri` None means the user's cache, which
    `DINOPROBE_CACHE` moves. With `folder`, features that are asked for come in a file there and are
    never in memory (`mapped.py`). Nothing is opened or made before the first call.
    """

    def __init__(
        self, uri: str | os.PathLike[str] | None = None, *, folder: Path | None = None
    ) -> None:
        text = default_uri() if uri is None else os.fspath(uri)
        if text.startswith("memory:"):
            raise ConfigurationError(
                f"{text}: Lance forgets a memory: store between two calls. "
                "Expected a path or an object-store URI. Use store=None to keep nothing."
            )
        self.folder = folder
        self.uri = text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())

    def known(self, fingerprint: str, *, parts: Sequence[str] = WHOLE) -> KnownHashes:
        """The hashes that have a row with these parts. Reads 32 bytes a row and 4 for each part;
        keeps 8.
        """
        path = self._features(fingerprint)
        with reported(path):
            words, held = prefixes(open_dataset(path), parts)
            return Prefixes(words[held])

    def get(self, fingerprint: str, hashes: Iterable[str], *, parts: Sequence[str] = WHOLE) -> Rows:
        """The sound rows of these hashes, their parts one after the other; the first row that has
        all of these parts counts, and absent and damaged ones are left out.

        Scans the hashes (32 bytes a row) and then picks the rows, or scans all where that is less.
        """
        import numpy as np

        path, wanted = self._features(fingerprint), {digest(name) for name in hashes}
        with reported(path):
            dataset = open_dataset(path)
            length = dimension(dataset, parts)
            if dataset is None or not wanted or not length:
                return Rows({}, np.empty((0, length), np.float32))
            positions = matching(*prefixes(dataset, parts), wanted)
            shape = (min(len(positions), len(wanted)), length)
            X = self._array(shape)
            few = self.folder is not None
            batches = _read(dataset, positions, columns(parts), 4 * length if few else None)
            return collect(batches, parts, wanted, X)

    def blocks(
        self, fingerprint: str, hashes: Iterable[str], *, parts: Sequence[str] = WHOLE
    ) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
        """As `get`, block by block and in the order of the store: content hashes and features
        `(n, d)` of about 6 MiB. Memory does not grow with the rows, but for 32 bytes a hash.
        """
        path, wanted = self._features(fingerprint), {digest(name) for name in hashes}
        with reported(path):
            dataset = open_dataset(path)
            length = dimension(dataset, parts)
            if dataset is not None and wanted and length:
                positions = matching(*prefixes(dataset, parts), wanted)
                batches = _read(dataset, positions, columns(parts), 4 * length)
                yield from sound_blocks(batches, parts, wanted)

    def scan(
        self, fingerprint: str, *, parts: Sequence[str] = WHOLE
    ) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
        """All rows with these parts, block by block: content hashes and features `(n, d)`.

        The first row of a hash counts. Raises StoreError for a row that is damaged: the block is
        not given, those before it were sound.
        """
        path = self._features(fingerprint)
        with reported(path):
            dataset = open_dataset(path)
            length = dimension(dataset, parts)
            if dataset is not None and length:
                pages = paged(dataset, columns(parts), 4 * length)
                yield from scanned(path, pages, parts)

    def append(
        self,
        fingerprint: str,
        hashes: Sequence[str],
        X: npt.NDArray[np.float32],
        *,
        parts: Sequence[str] = WHOLE,
        description: Mapping[str, object] | None = None,
    ) -> None:
        """Add one row of `X`, `(n, d)`, for each content hash: all of them or none.

        A row is cut into `parts` of equal length, and serves whoever asks for some of them.
        `description` says what the fingerprint stands for and is kept by whoever writes first.
        Raises MismatchError where the store's parts have another length, NonFiniteError for NaN or
        infinity, StoreError where nothing can be written.
        """
        rows = checked(hashes, X, parts)
        if not len(rows):
            return
        path = self._features(fingerprint)
        with reported(path, size_bytes=rows.nbytes):
            digests = [digest(name) for name in hashes]
            append_table(path, feature_table(digests, rows, parts, description))

    def stage(
        self,
        fingerprint: str,
        hashes: Sequence[str],
        X: npt.NDArray[np.float32],
        *,
        parts: Sequence[str] = WHOLE,
        description: Mapping[str, object] | None = None,
    ) -> list[str]:
        """As `append`, but the rows are there only once `append_staged` was given what this
        returns, from whatever process. A row takes no room twice: it is written here.
        """
        rows = checked(hashes, X, parts)
        if not len(rows):
            return []
        path = self._features(fingerprint)
        with reported(path, size_bytes=rows.nbytes):
            digests = [digest(name) for name in hashes]
            return stage_table(path, feature_table(digests, rows, parts, description))

    def append_staged(self, fingerprint: str, staged: Sequence[str]) -> None:
        """Make rows that `stage` wrote part of the store, all or none: one commit for many files,
        of many processes.
        """
        if not staged:
            return
        path = self._features(fingerprint)
        with reported(path):
            append_staged(path, staged)

    def describe(self, fingerprint: str) -> dict[str, Any]:
        """What the first writer said of this fingerprint, or an empty dictionary."""
        path = self._features(fingerprint)
        with reported(path):
            dataset = open_dataset(path)
            metadata = (dataset.schema.metadata or {}) if dataset is not None else {}
            return cast("dict[str, Any]", json.loads(metadata.get(DESCRIPTION_KEY, b"{}")))

    def verify(self, fingerprint: str) -> Verification:
        """Read every row and check it. Raises StoreError where Lance itself can not read."""
        path = self._features(fingerprint)
        with reported(path):
            dataset = open_dataset(path)
            batches = () if dataset is None else dataset.to_batches()
            return verified(batches, stored_parts(dataset))

    def manifest(self, fingerprint: str, dataset_uri: str) -> dict[str, Entry]:
        """The last entry of each key that was recorded for this dataset."""
        path = self._manifest(fingerprint, dataset_uri)
        with reported(path):
            dataset = open_dataset(path)
            return {} if dataset is None else entries_of(dataset.to_table())

    def record(self, fingerprint: str, dataset_uri: str, entries: Sequence[Entry]) -> None:
        """Add entries, all or none. Append the features they speak of before."""
        if not entries:
            return
        path = self._manifest(fingerprint, dataset_uri)
        with reported(path):
            append_table(path, manifest_table(entries))

    def compact(self, fingerprint: str, dataset_uri: str | None = None) -> None:
        """Join small fragments and drop versions older than an hour.

        Safe beside other writers and under a kill: it is one more commit, and where another writer
        wins the race this one gives up until the next time. Superseded manifest rows go when they
        outnumber the others; an entry that another writer adds in that moment may be lost, which
        costs one reading of that file.
        """
        paths = [self._features(fingerprint)]
        if dataset_uri is not None:
            paths.append(self._manifest(fingerprint, dataset_uri))
            self._rewrite_manifest(paths[1])
        for path in paths:
            with reported(path):
                compact_dataset(open_dataset(path))

    def _rewrite_manifest(self, path: str) -> None:
        with reported(path):
            dataset = open_dataset(path)
            if dataset is None or dataset.count_rows() < _SUPERSEDED_ROWS:
                return
            entries = entries_of(dataset.to_table())
            if len(entries) * 2 < dataset.count_rows():
                load_lance().write_dataset(
                    manifest_table(list(entries.values())), path, mode="overwrite"
                )

    def _array(self, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        import numpy as np

        return np.empty(shape, "<f4") if self.folder is None else mapped(shape, "<f4", self.folder)

    def _features(self, fingerprint: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{8,128}", fingerprint):
            raise ConfigurationError(
                f"fingerprint {fingerprint!r}: expected 8 to 128 digits of lower-case hex. "
                "Pass encoder.fingerprint."
            )
        return f"{self.uri}/{fingerprint}/features.lance"

    def _manifest(self, fingerprint: str, dataset_uri: str) -> str:
        digest = hashlib.sha256(dataset_uri.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        folder = self._features(fingerprint).removesuffix("features.lance")
        return f"{folder}manifest-{digest}.lance"


def default_uri() -> str:
    """The folder `features` in the user's cache."""
    return str(user_cache() / "features")


def _read(
    dataset: Any, positions: npt.NDArray[np.intp], names: list[str], row_bytes: int | None
) -> Iterator[Any]:
    """Batches with at least the rows at these positions: a scan where it is most of them, which
    is 2.4 times as fast as picking. By pages where rows of `row_bytes` must not fill memory.
    """
    size = _TAKE_ROWS if row_bytes is None else max(1, PAGE_BYTES // row_bytes)
    if len(positions) * 3 > dataset.count_rows():
        if row_bytes is None:
            yield from dataset.to_batches(columns=names)
        else:
            yield from paged(dataset, names, row_bytes)
        return
    for start in range(0, len(positions), size):
        chosen = positions[start : start + size].tolist()
        yield from dataset.take(chosen, columns=names).to_batches()
