"""Where predictions are kept: one Parquet file, or a Lance dataset.

The file is written anew beside the old one and renamed, whatever changed; the dataset gets the
changed rows alone, in one commit, and may lie on an object store.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import ConfigurationError, DinoprobeError, FormatError
from dinoprobe.files import WriteError, atomic_writer
from dinoprobe.predicted.columns import STATE_COLUMNS, State
from dinoprobe.predicted.terms import METADATA_KEY
from dinoprobe.store.commits import compact_dataset, load_lance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Set as AbstractSet

_BATCH_ROWS = 8192
_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 16 << 20
_OF_LANCE = {"data", "_versions", "_transactions"}


class Table(ABC):
    """Rows by key, with the terms that they were scored by."""

    def __init__(self, place: str) -> None:
        self.place = place

    @abstractmethod
    def terms(self) -> dict[str, Any] | None:
        """As the schema keeps them, or None where there is no table yet.

        Raises FormatError where something else is at its place.
        """

    @abstractmethod
    def states(self) -> dict[str, State]:
        """What each row stands for, by its key."""

    @abstractmethod
    def replace(self, schema: Any, batches: Iterator[Any]) -> None:
        """Put these rows in place of all; until the end the old ones are there, whole."""

    @abstractmethod
    def change(self, schema: Any, batches: Iterator[Any], kept: AbstractSet[str]) -> None:
        """Put these rows in place of all but the kept ones, likewise."""


@final
class ParquetTable(Table):
    """One file, read and written a few thousand rows at a time."""

    def terms(self) -> dict[str, Any] | None:
        """As `Table` says."""
        if not Path(self.place).exists():
            return None
        with self._opened() as file:
            return _terms_of(self.place, file.schema_arrow.metadata)

    def states(self) -> dict[str, State]:
        """As `Table` says."""
        with self._opened() as file:
            return _states(file.iter_batches(_BATCH_ROWS, columns=STATE_COLUMNS))

    def replace(self, schema: Any, batches: Iterator[Any]) -> None:
        """Beside the old file, which it then takes the place of."""
        import pyarrow.parquet as pq

        with atomic_writer(self.place) as file, pq.ParquetWriter(file, schema) as writer:
            for group in _groups(batches):
                writer.write_table(group)

    def change(self, schema: Any, batches: Iterator[Any], kept: AbstractSet[str]) -> None:
        """The file anew, with the kept rows first."""
        with self._opened() as file:
            self.replace(schema, _chained(_kept_rows(file, kept), batches))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.place)
        except (pa.ArrowException, OSError) as error:
            raise _foreign(self.place, f"not a readable Parquet file: {error}") from error
        with file:
            yield file


@final
class LanceTable(Table):
    """A dataset at a path or an object-store URI."""

    _version = 0

    def terms(self) -> dict[str, Any] | None:
        """As `Table` says."""
        dataset = self._dataset()
        return None if dataset is None else _terms_of(self.place, dataset.schema.metadata)

    def states(self) -> dict[str, State]:
        """As `Table` says."""
        with _reported(self.place):
            dataset = self._dataset()
            self._version = dataset.version
            return _states(dataset.to_batches(columns=STATE_COLUMNS))

    def replace(self, schema: Any, batches: Iterator[Any]) -> None:
        """As `Table` says."""
        with _streamed(schema, batches) as reader, _reported(self.place):
            mode = "create" if self._dataset() is None else "overwrite"
            load_lance().write_dataset(reader, self.place, mode=mode)

    def change(self, schema: Any, batches: Iterator[Any], kept: AbstractSet[str]) -> None:
        """One commit: the new rows, and in each fragment a list of those that are gone."""
        lance = load_lance()
        with _streamed(schema, batches) as reader, _reported(self.place):
            dataset = self._dataset()
            new = lance.fragment.write_fragments(reader, dataset, mode="append")
            updated, removed = [], []
            for fragment in dataset.get_fragments():
                gone = [key for key in _keys(fragment) if key not in kept]
                left = fragment.delete(_among(gone)) if gone else fragment.metadata
                if left is None:
                    removed.append(fragment.fragment_id)
                elif gone:
                    updated.append(left)
            operation = lance.LanceOperation.Update(
                removed_fragment_ids=removed, updated_fragments=updated, new_fragments=new
            )
            self._refuse_other_version()
            done = lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)
        with suppress(OSError, RuntimeError):  # the rows are there all the same
            compact_dataset(done)

    def _refuse_other_version(self) -> None:
        """Raises WriteError where another run was faster, for both may have a row for one key."""
        version = self._dataset().version
        if version != self._version:
            raise WriteError(
                f"{self.place}: is at version {version}, expected {self._version}, which this run "
                "has read: somebody changed it meanwhile. It is left as that one wrote it. Run "
                "again: features that were computed are in the store."
            )

    def _dataset(self) -> Any:
        """The dataset, or None where there is none. Raises FormatError for something else."""
        try:
            return load_lance().dataset(self.place)
        except ValueError as error:
            if "was not found" not in str(error):
                raise _foreign(self.place, str(error)) from error
        if "://" not in self.place and not _is_unfinished(Path(self.place)):
            raise _foreign(self.place, "not a Lance dataset")
        return None


_TABLES: dict[str, Callable[[str], Table]] = {".parquet": ParquetTable, ".lance": LanceTable}


def open_table(place: str) -> Table:
    """The table at a place, by its suffix; nothing is opened yet. Raises ConfigurationError."""
    kind = _TABLES.get(Path(place.rstrip("/")).suffix.lower())
    if kind is None:
        msg = f"{place}: expected a name that ends in .parquet or .lance. Choose another one."
        raise ConfigurationError(msg)
    if "://" in place:
        if kind is ParquetTable:
            msg = (
                f"{place}: a Parquet file is renamed into its place, which object stores can not. "
                "Expected a local path, or a Lance dataset such as s3://bucket/labels.lance."
            )
            raise ConfigurationError(msg)
        return kind(place.rstrip("/"))
    path = Path(place).expanduser().absolute()
    if not path.parent.is_dir():
        msg = f"{place}: its folder does not exist. Make it, or give another place."
        raise ConfigurationError(msg)
    return kind(str(path))


def _terms_of(place: str, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    try:
        terms = json.loads((metadata or {})[METADATA_KEY])
    except (KeyError, ValueError):
        terms = None
    if not isinstance(terms, dict):
        raise _foreign(place, "no predictions of dinoprobe")
    return terms


def _foreign(place: str, why: str) -> FormatError:
    return FormatError(
        f"{place}: {' '.join(why.split())[:200]}. Expected nothing there, or a table that "
        "`dinoprobe predict --out` wrote. It is left as it is: give another place."
    )


def _is_unfinished(folder: Path) -> bool:
    """Whether nothing is here, or what Lance leaves where the first commit was not reached."""
    if not folder.is_dir():
        return not folder.exists()
    return {path.name for path in folder.iterdir()} <= _OF_LANCE


def _states(batches: Iterable[Any]) -> dict[str, State]:
    found: dict[str, State] = {}
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in STATE_COLUMNS]
        found.update((key, State(*rest)) for key, *rest in zip(*columns, strict=True))
    return found


def _kept_rows(file: Any, kept: AbstractSet[str]) -> Iterator[Any]:
    import pyarrow as pa

    for batch in file.iter_batches(_BATCH_ROWS):
        yield batch.filter(pa.array([key in kept for key in batch.column("key").to_pylist()]))


def _chained(*parts: Iterator[Any]) -> Iterator[Any]:
    for part in parts:
        yield from part


def _groups(batches: Iterable[Any]) -> Iterator[Any]:
    """Small batches as tables of up to 65,536 rows or 16 MiB, for readers of Parquet."""
    import pyarrow as pa

    held: list[Any] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def _keys(fragment: Any) -> list[str]:
    keys: list[str] = fragment.to_table(columns=["key"]).column("key").to_pylist()
    return keys


def _among(keys: list[str]) -> str:
    quoted = ("'" + key.replace("'", "''") + "'" for key in keys)
    return f"key IN ({', '.join(quoted)})"


@contextmanager
def _streamed(schema: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """A reader for Lance, which pulls in a thread of its own and makes text of what is raised
    there: here it is raised as it was.
    """
    import pyarrow as pa

    raised: list[BaseException] = []

    def pulled() -> Iterator[Any]:
        try:
            yield from batches
        except BaseException as error:
            raised.append(error)
            raise

    try:
        yield pa.RecordBatchReader.from_batches(schema, pulled())
    except DinoprobeError as error:
        if raised:
            raise raised[0] from error
        raise


@contextmanager
def _reported(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DinoprobeError):
            raise
        raise WriteError(
            f"{place}: can not be read or written ({' '.join(str(error).split())[:300]}). What was "
            "there before is untouched. Expected a Lance dataset that nobody else changes now, in "
            "a place that you may write to. Run again, or choose another place."
        ) from error
