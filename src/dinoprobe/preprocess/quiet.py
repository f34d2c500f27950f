"""Keeps Pillow's plug-ins and libtiff from talking on their own while an image is decoded.

`warnings.catch_warnings` swaps the filters of the whole process, and two threads that overlap in it
leave the wrong ones behind. So one narrow filter, for Pillow's modules only, is put in front when
the first decode begins and taken out when the last one ends; no other filter is touched.
Redirecting file descriptor 2 around libtiff would swallow what other threads write, so its error
handler is switched off instead: Pillow reports the failure as an exception in any case.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator


_PILLOW = r"(?#dinoprobe)PIL\."  # the comment tells it from an equal filter of a user's


@final
class _Filter:
    """Counts the decodes that run, so that the last one takes the filter out."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0

    def enter(self) -> None:
        with self.lock:
            self.running += 1
            # An equal filter is moved to the front, never doubled.
            warnings.filterwarnings("ignore", module=_PILLOW)

    def leave(self) -> None:
        with self.lock:
            self.running -= 1
            ours = [entry for entry in warnings.filters if _is_ours(entry)]
            if ours and not self.running:
                warnings.filters.remove(ours[0])  # type: ignore[attr-defined]


def _is_ours(entry: tuple[object, ...]) -> bool:
    return entry[0] == "ignore" and getattr(entry[3], "pattern", None) == _PILLOW


_filter = _Filter()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warning of Pillow's leaves this block. Nests, and may run in many threads at once."""
    _filter.enter()
    try:
        yield
    finally:
        _filter.leave()


def quiet_logger(name: str) -> None:
    """Keeps records of a library off stderr, where Python prints them if nobody handles them."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


@functools.cache
def quiet_libtiff() -> bool:
    """Switches off the error handler of the libtiff that Pillow carries, once in a process.

    False where that library can not be reached, as on Windows, where it is linked statically: then
    a broken TIFF still fails, and libtiff also prints why.
    """
    import PIL

    package = Path(PIL.__file__).parent
    carried = [*package.parent.glob("pillow.libs/libtiff-*"), *package.glob(".dylibs/libtiff*")]
    for library in [*map(str, carried), "libtiff.so.6"]:
        try:
            ctypes.CDLL(library).TIFFSetErrorHandler(None)
        except (OSError, AttributeError):
            continue
        return True
    return False
