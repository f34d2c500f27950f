"""To 8-bit RGB by a stated rule for each kind of pixel; never clipped.

`convert("RGB")` alone makes a 16-bit image white: a full ramp becomes 255 in 99.6 % of its pixels.

| found | rule |
|---|---|
| 1 bit, bool | 0 and 255 |
| 8 bit | as it is |
| 16 bit unsigned | divided by 257, rounded: by type and never by content, so that images of one set stay comparable. 12 bits in 16 come out dark, and are not lost |
| other integers (I) | as they are within 0 to 255; divided by 257 within 0 to 65535; else from the least to the greatest value |
| floats in a file (F) | times 255 within 0 to 1; else as for other integers |
| NaN, infinity | refused |
| alpha, palette transparency, tRNS | laid on white, transparency of 16-bit grey excepted: ignored |
| CMYK, YCCK, YCbCr, HSV, LAB | as Pillow converts them |
| 16-bit RGB in a PNG or TIFF | Pillow keeps the upper 8 bits |
"""  # noqa: E501

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

_STRIP_PIXELS = 4_000_000
_LEAST_RANGE = 1e-30  # so that a constant image becomes 0 without a division by zero


def to_rgb8(image: Image.Image) -> npt.NDArray[np.uint8]:
    """`(height, width, 3)` of a Pillow image in any mode, writable."""
    import numpy as np

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return grey_to_rgb(scale_to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        return _rgb_array(_onto_white(image))
    if image.mode in ("1", "L"):
        return grey_to_rgb(np.asarray(image.convert("L")))
    return _rgb_array(image if image.mode == "RGB" else image.convert("RGB"))


def _rgb_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A copy in strips: Pillow exports an image as bytes first, twice the memory in one go."""
    import numpy as np

    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        pixels[:] = np.asarray(image)
        return pixels
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _onto_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    with_alpha = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha.convert("RGB"), mask=with_alpha.getchannel("A"))
    return white


def grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`(height, width)` -> `(height, width, 3)`, each channel the same."""
    import numpy as np

    return np.repeat(grey[:, :, None], 3, axis=2)


def scale_to_uint8(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """8-bit values by the table above, whatever the shape. Raises ImageError for NaN, infinity."""
    import numpy as np

    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _by_257(values)
    if values.dtype.kind not in "uif":
        raise ImageError(
            f"pixels of type {values.dtype}; expected integers or floats. Save the image as 8 bit.",
            "unsupported-format",
        )
    return _by_range(values)


def _by_257(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    import numpy as np

    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _by_range(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(
            "pixels that are NaN or infinite; expected finite values. "
            "Replace them, for example by the value of the background.",
            "values",
        )
    if low < 0 or high > 65535:
        levels = (values.astype(np.float64) - low) * 255 / max(high - low, _LEAST_RANGE)
    elif high > 255:
        levels = values / np.float64(257)
    elif high <= 1 and values.dtype.kind == "f":
        levels = values * np.float64(255)
    else:
        levels = values.astype(np.float64)
    return np.rint(levels).astype(np.uint8)


def from_array(
    array: npt.NDArray[Any], bands: tuple[int, ...] | None = None
) -> npt.NDArray[np.uint8]:
    """`(height, width, 3)` uint8 of a caller's pixels.

    `(height, width)` or `(height, width, 1 | 3 | 4)`, four as RGBA, or with `bands` any number.
    bool, uint8, uint16, or floats within 0 to 1. Raises ImageError for everything else.
    """
    import numpy as np

    _check_array(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4 and bands is None:
        return _rgba_array(scale_to_uint8(array))
    picked = scale_to_uint8(pick_bands(array, bands))
    rgb = grey_to_rgb(picked[:, :, 0]) if picked.shape[2] == 1 else picked
    return np.array(rgb, order="C")


def _check_array(array: npt.NDArray[Any]) -> None:
    import numpy as np

    wanted = "expected (height, width) or (height, width, bands)"
    if array.ndim not in (2, 3):
        raise ImageError(f"an array of shape {array.shape}; {wanted}. Pass one image.", "broken")
    if array.size == 0:
        raise ImageError(f"an empty array of shape {array.shape}; {wanted}. Leave it out.", "empty")
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"an array of shape {array.shape}; {wanted}. Move the channels to the end with "
            "numpy.moveaxis(array, 0, -1).",
            "bands",
        )
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind not in "bf" and not (kind == "u" and width <= 2):
        raise ImageError(
            f"an array of type {array.dtype}; expected bool, uint8, uint16, or floats within 0 "
            "to 1. Convert it with astype.",
            "values",
        )
    if kind == "f" and not (np.min(array) >= 0 and np.max(array) <= 1):
        raise ImageError(
            f"an array of floats from {np.min(array):g} to {np.max(array):g}; expected 0 to 1. "
            "Divide by the greatest value that they can take, such as 255.",
            "values",
        )


def _rgba_array(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    return _rgb_array(_onto_white(Image.fromarray(np.ascontiguousarray(pixels), "RGBA")))


def pick_bands(values: npt.NDArray[Any], bands: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """`(height, width, 1 | 3)` of `(height, width, count)`; 1 and 3 bands stay as they are.

    Raises ImageError where others come without `bands`, or with bands that it has not.
    """
    count = values.shape[2]
    if count in (1, 3):
        return values
    if bands is None or max(bands) > count:
        asked = (
            "" if bands is None else f" and the bands {','.join(map(str, bands))} were asked for"
        )
        raise ImageError(
            f"an image with {count} bands{asked}; expected three numbers from 1 to {count}. "
            "Name the bands for red, green and blue, for example with --bands 3,2,1.",
            "bands",
        )
    return values[:, :, [band - 1 for band in bands]]
