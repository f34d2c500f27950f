"""Lance as this package uses it: open, commit, compact, and every error with a path and advice.

Appends of several writers do not conflict in Lance; what can be lost is the race to create a
dataset, and then the loser opens it and appends.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import DinoprobeError, FormatError, MismatchError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = "1"
FORMAT_KEY = b"dinoprobe.format"
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
    for attempt in range(_COMMIT_TRIES):
        dataset = open_dataset(path)
        if dataset is not None:
            _same_columns(path, dataset.schema, table.schema)
        try:
            if dataset is None:
                load_lance().write_dataset(table, path, mode="create")
            else:
                load_lance().write_dataset(table.cast(dataset.schema), dataset, mode="append")
        except OSError as error:
            if attempt + 1 == _COMMIT_TRIES or not _lost_race(error):
                raise
        else:
            return


def _same_columns(path: str, stored: Any, new: Any) -> None:
    if "vector" in stored.names and "vector" in new.names:
        here, there = new.field("vector").type.list_size, stored.field("vector").type.list_size
        if here != there:
            raise MismatchError(
                f"{path}: holds rows of {there} values, these rows have {here}, under one "
                "fingerprint. An encoder whose features change needs another fingerprint: "
                "use another store, or delete this folder."
            )


def _lost_race(error: Exception) -> bool:
    text = str(error).lower()
    return "already exists" in text or "conflict" in text


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
