"""Samples on their way to another process, as one Arrow file: places, and no pickle.

A file, an object of a store and a member of an archive travel as some 100 bytes that say where they
are, and the other process must see that place. What only this process can read (a row of a loaded
dataset, an image in memory) travels as the bytes of its file, and pixels do not travel at all.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.datasets.location import FileSource, RemoteSource
from dinoprobe.datasets.memory import BytesSource
from dinoprobe.datasets.tars import TarSource
from dinoprobe.datasets.zips import ZipSource
from dinoprobe.errors import ConfigurationError
from dinoprobe.types import Sample, Source, Stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

# The types of sources that travel as places, with what makes them again.
_PLACES: dict[str, tuple[type[Source], tuple[str, ...]]] = {
    "file": (FileSource, ("path",)),
    "object": (RemoteSource, ("uri", "known")),
    "tar": (TarSource, ("place", "member", "start", "size_bytes")),
    "zip": (ZipSource, ("place", "index", "member")),
}
_PATHS = frozenset({"path", "place"})


class Packed(NamedTuple):
    """One sample as two cells: its place as JSON text, or the bytes of its file."""

    number: int
    key: str
    place: str | None
    data: bytes | None

    @property
    def size_bytes(self) -> int:
        """What it takes on its way."""
        return len(self.key) + len(self.place or "") + len(self.data or b"")


def pack(number: int, sample: Sample) -> Packed:
    """A sample as it travels; `number` is for the sender. Reads the image where only this process
    can: raises OSError then, and ConfigurationError for pixels.
    """
    for kind, (type_, names) in _PLACES.items():
        if type(sample.source) is type_:
            values = [_value(name, getattr(sample.source, name)) for name in names]
            return Packed(number, sample.key, json.dumps([kind, *values]), None)
    content = sample.source.read()
    if not isinstance(content, bytes):
        raise ConfigurationError(
            f"{sample.key}: pixels in this process's memory. Expected images that are files, "
            "objects of a store, or in archives, for other processes to read. Write them to "
            "files, or use the local engine."
        )
    return Packed(number, sample.key, None, content)


def to_bytes(samples: Sequence[Packed]) -> bytes:
    """An Arrow stream of packed samples."""
    import pyarrow as pa

    names = (("number", pa.int64()), ("key", pa.string()), ("place", pa.string()))
    schema = pa.schema([*(pa.field(*name) for name in names), ("data", pa.large_binary())])
    columns = [list(column) for column in zip(*samples, strict=True)] or [[] for _ in schema]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table(columns, schema=schema))
    return bytes(sink.getvalue())


def from_bytes(stream: bytes) -> list[tuple[int, Sample]]:
    """The samples of `to_bytes`, each with its number."""
    import pyarrow as pa

    table = pa.ipc.open_stream(stream).read_all()
    rows = zip(*(table.column(name).to_pylist() for name in Packed._fields), strict=True)
    return [(number, Sample(key, _source(place, data))) for number, key, place, data in rows]


def _value(name: str, value: Any) -> Any:
    return os.path.abspath(value) if name in _PATHS and "://" not in value else value  # noqa: PTH100


def _source(place: str | None, data: bytes | None) -> Source:
    if place is None:
        return BytesSource(data or b"")
    kind, *values = json.loads(place)
    if kind == "object" and values[1] is not None:
        values[1] = Stamp(*values[1])
    return _PLACES[kind][0](*values)
