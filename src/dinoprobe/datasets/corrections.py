"""`labels.csv`: corrections of labels, in the order in which a person made them.

Columns time, action, rows, key, content_hash, old, new, dropped, undoes; UTF-8, RFC 4180. An action
is one decision, about one image or many, and has as many rows as `rows` says, one after the other.
The file only grows: an undo is an action of its own, and names the one that it takes back. An empty
label is none, and `dropped` is 1 where the image is left out from then on. What stands behind the
last whole action was cut off while it was written, was never confirmed, and counts for nothing.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.datasets.layout import classes_of
from dinoprobe.errors import FormatError
from dinoprobe.types import content_hash

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from dinoprobe.types import Dataset, Sample

_FLAGS = {"": False, "1": True}


class Change(NamedTuple):
    """One row: image `key` with these bytes had the label `old`, and has `new` from then on."""

    time: str
    action: int
    rows: int
    key: str
    content_hash: str
    old: str | None
    new: str | None
    dropped: bool
    undoes: int | None


class State(NamedTuple):
    """What an image is now: its label, and whether it is left out."""

    label: str | None
    dropped: bool = False


class Parsed(NamedTuple):
    """The changes of all whole actions, and how many bytes of the file these are."""

    changes: list[Change]
    size_bytes: int


def header() -> bytes:
    """The first line of the file."""
    return to_bytes([Change._fields])


def row_of(change: Change) -> tuple[str, ...]:
    """The cells of a change."""
    values = change._replace(dropped="1" if change.dropped else "")  # type: ignore[arg-type]
    return tuple("" if value is None else str(value) for value in values)


def to_bytes(rows: Iterable[Sequence[str]]) -> bytes:
    """Lines of the file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)  # its line ends have both characters, so both are quoted
    return text.getvalue().encode()


def parse_corrections(data: bytes, path: str | os.PathLike[str]) -> Parsed:
    """The whole actions in the bytes of a file. Raises FormatError, with the line."""
    rows = _rows(data, path)
    first = next(rows, None)
    if first is None:
        return Parsed([], 0)
    if first[0] != list(Change._fields):
        expected = ",".join(Change._fields)
        raise FormatError(
            f"{path}: the first line is {first[0]}; expected {expected}. Give a labels.csv."
        )
    changes: list[Change] = []
    size, pending = first[1], list[Change]()
    for cells, end, line in rows:
        pending.append(_change(cells, path, line))
        if any(change[:3] != pending[0][:3] for change in pending[-2:]):
            raise _damaged(path, line, "belongs to another action than the row before")
        if len(pending) == pending[0].rows:
            changes += pending
            size, pending = end, []
    return Parsed(changes, size)


def _rows(data: bytes, path: str | os.PathLike[str]) -> Iterator[tuple[list[str], int, int]]:
    """Cells, the byte behind them and the line of each row that is whole."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in data.split(b"\n")[:-1]:  # what has no end was cut off
            end += len(line) + 1
            yield line.decode() + "\n"

    reader = csv.reader(lines())
    try:
        found = [(cells, end, reader.line_num) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a UTF-8 CSV file ({error}). Restore it.") from error
    yield from found[:-1] if _is_open(data) else found


def _is_open(data: bytes) -> bool:
    """Whether the last whole line lies within quotes."""
    return data[: data.rfind(b"\n") + 1].count(b'"') % 2 == 1


def _change(cells: list[str], path: str | os.PathLike[str], line: int) -> Change:
    if len(cells) != len(Change._fields):
        raise _damaged(path, line, f"has {len(cells)} cells, expected {len(Change._fields)}")
    time, action, rows, key, digest, old, new, dropped, undoes = cells
    try:
        return Change(
            time,
            int(action),
            int(rows),
            key,
            digest,
            old or None,
            new or None,
            _FLAGS[dropped],
            int(undoes) if undoes else None,
        )
    except (ValueError, KeyError) as error:
        raise _damaged(path, line, f"is not readable ({error})") from error


def _damaged(path: str | os.PathLike[str], line: int, what: str) -> FormatError:
    return FormatError(f"{path}: line {line} {what}. Restore the file, or remove what follows.")


def states(changes: Iterable[Change]) -> dict[str, tuple[str, State]]:
    """Content hash and state of each image that was ever changed, by key."""
    return {
        change.key: (change.content_hash, State(change.new, change.dropped)) for change in changes
    }


def corrected(dataset: Dataset, path: str) -> Dataset:
    """The dataset with the labels of a file of corrections, without the images that it drops.

    A correction counts for the bytes that a person saw: each image that has one is read, and where
    it is another now, or is gone, the correction is left out, by a note. Raises FormatError, and
    OSError where there is no such file.
    """
    wanted = states(parse_corrections(Path(path).read_bytes(), path).changes)
    samples, changed, dropped = [], 0, 0
    for sample in dataset.samples:
        digest, state = wanted.get(sample.key, ("", None))
        if state is None or _hash(sample) != digest:
            samples.append(sample)
            continue
        del wanted[sample.key]
        dropped += state.dropped
        changed += not state.dropped and state.label != sample.label
        if not state.dropped:
            samples.append(sample._replace(label=state.label))
    notes = [f"{path}: {changed:,} labels are corrected, and {dropped:,} images are left out."]
    if wanted:
        first = next(iter(wanted))
        notes.append(
            f"{path}: {len(wanted):,} corrections are of images that are others now, or are gone, "
            f"first {first}: they were left out."
        )
    notes_of_all = (*dataset.notes, *notes)
    return replace(dataset, samples=samples, classes=classes_of(samples), notes=notes_of_all)


def _hash(sample: Sample) -> str | None:
    try:
        return content_hash(sample.source.read())
    except OSError:
        return None
