"""From a file's bytes, or an array, to what an encoder takes.

`prepare` is the one function that opens an image: training, prediction, the server and the store
all go through it, in any number of threads, since it keeps no state. torch is imported inside
functions only. Decoding and resizing a 500x375 JPEG takes 1 ms on one core, 2.2 times as fast as
Pillow with the processor's float arithmetic, which `arithmetic="exact"` repeats bit for bit.
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

from dinoprobe.catalog import IMAGENET_MEAN, IMAGENET_STD
from dinoprobe.errors import ConfigurationError, ImageError
from dinoprobe.preprocess.augment import Augmentation, augmented, augmented_shrink
from dinoprobe.preprocess.contract import Preprocessing
from dinoprobe.preprocess.decode import MAX_PIXELS, Decoded, decode, has_more_frames
from dinoprobe.preprocess.facts import THUMBNAIL_PX, ImageFacts, image_facts
from dinoprobe.preprocess.plain import prepare_plain
from dinoprobe.preprocess.resize import fit, shrink_factor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_PIXELS",
    "THUMBNAIL_PX",
    "Augmentation",
    "Decoded",
    "ImageFacts",
    "Preprocessing",
    "decode",
    "has_more_frames",
    "image_facts",
    "prepare",
    "prepare_plain",
    "thumbnail",
    "to_pixel_values",
]


def prepare(
    image: bytes | npt.NDArray[np.generic],
    preprocessing: Preprocessing,
    *,
    augment: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    max_pixels: int = MAX_PIXELS,
) -> torch.Tensor:
    """`(3, height, width)`: uint8, or float32 within about 0 to 1 in the exact mode.

    With `augment` a random part of the image, drawn from `rng`. Raises ImageError for an image that
    can not be used, and ConfigurationError for an augmentation without a generator.
    """
    if augment is None:
        shrink, resize = partial(shrink_factor, preprocessing=preprocessing), fit
    elif rng is None:
        raise ConfigurationError(
            "augment without rng; expected a generator, so that a run can be repeated. "
            "Pass rng=numpy.random.default_rng(seed)."
        )
    else:
        shrink = partial(augmented_shrink, preprocessing=preprocessing, augmentation=augment)
        resize = partial(augmented, augmentation=augment, rng=rng)
    decoded = decode(image, bands=preprocessing.bands, max_pixels=max_pixels, shrink=shrink)
    try:
        return resize(decoded.pixels, preprocessing)
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises RuntimeError
        raise _too_large(decoded.pixels.shape[:2], error) from error


def _too_large(size: tuple[int, ...], error: Exception) -> ImageError:
    return ImageError(
        f"an image of {size[1]}x{size[0]} pixels that can not be resized ({str(error)[:200]}); "
        "expected one that fits into memory. Make it smaller, or use fewer workers.",
        "too-large",
    )


def to_pixel_values(
    batch: torch.Tensor,
    preprocessing: Preprocessing,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """`(n, 3, height, width)` as `prepare` gives it, normalised: (x - mean) / std in float32, then
    `dtype`. In the exact mode the bits are the processor's.
    """
    import torch

    batch = batch.to(device, non_blocking=True)
    if batch.dtype == torch.uint8:
        batch = batch * preprocessing.rescale
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=device).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32, device=device).view(-1, 1, 1)
    return batch.sub(mean).div_(std).to(dtype)


def thumbnail(
    image: bytes | npt.NDArray[np.generic],
    size_px: int,
    *,
    bands: tuple[int, ...] | None = None,
) -> bytes:
    """A JPEG of at most `size_px` on its longest side, upright, without metadata.

    Raises ImageError, also for more than three bands without `bands`.
    """
    from PIL import Image

    def shrink(height: int, width: int) -> int:
        return next((scale for scale in (8, 4, 2) if max(height, width) >= 2 * scale * size_px), 1)

    picture = Image.fromarray(decode(image, bands=bands, shrink=shrink).pixels)
    picture.thumbnail((size_px, size_px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
