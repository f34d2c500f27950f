"""Rows and entries as Arrow tables, and back, each row checked."""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import ConfigurationError, MismatchError, NonFiniteError, StoreError
from dinoprobe.files import to_json, valid_text
from dinoprobe.store.commits import FORMAT, FORMAT_KEY
from dinoprobe.store.values import Entry, Rows, Verification
from dinoprobe.types import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

DESCRIPTION_KEY = b"dinoprobe.description"
_HASH, _CHECK = "content_hash", "_check"
_PART = re.compile(r"[a-z][a-z0-9_]{0,30}")


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


def columns(parts: Sequence[str]) -> list[str]:
    """What is read of features.lance for these parts."""
    return [_HASH, *parts, *(part + _CHECK for part in parts)]


def stored_parts(dataset: Any | None) -> list[str]:
    """The parts that any row may have."""
    names = [] if dataset is None else dataset.schema.names
    return [name.removesuffix(_CHECK) for name in names if name.endswith(_CHECK)]


def checked(
    hashes: Sequence[str], X: npt.NDArray[np.float32], parts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """`X` as contiguous float32 `(n, parts, width)`, one finite row for each hash."""
    import numpy as np

    rows = np.ascontiguousarray(X, dtype="<f4")
    if rows.ndim != 2 or len(rows) != len(hashes):
        raise MismatchError(
            f"features of shape {np.shape(X)} for {len(hashes)} content hashes: "
            "expected one row a hash. Pass both in one order."
        )
    names_are_good = len(set(parts)) == len(parts) > 0 and all(map(_is_part, parts))
    if not names_are_good or rows.shape[1] % len(parts):
        raise MismatchError(
            f"features of {rows.shape[1]} values in the parts {', '.join(parts) or 'none'}: "
            "expected parts of one length, with different names of lower-case letters. "
            "Pass the encoder's own."
        )
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise NonFiniteError(
            f"row {bad} (content hash {hashes[bad][:12]}) holds NaN or infinity: expected finite "
            "features. Try a wider number type, such as dtype float32."
        )
    return rows.reshape(len(rows), len(parts), rows.shape[1] // len(parts))


def _is_part(name: str) -> bool:
    return bool(_PART.fullmatch(name)) and name != _HASH and not name.endswith(_CHECK)


def feature_table(
    digests: Sequence[bytes],
    rows: npt.NDArray[np.float32],
    parts: Sequence[str],
    description: Mapping[str, object] | None,
) -> Any:
    """The rows `(n, parts, width)` that go into features.lance: for each part its values and their
    check, both null in rows without it.
    """
    import numpy as np
    import pyarrow as pa

    width = rows.shape[2]
    fields = [pa.field(_HASH, pa.binary(32), nullable=False)]
    arrays = [pa.array(digests, pa.binary(32))]
    for number, part in enumerate(parts):
        values = np.ascontiguousarray(rows[:, number])
        fields += [pa.field(part, pa.list_(pa.float32(), width)), _check_field(part)]
        arrays += [
            pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width),
            pa.array(_checks(digests, part, values), pa.uint32()),
        ]
    metadata = {FORMAT_KEY: FORMAT, DESCRIPTION_KEY: to_json(description or {})}
    return pa.table(arrays, schema=pa.schema(fields, metadata=metadata))


def _check_field(part: str) -> Any:
    import pyarrow as pa

    return pa.field(part + _CHECK, pa.uint32())


def _checks(digests: Sequence[bytes], part: str, values: npt.NDArray[np.float32]) -> list[int]:
    """CRC-32 of each row, continued from its part's name and hash, so that none changes alone."""
    start = zlib.crc32(part.encode())
    return [
        zlib.crc32(row, zlib.crc32(name, start)) for name, row in zip(digests, values, strict=True)
    ]


def prefixes(
    dataset: Any | None, parts: Sequence[str]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """The first 8 bytes of every hash, and whether its row has all of these parts, in the order of
    the rows.
    """
    import numpy as np

    words, held = [np.empty(0, np.uint64)], [np.empty(0, np.bool_)]
    if dataset is not None and set(parts) <= set(stored_parts(dataset)):
        checks = [part + _CHECK for part in parts]
        for batch in dataset.to_batches(columns=[_HASH, *checks]):
            words.append(_hash_words(batch.column(_HASH))[:, 0])
            held.append(np.logical_and.reduce([_is_held(batch, part) for part in parts]))
    return np.concatenate(words), np.concatenate(held)


def _is_held(batch: Any, part: str) -> npt.NDArray[np.bool_]:
    """Which rows have this part, by its check."""
    found: npt.NDArray[np.bool_] = (
        batch.column(part + _CHECK).is_valid().to_numpy(zero_copy_only=False)
    )
    return found


def _hash_words(column: Any) -> npt.NDArray[np.uint64]:
    """A column of 32-byte hashes as `(n, 4)` integers, without a copy."""
    import numpy as np

    words = np.frombuffer(column.buffers()[1], dtype="<u8", offset=column.offset * 32)
    return words[: len(column) * 4].reshape(len(column), 4)


def matching(
    prefixes: npt.NDArray[np.uint64], held: npt.NDArray[np.bool_], wanted: set[bytes]
) -> npt.NDArray[np.intp]:
    """The positions that are held and whose first 8 bytes are those of a wanted hash, in order."""
    import numpy as np

    sought = np.frombuffer(b"".join(name[:8] for name in wanted), dtype="<u8")
    return np.flatnonzero(np.isin(prefixes, sought) & held)


def collect(
    batches: Iterable[Any], parts: Sequence[str], wanted: set[bytes], X: npt.NDArray[np.float32]
) -> Rows:
    """The first row of each wanted hash in which all of these parts are sound, written into X."""
    index: dict[str, int] = {}
    for names, rows in sound_blocks(batches, parts, wanted):
        X[len(index) : len(index) + len(rows)] = rows
        index.update(zip(names, range(len(index), len(index) + len(rows)), strict=True))
    return Rows(index, X[: len(index)])


def sound_blocks(
    batches: Iterable[Any], parts: Sequence[str], wanted: set[bytes]
) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Hashes and features `(n, d)` of each batch: the first row of each wanted hash in which all of
    these parts are sound.
    """
    import numpy as np

    seen: set[bytes] = set()
    for batch in batches:
        digests: list[bytes] = batch.column(_HASH).to_pylist()
        values, sound = zip(*(_sound_rows(batch, part, digests) for part in parts), strict=True)
        usable = np.logical_and.reduce(sound)
        chosen = []
        for row, name in enumerate(digests):
            if usable[row] and name in wanted and name not in seen:
                chosen.append(row)
                seen.add(name)
        if chosen:
            X = np.concatenate([part[chosen] for part in values], axis=1)
            yield [digests[row].hex() for row in chosen], X


def scanned(
    path: str, batches: Iterable[Any], parts: Sequence[str]
) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Hashes and features `(n, d)` of the rows with all of these parts, those seen before left out.

    Raises StoreError for a row that is not as it was written.
    """
    import numpy as np

    seen: set[bytes] = set()
    for batch in batches:
        digests: list[bytes] = batch.column(_HASH).to_pylist()
        values, sound = zip(*(_sound_rows(batch, part, digests) for part in parts), strict=True)
        held = np.logical_and.reduce([_is_held(batch, part) for part in parts])
        damaged = np.flatnonzero(held & ~np.logical_and.reduce(sound))
        if len(damaged):
            raise StoreError(
                f"{path}: the row of content hash {digests[damaged[0]].hex()[:12]} is damaged "
                f"({len(damaged)} of {len(digests)} rows of this block). Expected rows as they "
                "were written. Embed the dataset again: what is damaged is replaced."
            )
        chosen = []
        for row in np.flatnonzero(held).tolist():
            if digests[row] not in seen:
                seen.add(digests[row])
                chosen.append(row)
        if chosen:
            X = np.concatenate([part[chosen] for part in values], axis=1)
            yield [digests[row].hex() for row in chosen], X


def _sound_rows(
    batch: Any, part: str, digests: Sequence[bytes]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The values of this part `(n, width)`, and which rows have it as it was written.

    Rows without it stay in their places: `flatten` would leave them out.
    """
    import numpy as np

    column = batch.column(part)
    width = column.type.list_size
    values = column.values.slice(column.offset * width, len(column) * width)
    rows = values.to_numpy(zero_copy_only=False).reshape(len(column), width)
    stored = batch.column(part + _CHECK).to_pylist()
    same = [a == b for a, b in zip(_checks(digests, part, rows), stored, strict=True)]
    return rows, np.asarray(same, np.bool_) & np.isfinite(rows).all(axis=1)


def verified(batches: Iterable[Any], parts: Sequence[str]) -> Verification:
    """Counts over all rows. One without any part, and one with a part that is not as it was
    written, is damaged.
    """
    import numpy as np

    rows = damaged = 0
    seen: set[tuple[bytes, ...]] = set()
    for batch in batches:
        digests: list[bytes] = batch.column(_HASH).to_pylist()
        held = np.stack([_is_held(batch, part) for part in parts], axis=1)
        sound = np.stack([_sound_rows(batch, part, digests)[1] for part in parts], axis=1)
        good = (held == sound).all(axis=1) & held.any(axis=1)
        rows += len(digests)
        damaged += int((~good).sum())
        seen.update((digests[row], held[row].tobytes()) for row in np.flatnonzero(good))
    return Verification(rows, damaged, rows - damaged - len(seen))


def dimension(dataset: Any | None, parts: Sequence[str]) -> int:
    """The length of a row of these parts, 0 where no row has them."""
    if dataset is None or not set(parts) <= set(stored_parts(dataset)):
        return 0
    return sum(int(dataset.schema.field(part).type.list_size) for part in parts)


def manifest_table(entries: Sequence[Entry]) -> Any:
    """The rows that go into a manifest."""
    import pyarrow as pa

    texts = ("key", "label", "split", "group", "failure_kind", "failure_reason")
    columns: dict[str, list[Any]] = {
        name: [valid_text(getattr(entry, name)) for entry in entries] for name in texts
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


def entries_of(table: Any) -> dict[str, Entry]:
    """The last entry of each key."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    stamps = zip(columns.pop("size_bytes"), columns.pop("mtime_ns"), strict=True)
    columns["stamp"] = [None if None in pair else Stamp(*pair) for pair in stamps]
    columns["content_hash"] = [value and value.hex() for value in columns["content_hash"]]
    rows = zip(*(columns[name] for name in Entry._fields), strict=True)
    return {row[0]: Entry(*row) for row in rows}
