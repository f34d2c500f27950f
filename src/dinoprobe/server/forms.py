"""The files of a multipart form, in memory: its size was bounded before.

Starlette's own parser keeps a temporary file for each part, and leaves them open where a form is
cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dinoprobe.server.problems import ProblemError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS = 1000


def files_of_form(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Name and content of each file, in their order; other fields are left out.

    Raises ProblemError for what is no whole form.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _unreadable("no boundary in its type")
    reading = _Reading()
    callbacks: MultipartCallbacks = {
        "on_part_begin": reading.begin,
        "on_header_field": reading.field,
        "on_header_value": reading.value,
        "on_header_end": reading.header,
        "on_part_data": reading.data,
        "on_part_end": reading.end,
        "on_end": reading.finish,
    }
    try:
        MultipartParser(boundary, callbacks).write(body)
    except FormParserError as error:
        raise _unreadable(str(error)[:200]) from error
    if not reading.is_whole:
        raise _unreadable("cut off")
    return reading.files


@final
class _Reading:
    """What the parser has found."""

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []
        self.is_whole = False
        self._parts = 0

    def begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _unreadable(f"more than {_MAX_PARTS:,} parts")
        self._name: str | None = None
        self._field, self._value, self._data = bytearray(), bytearray(), bytearray()

    def field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header(self) -> None:
        if self._field.lower() == b"content-disposition":
            name = parse_options_header(bytes(self._value))[1].get(b"filename")
            self._name = None if name is None else name.decode("utf-8", "replace")
        self._field.clear()
        self._value.clear()

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._data += data[start:end]

    def end(self) -> None:
        if self._name is not None:
            self.files.append((self._name, bytes(self._data)))

    def finish(self) -> None:
        self.is_whole = True


def _unreadable(found: str) -> ProblemError:
    message = f"a form that can not be read ({found}); expected one with files. Send it again."
    return ProblemError(422, "form", message)
