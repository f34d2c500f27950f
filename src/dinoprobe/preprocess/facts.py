"""What an image file is, beside its pixels: format, size, colours, and a thumbnail to compare.

For the data check, which looks at files that decode well and are odd all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.preprocess.decode import decode, open_file
from dinoprobe.preprocess.formats import image_format
from dinoprobe.preprocess.quiet import quiet_pillow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

THUMBNAIL_PX = 32
_LOOKED_AT = 128
"""Rows and columns of pixels that a deviation is taken from."""
_COLOURS = {
    "L": "grey", "1": "black and white", "LA": "transparent", "La": "transparent",
    "PA": "transparent", "RGBA": "transparent", "RGBa": "transparent",
    "CMYK": "CMYK", "YCCK": "CMYK", "I": "deep", "F": "deep",
}  # fmt: skip


class ImageFacts(NamedTuple):
    """One file: `format` is None for an array, `colours` one word.

    "colour", "grey", "black and white", "transparent", "CMYK" or "deep" (more than 8 bits); or
    "bands" for what Pillow does not open. `deviation` is the largest of its channels',
    within 0 to 255, over pixels here and there. `thumbnail` is `(32, 32, 3)` uint8, squashed.
    """

    format: str | None
    width: int
    height: int
    colours: str
    more_frames: bool
    deviation: float
    thumbnail: npt.NDArray[np.uint8]


def image_facts(
    image: bytes | npt.NDArray[np.generic], *, bands: tuple[int, ...] | None = None
) -> ImageFacts:
    """The facts of one image. Raises ImageError for one that can not be used."""
    import numpy as np
    from PIL import Image

    size = (0, 0)

    def shrink(height: int, width: int) -> int:
        nonlocal size
        size = (height, width)
        return next((s for s in (8, 4, 2) if min(size) >= 2 * s * THUMBNAIL_PX), 1)

    pixels, more_frames = decode(image, bands=bands, shrink=shrink)
    height, width = size if all(size) else pixels.shape[:2]
    small = Image.fromarray(pixels).resize((THUMBNAIL_PX,) * 2, Image.Resampling.BOX)
    kind = image_format(image) if isinstance(image, bytes) else None
    colours = _of_file(image, kind) if isinstance(image, bytes) and kind else _of_array(image)
    step = [max(1, length // _LOOKED_AT) for length in pixels.shape[:2]]
    deviation = float(pixels[:: step[0], :: step[1]].std(axis=(0, 1)).max())
    return ImageFacts(kind, width, height, colours, more_frames, deviation, np.asarray(small))


def _of_file(data: bytes, kind: str) -> str:
    try:
        with quiet_pillow():
            opened = open_file(data, kind)
            mode, transparent = opened.mode, "transparency" in opened.info
    except Exception:  # noqa: BLE001 - a TIFF that tifffile reads and Pillow does not
        return "bands"
    if mode.startswith("I;16"):
        return "deep"
    return "transparent" if transparent else _COLOURS.get(mode, "colour")


def _of_array(image: object) -> str:
    import numpy as np

    array = np.asarray(image)
    if array.dtype != np.uint8:
        return "deep"
    return "grey" if array.ndim == 2 or array.shape[2] == 1 else "colour"
