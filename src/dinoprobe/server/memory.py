"""Gives freed memory back to the system.

glibc keeps what decoders freed for the next one. After hostile uploads of many sizes that was 93 of
777 MB, held for ever by a service that nobody asks any more.
"""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return what the C library holds free, where it can do so; a few ms, without the GIL."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    trim(0)
