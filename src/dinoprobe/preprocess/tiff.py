"""TIFF files that Pillow can not open, or whose bands have to be chosen: read by tifffile.

tifffile is optional (extra `geo`), since photographs never need it. Only the first page is read.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ImageError
from dinoprobe.preprocess.colour import grey_to_rgb, pick_bands, scale_to_uint8
from dinoprobe.preprocess.orientation import upright
from dinoprobe.preprocess.quiet import quiet_logger

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

_SAMPLES_PER_PIXEL, _PHOTOMETRIC, _EXTRA_SAMPLES, _ORIENTATION = 277, 262, 338, 274
_CMYK = 5
_BYTES_PER_PIXEL = 32  # 16 bands of 16 bits


def needs_bands(image: Image.Image) -> bool:
    """Whether an open TIFF holds more bands than colour and alpha explain.

    Pillow shows the first three of them without a word.
    """
    tags: Any = getattr(image, "tag_v2", {})
    count = tags.get(_SAMPLES_PER_PIXEL, 1)
    if count <= 3 or (count == 4 and tags.get(_PHOTOMETRIC) == _CMYK):
        return False
    extra = tags.get(_EXTRA_SAMPLES, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    return not (count == 4 and any(kind in (1, 2) for kind in extra))


def read_tiff(
    data: bytes, *, bands: tuple[int, ...] | None, max_pixels: int, why: str
) -> npt.NDArray[np.uint8]:
    """`(height, width, 3)`, upright. `why` says what Pillow could not do.

    Raises ImageError, and whatever tifffile raises for a broken file.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ImageError(
            f"a TIFF that Pillow does not read ({why}); expected 8-bit colour, or one band of up "
            "to 32 bits. For others install the extra 'geo': pip install 'dinoprobe[geo]'",
            "unsupported-format",
        ) from error
    quiet_logger("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        _check_page(page, max_pixels)
        values = _bands_last(page.asarray(maxworkers=1), page.axes)
        turned = page.tags.get(_ORIENTATION)
        orientation = int(turned.value) if turned is not None else 1
    picked = scale_to_uint8(pick_bands(values, bands))
    rgb = grey_to_rgb(picked[:, :, 0]) if picked.shape[2] == 1 else picked
    return upright(_contiguous(rgb), orientation if 1 <= orientation <= 8 else 1)


def _check_page(page: Any, max_pixels: int) -> None:
    pixels = page.imagelength * page.imagewidth
    if pixels > max_pixels or page.nbytes > max_pixels * _BYTES_PER_PIXEL:
        raise ImageError(
            f"a TIFF of {page.imagewidth}x{page.imagelength} pixels and {page.nbytes} bytes; "
            f"expected at most {max_pixels} pixels of {_BYTES_PER_PIXEL} bytes. Cut it into tiles.",
            "too-large",
        )


def _bands_last(values: npt.NDArray[Any], axes: str) -> npt.NDArray[Any]:
    import numpy as np

    if axes == "YX":
        return values[:, :, None]
    if axes == "SYX":
        return np.moveaxis(values, 0, -1)
    if axes == "YXS":
        return values
    raise ImageError(
        f"a TIFF page with axes {axes}; expected one plane of pixels. Save it as a flat image.",
        "unsupported-format",
    )


def _contiguous(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.array(pixels, order="C")
