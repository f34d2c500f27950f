"""Tables of paths and labels: CSV, TSV, JSON Lines, Parquet.

Read whole and into text, without pandas (0.3 s of import): only the named columns are kept.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.datasets.layout import classes_of, one_sided, unique_keys
from dinoprobe.datasets.location import is_remote, local_path, open_binary, source_at
from dinoprobe.datasets.names import nearest, some, split_named, utf8
from dinoprobe.errors import DatasetError
from dinoprobe.types import Dataset, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dinoprobe.types import Source, Split

KNOWN_COLUMNS = {
    "path": ("path", "image_path", "file_name", "image", "filepath", "url"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group": ("group",),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a user names. None: found by the usual names."""

    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None

    def named(self) -> str:
        """The given names, for a message."""
        given = {role: getattr(self, role) for role in KNOWN_COLUMNS}
        return ", ".join(f"{role} column '{name}'" for role, name in given.items() if name)


@dataclass(frozen=True, slots=True)
class _Table:
    """All column names, and the values of those that may be needed, one per row."""

    place: str
    columns: dict[str, Sequence[Any]]
    names: Sequence[str]


def open_table(place: str, columns: Columns) -> Dataset:
    """One sample per row; paths are relative to the table. A file that is missing stays a sample.

    Raises DatasetError for a table that can not be read, without a column of paths, or with a
    split of another name than train, val and test.
    """
    table = _read(place, columns)
    found = {role: _column(table, role, getattr(columns, role)) for role in KNOWN_COLUMNS}
    paths = _paths(table, found["path"])
    if not paths:
        raise DatasetError(f"{utf8(place)}: no rows. Expected one row for each image.")
    keys, notes = unique_keys(paths)
    folder = place.rpartition("/")[0]
    rows = zip(
        keys,
        [_source(folder, path, remote=is_remote(place)) for path in paths],
        [text_of(value) for value in _values(table, found["label"])],
        _splits(table, found["split"]),
        [text_of(value) for value in _values(table, found["group"])],
        strict=True,
    )
    samples = [Sample(*row) for row in rows]
    return Dataset(
        uri=utf8(place),
        samples=samples,
        classes=classes_of(samples),
        notes=(*notes, *one_sided(samples)),
    )


def has_labels(place: str) -> bool:
    """Whether a table has both a column of paths and a column of labels, by the usual names."""
    table = _read(place, Columns())
    return all(_usual(table, role) is not None for role in ("path", "label"))


def text_of(value: Any) -> str | None:
    """A label or group as text, or None for an empty cell or NaN. 3.0 becomes '3'.

    Tools that keep whole numbers with gaps in a column write them as fractions.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return utf8(str(value)).strip() or None


def _usual(table: _Table, role: str) -> str | None:
    folded = {name.strip().casefold(): name for name in reversed(table.columns)}
    return next((folded[name] for name in KNOWN_COLUMNS[role] if name in folded), None)


def _column(table: _Table, role: str, given: str | None) -> str | None:
    """The column for a role. A given name wins, and must be there; the path is always needed."""
    if given is None:
        found = _usual(table, role)
        if found is None and role == "path":
            raise DatasetError(
                f"{utf8(table.place)}: no column of paths among {some(table.names, 20)}. Expected "
                f"one of {', '.join(KNOWN_COLUMNS['path'])}; or name yours as the path column."
            )
        return found
    if given in table.columns:
        return given
    close = nearest(given, table.names)
    raise DatasetError(
        f"{utf8(table.place)}: no column '{given}' for the {role}. The table has "
        f"{some(table.names, 20)}." + (f" Did you mean '{close}'?" if close else "")
    )


def _values(table: _Table, column: str | None) -> Sequence[Any]:
    if column is None:
        return [None] * len(next(iter(table.columns.values())))
    return table.columns[column]


def _paths(table: _Table, column: str | None) -> list[str]:
    paths = []
    for row, value in enumerate(_values(table, column), start=1):
        if not isinstance(value, str) or not value.strip():
            raise DatasetError(
                f"{utf8(table.place)}: row {row} has no path in '{column}' (found "
                f"{type(value).__name__} {value!r:.40}). Expected text: a path or a URL."
            )
        paths.append(value)
    return paths


def _splits(table: _Table, column: str | None) -> list[Split | None]:
    splits: list[Split | None] = []
    for row, value in enumerate(_values(table, column), start=1):
        text = text_of(value)
        split = split_named(text) if text else None
        if text and split is None:
            raise DatasetError(
                f"{utf8(table.place)}: row {row} has the split '{text}'. Expected train, val or "
                "test, or an empty cell."
            )
        splits.append(split)
    return splits


def _source(folder: str, path: str, *, remote: bool) -> Source:
    """The source of a row: a URL as it is, a path relative to the folder of the table.

    In a store, a path that starts with a slash counts from the root of that store; a table there
    has no say over this machine's files.
    """
    if is_remote(path):
        return source_at(path)
    if remote:
        start = folder if not path.startswith("/") else folder.partition("://")[0] + ":/"
        return source_at(f"{start}/{local_path(path).lstrip('/')}")
    path = local_path(path)
    return source_at(path if path.startswith("/") or not folder else f"{folder}/{path}")


def _read(place: str, columns: Columns) -> _Table:
    """Reads a table by its suffix. Raises DatasetError."""
    suffix = place.lower().rpartition(".")[2]
    try:
        with open_binary(place) as file:
            if suffix in ("parquet", "pq"):
                return _read_parquet(place, file, columns)
            text = file.read().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DatasetError(f"{utf8(place)}: the table can not be read ({error}).") from error
    if suffix in ("jsonl", "ndjson"):
        read = _read_json_lines(place, text)
    else:
        read = _read_csv(place, text, delimiter="\t" if suffix == "tsv" else ",")
    return _Table(place, read, list(read))


def _read_csv(place: str, text: str, *, delimiter: str) -> dict[str, Sequence[Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise DatasetError(f"{utf8(place)}: line {reader.line_num}: {error}.") from error
    if not rows:
        raise DatasetError(f"{utf8(place)}: the table is empty. Expected a line of column names.")
    names, width = [name.strip() for name in rows[0]], len(rows[0])
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != width:
            raise DatasetError(
                f"{utf8(place)}: row {number} has {len(row)} cells. Expected {width}, one for each "
                f"of {some(names, 20)}. Put quotes around a cell that holds '{delimiter}'."
            )
    columns = zip(*rows[1:], strict=True) if len(rows) > 1 else [()] * width
    return dict(zip(names, columns, strict=True))


def _read_json_lines(place: str, text: str) -> dict[str, Sequence[Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{utf8(place)}: line {number} is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{utf8(place)}: line {number} is not a JSON object {{...}}.")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    if not names:
        raise DatasetError(f"{utf8(place)}: the table is empty. Expected a JSON object per line.")
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(place: str, file: Any, columns: Columns) -> _Table:
    """Only the columns that have one of the usual names or a given one: others may be large."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    usual = {name for names in KNOWN_COLUMNS.values() for name in names}
    given = {getattr(columns, role) for role in KNOWN_COLUMNS}
    try:
        names = pq.read_schema(file).names
        wanted = [name for name in names if name in given or name.strip().casefold() in usual]
        table = pq.read_table(file, columns=wanted)
        return _Table(place, {name: table.column(name).to_pylist() for name in wanted}, names)
    except pa.ArrowException as error:
        raise DatasetError(f"{utf8(place)}: not a readable Parquet file ({error}).") from error
