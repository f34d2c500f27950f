"""`split.csv`: which image is for what, kept so that a run can be repeated exactly.

Columns key, label, split, group and content_hash; UTF-8, RFC 4180. An empty cell is None.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.errors import DatasetError, FormatError
from dinoprobe.files import write_atomic
from dinoprobe.types import SPLITS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from dinoprobe.types import Dataset, Split


class SplitRow(NamedTuple):
    """One image of a split file."""

    key: str
    label: str | None
    split: Split | None
    group: str | None = None
    content_hash: str | None = None


_BY_NAME: dict[str, Split] = {split: split for split in SPLITS}


def write_split(
    path: str | os.PathLike[str],
    rows: Iterable[tuple[str | None, ...]],
) -> None:
    """Writes rows of (key, label, split, group, content hash), all or nothing.

    A row may be a `SplitRow`, or stop before what it does not know. Raises WriteError.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(SplitRow._fields)
    writer.writerows(["" if cell is None else cell for cell in _full(row)] for row in rows)
    write_atomic(path, buffer.getvalue())


def _full(row: tuple[str | None, ...]) -> tuple[str | None, ...]:
    return row + (None,) * (len(SplitRow._fields) - len(row))


def read_split(path: str | os.PathLike[str]) -> list[SplitRow]:
    """The rows of a split file, in its order.

    Raises FormatError, with the line, for other columns, a repeated key or an unknown split, and
    OSError when the file can not be read.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a UTF-8 CSV file ({error}). Write it again.") from error
    names = lines[0][1] if lines else []
    if names != list(SplitRow._fields):
        raise FormatError(
            f"{path}: the columns are {names}. Expected {list(SplitRow._fields)}, in this order."
        )
    rows = [_row(path, number, line) for number, line in lines[1:] if line]
    seen: set[str] = set()
    for row in rows:
        if row.key in seen:
            raise FormatError(f"{path}: the key '{row.key}' is there twice. Expected it once.")
        seen.add(row.key)
    return rows


def with_split(dataset: Dataset, path: str) -> Dataset:
    """The dataset with the parts and groups of a split file; images that it lacks have no part.

    Raises FormatError, DatasetError where no image is in it, and OSError.
    """
    rows = {row.key: row for row in read_split(path)}
    none = SplitRow("", None, None)
    samples = [
        sample._replace(
            split=rows.get(sample.key, none).split, group=rows.get(sample.key, none).group
        )
        for sample in dataset.samples
    ]
    if not any(sample.key in rows for sample in samples):
        raise DatasetError(
            f"{path}: has none of the {len(samples):,} images of {dataset.uri}; expected their "
            f"keys, such as {samples[0].key}. Give the split.csv of a run on these images."
        )
    return replace(dataset, samples=samples)


def _row(path: str | os.PathLike[str], number: int, line: list[str]) -> SplitRow:
    if len(line) != len(SplitRow._fields):
        raise FormatError(
            f"{path}: line {number} has {len(line)} cells. Expected {len(SplitRow._fields)}."
        )
    key, label, split, group, content_hash = line
    if split and split not in _BY_NAME:
        raise FormatError(
            f"{path}: line {number} has the split '{split}'. Expected {', '.join(SPLITS)}."
        )
    known = _BY_NAME.get(split)
    return SplitRow(key, label or None, known, group or None, content_hash or None)
