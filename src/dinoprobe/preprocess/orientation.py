"""Turns an image upright by its EXIF or XMP orientation.

Reads the one tag itself: Pillow's parser reads all of them, and warns or fails on a tag that nobody
asked for. Follows PIL.ImageOps.exif_transpose, which a test compares with.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_TAG = 0x0112
_SHORT, _LONG = 3, 4
_MAX_ENTRIES = 512
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def orientation_of(info: dict[Any, Any]) -> int:
    """1 to 8, from what Pillow holds in `Image.info`; 1, upright, where nothing is said."""
    found = _from_exif(_exif(info))
    if found is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        match = _XMP.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def _exif(info: dict[Any, Any]) -> bytes:
    exif = info.get("exif")
    profile = info.get("Raw profile type exif")  # ImageMagick's way of EXIF in a PNG: hex lines
    if exif is None and isinstance(profile, str):
        try:
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            exif = None
    return bytes(exif) if isinstance(exif, bytes) else b""


def _from_exif(exif: bytes) -> int | None:
    """The orientation in a TIFF header with its first directory; None where it has none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for index in range(min(entries, _MAX_ENTRIES)):
            at = start + 2 + 12 * index
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == _TAG and kind in (_SHORT, _LONG):
                width = "H" if kind == _SHORT else "I"
                return int(struct.unpack_from(order + width, exif, at + 8)[0])
    except struct.error:
        return None
    return None


def swaps_sides(orientation: int) -> bool:
    """Whether turning upright makes height of width."""
    return orientation >= 5


def upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """`(height, width, 3)` turned upright, contiguous."""
    import numpy as np

    if orientation == 1:
        return pixels
    if swaps_sides(orientation):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
