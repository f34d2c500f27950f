"""Rows and entries as Arrow tables, and back, each row checked."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import ConfigurationError, MismatchError, NonFiniteError
from dinoprobe.files import to_json
from dinoprobe.store.commits import FORMAT, FORMAT_KEY
from dinoprobe.store.values import Entry, Rows, Verification
from dinoprobe.types import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

DESCRIPTION_KEY = b"dinoprobe.description"
FEATURE_COLUMNS = ["content_hash", "vector", "check"]


@final
class Prefixes:
    """Hashes by their first 64 bits: two of ten million agree by chance once in 370,000 stores."""

    def __init__(self, prefixes: npt.NDArray[np.uint64]) -> None:
        import numpy as np

        self._sorted = np.sort(prefixes)

    def __contains__(self, content_hash: object, /) -> bool:
        prefix = int.from_bytes(bytes.fromhex(str(content_hash))[:8], "little")
        place = int(self._sorted.searchsorted(self._sorted.dtype.type(prefix)))
        return place < len(self._sorted) and int(self._sorted[place]) == prefix


def digest(content_hash: str) -> bytes:
    """The 32 bytes of a content hash. Raises ConfigurationError for anything else."""
    try:
        value = bytes.fromhex(content_hash)
    except ValueError:
        value = b""
    if len(value) != hashlib.sha256().digest_size:
        raise ConfigurationError(
            f"content hash {content_hash!r}: expected 64 digits of hex. Use types.content_hash."
        )
    return value


def checked(hashes: Sequence[str], X: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`X` as contiguous float32, one finite row for each hash."""
    import numpy as np

    rows = np.ascontiguousarray(X, dtype="<f4")
    if rows.ndim != 2 or len(rows) != len(hashes):
        raise MismatchError(
            f"features of shape {np.shape(X)} for {len(hashes)} content hashes: "
            "expected one row a hash. Pass both in one order."
        )
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise NonFiniteError(
            f"row {bad} (content hash {hashes[bad][:12]}) holds NaN or infinity: expected finite "
            "features. Try a wider number type, such as dtype float32."
        )
    return rows


def feature_table(
    digests: Sequence[bytes],
    rows: npt.NDArray[np.float32],
    description: Mapping[str, object] | None,
) -> Any:
    """The rows that go into features.lance."""
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field("content_hash", pa.binary(32), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), rows.shape[1]), nullable=False),
            pa.field("check", pa.uint32(), nullable=False),
        ],
        metadata={FORMAT_KEY: FORMAT, DESCRIPTION_KEY: to_json(description or {})},
    )
    columns = [
        pa.array(digests, pa.binary(32)),
        pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
        pa.array(_checks(digests, rows), pa.uint32()),
    ]
    return pa.table(columns, schema=schema)


def _checks(digests: Sequence[bytes], rows: npt.NDArray[np.float32]) -> list[int]:
    """CRC-32 of each vector, continued from its hash, so that neither can change alone."""
    return [zlib.crc32(row, zlib.crc32(name)) for name, row in zip(digests, rows, strict=True)]


def prefixes(dataset: Any | None) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of every hash, in the order of the rows."""
    import numpy as np

    batches = () if dataset is None else dataset.to_batches(columns=["content_hash"])
    parts = [np.empty(0, np.uint64), *(_hash_words(batch.column(0))[:, 0] for batch in batches)]
    return np.concatenate(parts)


def _hash_words(column: Any) -> npt.NDArray[np.uint64]:
    """A column of 32-byte hashes as `(n, 4)` integers, without a copy."""
    import numpy as np

    words = np.frombuffer(column.buffers()[1], dtype="<u8", offset=column.offset * 32)
    return words[: len(column) * 4].reshape(len(column), 4)


def matching(prefixes: npt.NDArray[np.uint64], wanted: set[bytes]) -> npt.NDArray[np.intp]:
    """The positions whose first 8 bytes are those of a wanted hash, in order."""
    import numpy as np

    sought = np.frombuffer(b"".join(name[:8] for name in wanted), dtype="<u8")
    return np.flatnonzero(np.isin(prefixes, sought))


def collect(batches: Iterable[Any], wanted: set[bytes], most: int, dimension: int) -> Rows:
    """The first sound row of each wanted hash."""
    import numpy as np

    X = np.empty((min(most, len(wanted)), dimension), np.float32)
    index: dict[bytes, int] = {}
    for batch in batches:
        digests, vectors, sound = _sound_rows(batch)
        for row, name in enumerate(digests):
            if sound[row] and name in wanted and name not in index:
                X[len(index)] = vectors[row]
                index[name] = len(index)
    return Rows({name.hex(): row for name, row in index.items()}, X[: len(index)])


def _sound_rows(batch: Any) -> tuple[list[bytes], npt.NDArray[np.float32], list[bool]]:
    import numpy as np

    digests: list[bytes] = batch.column("content_hash").to_pylist()
    vectors = np.ascontiguousarray(batch.column("vector").flatten().to_numpy(zero_copy_only=False))
    vectors = vectors.reshape(len(digests), batch.schema.field("vector").type.list_size)
    finite = np.isfinite(vectors).all(axis=1)
    stored = batch.column("check").to_pylist()
    checks = _checks(digests, vectors)
    return (
        digests,
        vectors,
        [a == b and ok for a, b, ok in zip(checks, stored, finite, strict=True)],
    )


def verified(batches: Iterable[Any]) -> Verification:
    """Counts over all rows."""
    rows = damaged = 0
    seen: set[bytes] = set()
    for batch in batches:
        digests, _, sound = _sound_rows(batch)
        rows += len(digests)
        damaged += sound.count(False)
        seen.update(name for name, ok in zip(digests, sound, strict=True) if ok)
    return Verification(rows, damaged, rows - damaged - len(seen))


def dimension(dataset: Any | None) -> int:
    """The length of a row, 0 without a dataset."""
    return 0 if dataset is None else int(dataset.schema.field("vector").type.list_size)


def manifest_table(entries: Sequence[Entry]) -> Any:
    """The rows that go into a manifest."""
    import pyarrow as pa

    texts = ("key", "label", "split", "group", "failure_kind", "failure_reason")
    columns: dict[str, list[Any]] = {
        name: [_text(getattr(entry, name)) for entry in entries] for name in texts
    }
    columns["size_bytes"] = [entry.stamp and entry.stamp.size_bytes for entry in entries]
    columns["mtime_ns"] = [entry.stamp and entry.stamp.mtime_ns for entry in entries]
    columns["more_frames"] = [entry.more_frames for entry in entries]
    columns["content_hash"] = [
        None if entry.content_hash is None else digest(entry.content_hash) for entry in entries
    ]
    fields = [pa.field(name, pa.string()) for name in texts]
    fields += [pa.field("size_bytes", pa.int64()), pa.field("mtime_ns", pa.int64())]
    fields += [pa.field("content_hash", pa.binary(32)), pa.field("more_frames", pa.bool_())]
    return pa.table(columns, schema=pa.schema(fields, metadata={FORMAT_KEY: FORMAT}))


def _text(value: str | None) -> str | None:
    """Text that Arrow accepts, also where it came from a name that is not UTF-8."""
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def entries_of(table: Any) -> dict[str, Entry]:
    """The last entry of each key."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    stamps = zip(columns.pop("size_bytes"), columns.pop("mtime_ns"), strict=True)
    columns["stamp"] = [None if None in pair else Stamp(*pair) for pair in stamps]
    columns["content_hash"] = [value and value.hex() for value in columns["content_hash"]]
    rows = zip(*(columns[name] for name in Entry._fields), strict=True)
    return {row[0]: Entry(*row) for row in rows}
