"""Opens one image: the only place where a decoder runs.

Size is checked from the header before memory is taken, and whatever a decoder raises (Pillow has
twelve types) becomes one ImageError. About 1,350 images/s on one core for 500x375 JPEGs.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe.errors import ImageError
from dinoprobe.preprocess.colour import from_array, to_rgb8
from dinoprobe.preprocess.formats import ALLOWED, image_format, looks_like
from dinoprobe.preprocess.jpeg import decode_jpeg
from dinoprobe.preprocess.orientation import orientation_of, swaps_sides, upright
from dinoprobe.preprocess.quiet import quiet_libtiff, quiet_logger, quiet_pillow
from dinoprobe.preprocess.tiff import needs_bands, read_tiff

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    from PIL import ImageFile

MAX_PIXELS = 200_000_000
# A dataset may hold scans and satellite tiles; a server passes less. Pillow takes 4 bytes a pixel.

_TRUNCATED = (
    "truncated", "premature", "unexpected end", "not enough", "eof", "incomplete", "short",
    "requires a buffer",  # struct.error
)  # fmt: skip
_UNSUPPORTED = ("unsupported", "not implemented", "not supported", "unknown", "requires the")


class Decoded(NamedTuple):
    """`pixels` is `(height, width, 3)` uint8 RGB, upright and writable; of an animation or a
    document with pages it is the first, and `more_frames` says so.
    """

    pixels: npt.NDArray[np.uint8]
    more_frames: bool


def decode(
    image: bytes | npt.NDArray[np.generic],
    *,
    bands: tuple[int, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
    shrink: Callable[[int, int], int] | None = None,
) -> Decoded:
    """8-bit RGB pixels of an encoded file or of an array. Raises ImageError, and nothing else.

    `shrink` says for an upright (height, width) by what power of two, up to 8, a decoder may
    divide the sides while it decodes; JPEG only.
    """
    import numpy as np

    if isinstance(image, np.ndarray):
        return _guarded(lambda: _decode_array(image, bands, max_pixels), "array")
    kind = _known_format(image)
    return _guarded(lambda: _decode_file(image, kind, bands, max_pixels, shrink), kind)


def has_more_frames(image: bytes) -> bool:
    """Whether a file is an animation or has pages, from its header. False where it can not be read.

    For a caller of `prepare`, which uses the first frame, to say so once.
    """
    kind = image_format(image)
    if kind in (None, "JPEG", "BMP"):
        return False
    try:
        with quiet_pillow():
            return _more_frames(open_file(image, str(kind)))
    except Exception:  # noqa: BLE001 - twelve types; `prepare` is who reports them
        return False


def _known_format(image: bytes) -> str:
    if not image:
        raise ImageError(
            "an empty file; expected an image. Copy it again, or remove it.",
            "empty",
        )
    kind = image_format(image)
    if kind is None:
        words, reason = looks_like(image)
        raise ImageError(
            f"{words}; expected one of {', '.join(ALLOWED)}. Convert it, or remove it.",
            reason,
        )
    return kind


def _guarded(read: Callable[[], Decoded], kind: str) -> Decoded:
    """Runs a decoder and maps whatever it raises."""
    try:
        with quiet_pillow():
            return read()
    except ImageError:
        raise
    except Exception as error:
        reason = _reason(error)
        raise ImageError(
            f"not a readable {kind} ({_words(error)}); expected a complete, valid file. "
            "Replace it, or leave it: it is listed in the failures file.",
            reason,
        ) from error


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__


def _reason(error: Exception) -> str:
    """The word to count a decoder's exception under."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or type(error).__name__ == "DecompressionBombError":
        return "too-large"
    if isinstance(error, EOFError) or any(word in text for word in _TRUNCATED):
        return "truncated"
    if isinstance(error, NotImplementedError) or any(word in text for word in _UNSUPPORTED):
        return "unsupported-format"
    return "broken"


def _decode_array(
    array: npt.NDArray[np.generic], bands: tuple[int, ...] | None, max_pixels: int
) -> Decoded:
    if array.ndim > 1:
        _check_pixels(array.shape[1], array.shape[0], max_pixels)
    return Decoded(from_array(array, bands), more_frames=False)


def _decode_file(
    data: bytes,
    kind: str,
    bands: tuple[int, ...] | None,
    max_pixels: int,
    shrink: Callable[[int, int], int] | None,
) -> Decoded:
    if kind == "TIFF":
        return _decode_tiff(data, bands, max_pixels)
    image = open_file(data, kind)
    _check_pixels(image.width, image.height, max_pixels)
    turned = orientation_of(image.info)
    if kind == "JPEG":
        pixels = decode_jpeg(image, data, _scale(image, turned, shrink))  # type: ignore[arg-type]
    else:
        pixels = to_rgb8(image)
    return Decoded(upright(pixels, turned), _more_frames(image))


def _scale(
    image: ImageFile.ImageFile, turned: int, shrink: Callable[[int, int], int] | None
) -> int:
    if shrink is None:
        return 1
    sides = (image.width, image.height) if swaps_sides(turned) else (image.height, image.width)
    return shrink(*sides)


def _decode_tiff(data: bytes, bands: tuple[int, ...] | None, max_pixels: int) -> Decoded:
    """Pillow turns a TIFF upright by itself, others it leaves to us."""
    quiet_libtiff()
    quiet_logger("PIL")
    try:
        image = open_file(data, "TIFF")
    except Exception as error:  # noqa: BLE001 - whatever Pillow does not open, tifffile may
        why = _words(error)
        pixels = read_tiff(data, bands=bands, max_pixels=max_pixels, why=why)
        return Decoded(pixels, more_frames=False)
    _check_pixels(image.width, image.height, max_pixels)
    if needs_bands(image):
        why = "more bands than three"
        pixels = read_tiff(data, bands=bands, max_pixels=max_pixels, why=why)
    else:
        pixels = to_rgb8(image)
    return Decoded(pixels, _more_frames(image))


def open_file(data: bytes, kind: str) -> ImageFile.ImageFile:
    """A file of this format, by the plug-in itself and not by Image.open, which would try others,
    warn about large images and refuse them by a limit of the whole process.
    """
    image: ImageFile.ImageFile = _plugin(kind)(io.BytesIO(data))
    return image


def _plugin(kind: str) -> Any:
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    if kind == "HEIF":
        return _heif()
    plugins: dict[str, Any] = {
        "JPEG": JpegImagePlugin.JpegImageFile,  # MPO too: its first picture
        "PNG": PngImagePlugin.PngImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
    }
    return plugins[kind]


def _heif() -> Any:
    try:
        plugin = importlib.import_module("pillow_heif.as_plugin").HeifImageFile
    except ImportError as error:
        raise ImageError(
            "a HEIF (HEIC) image, which Pillow does not read; expected one of "
            f"{', '.join(ALLOWED[:-1])}. Install the extra 'heif' with: pip install "
            "'dinoprobe[heif]', or convert it to JPEG.",
            "unsupported-format",
        ) from error
    return plugin


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"an image of {width}x{height} pixels, {width * height / 1e6:.0f} MP; expected at most "
            f"{max_pixels / 1e6:g} MP. Make it smaller, or cut it into tiles.",
            "too-large",
        )


def _more_frames(image: ImageFile.ImageFile) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 - a broken second frame: there is one
        return True
