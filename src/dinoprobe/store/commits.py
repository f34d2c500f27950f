"""Lance as this package uses it: open, commit, compact, and every error with a path and advice.

Appends of several writers do not conflict in Lance; what can be lost is the race to create a
dataset or to add a column, and then the loser opens it as it is and goes on.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import DinoprobeError, FormatError, MismatchError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FORMAT = "2"
FORMAT_KEY = b"dinoprobe.format"
PAGE_BYTES = 6 << 20
_COMMIT_TRIES = 20
_MAX_FRAGMENTS = 32
_ROWS_PER_FRAGMENT = 1 << 17  # fuller ones are left alone, so compaction never rewrites everything
_KEEP_VERSIONS = timedelta(hours=1)  # longer than any reader of an old version needs


def load_lance() -> Any:
    """The lance module, imported late (0.6 s) and kept from writing to stderr by itself."""
    os.environ.setdefault("LANCE_LOG", "error")
    import lance

    message = "lance is not fork-safe"
    if not any(entry[1] and entry[1].pattern == message for entry in warnings.filters):
        warnings.filterwarnings("ignore", message=message)
    return lance


@contextmanager
def reported(path: str, *, size_bytes: int = 0) -> Iterator[None]:
    """Map whatever Lance and Arrow raise, panics of Rust included, to a StoreError."""
    try:
        yield
    except (DinoprobeError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise StoreError(_explain(path, str(error), size_bytes)) from error


def _explain(path: str, reason: str, size_bytes: int) -> str:
    first_line = reason.splitlines()[0][:300] if reason else "no reason given"
    if "No space left" in reason or "os error 28" in reason or "quota" in reason.lower():
        needed = f"; {size_bytes:,} bytes are needed" if size_bytes else ""
        return (
            f"{path}: the disk is full{needed}. What was stored before is untouched. "
            "Free some space and run again: it goes on from there."
        )
    if "ermission denied" in reason or "Read-only" in reason or "Access Denied" in reason:
        return (
            f"{path}: no permission ({first_line}). Expected a place that you may read and write. "
            "Choose another store, or set DINOPROBE_CACHE."
        )
    return (
        f"{path}: the feature store can not be read or written ({first_line}). "
        "Expected a Lance dataset that this program wrote. If it is damaged, delete this one "
        "folder: it is a cache, and what is missing is computed again."
    )


def open_dataset(path: str) -> Any | None:
    """The dataset at `path`, or None where none was ever committed."""
    try:
        dataset = load_lance().dataset(path)
    except ValueError as error:
        if "was not found" not in str(error):
            raise
        return None
    version = (dataset.schema.metadata or {}).get(FORMAT_KEY, b"none").decode()
    if version != FORMAT:
        raise FormatError(
            f"{path}: store format {version}, expected {FORMAT}. "
            "Use another folder for this version of dinoprobe, or delete this one."
        )
    return dataset


def append_table(path: str, table: Any) -> None:
    """Commit `table`, and try again where another writer was faster."""

    def append() -> None:
        dataset = prepare_table(path, table.schema)
        rows = table.replace_schema_metadata(dataset.schema.metadata)
        load_lance().write_dataset(rows, dataset, mode="append")

    _until_won(append)


def prepare_table(path: str, schema: Any) -> Any:
    """The dataset at `path` with every column of the schema, made where there is none."""
    dataset = open_dataset(path) or _created(path, schema)
    _same_lengths(path, dataset.schema, schema)
    return _with_columns(path, dataset, schema)


def stage_table(path: str, table: Any) -> list[str]:
    """Write the rows where `append_staged` finds them, of which nothing tells until then; as text.

    What is never appended is removed by a compaction seven days later: until then Lance can not
    tell it from the work of another writer.
    """
    dataset = prepare_table(path, table.schema)
    rows = table.replace_schema_metadata(dataset.schema.metadata)
    written = load_lance().fragment.write_fragments(rows, dataset, mode="append")
    return [json.dumps(fragment.to_json()) for fragment in written]


def append_staged(path: str, staged: Sequence[str]) -> None:
    """Commit what `stage_table` wrote, here or in other processes: all of it or none."""
    lance = load_lance()
    fragments = [lance.fragment.FragmentMetadata.from_json(text) for text in staged]

    def append() -> None:
        dataset = open_dataset(path)
        if dataset is None:
            raise StoreError(
                f"{path}: is gone, with {len(staged)} files that were written there. Expected the "
                "folder of this run. Run again, and leave the store alone meanwhile."
            )
        operation = lance.LanceOperation.Append(fragments)
        lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)

    _until_won(append)


def _until_won(commit: Callable[[], None]) -> None:
    for attempt in range(_COMMIT_TRIES):
        try:
            commit()
        except OSError as error:
            if attempt + 1 == _COMMIT_TRIES or not _lost_race(error):
                raise
        else:
            return


def _created(path: str, schema: Any) -> Any:
    """The dataset, made without rows by the first writer, who names the schema's metadata.

    `write_dataset` in the mode `create` would be tried again by Lance where another writer was
    faster, as an overwrite of that one's rows; this commit is for version 1 or not at all.
    """
    lance = load_lance()
    try:
        operation = lance.LanceOperation.Overwrite(schema, [])
        lance.LanceDataset.commit(path, operation, read_version=0, max_retries=0)
    except (OSError, ValueError):
        made = open_dataset(path)
        if made is None:
            raise
        return made
    return open_dataset(path)


def _with_columns(path: str, dataset: Any, schema: Any) -> Any:
    """The dataset with every column of the schema: new ones are empty for the rows that are there.

    That is one commit and writes no data; a kill behind it leaves an empty column.
    """
    import pyarrow as pa

    missing = [field for field in schema if field.name not in dataset.schema.names]
    if not missing:
        return dataset
    dataset.add_columns(pa.schema(missing))
    return open_dataset(path)


def _same_lengths(path: str, stored: Any, new: Any) -> None:
    for name in set(stored.names) & set(new.names):
        here, there = (getattr(s.field(name).type, "list_size", None) for s in (new, stored))
        if here != there:
            raise MismatchError(
                f"{path}: holds rows of {there} values, these rows have {here}, under one "
                "fingerprint. An encoder whose features change needs another fingerprint: "
                "use another store, or delete this folder."
            )


def _lost_race(error: Exception) -> bool:
    text = str(error).lower()
    return "already exists" in text or "conflict" in text


def paged(dataset: Any, columns: list[str], row_bytes: int) -> Iterator[Any]:
    """The rows of some columns, about `PAGE_BYTES` at a time, each page read when it is asked for.

    A scan takes half the time, and reads ahead whatever its reader is slow for: all of a table of
    307 MB was in memory at 50 ms a batch, where pages took 67 MB (docs/log.md).
    """
    size = max(1, PAGE_BYTES // row_bytes)
    for start in range(0, dataset.count_rows(), size):
        yield from dataset.to_table(columns=columns, offset=start, limit=size).to_batches()


def compact_dataset(dataset: Any | None) -> None:
    """Join fragments where there are more than 32; give up where another writer is at it."""
    if dataset is None:
        return
    try:
        if len(dataset.get_fragments()) > _MAX_FRAGMENTS:
            dataset.optimize.compact_files(target_rows_per_fragment=_ROWS_PER_FRAGMENT)
        dataset.cleanup_old_versions(older_than=_KEEP_VERSIONS)
    except (OSError, RuntimeError) as error:
        if not _lost_race(error):
            raise
