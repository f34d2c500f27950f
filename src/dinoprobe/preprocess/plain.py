"""`prepare` without torch: Pillow resizes, for a server that runs an exported file.

In 8 bits it is within 1 grey level of `prepare` where an image is made smaller, and mostly within 2
where it is enlarged, for Pillow's weights have more digits; in the exact mode within 0.01 levels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dinoprobe.preprocess.decode import MAX_PIXELS, decode
from dinoprobe.preprocess.resize import bounded, check_enlarged, mean_colour, resized, shrink_factor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dinoprobe.preprocess.contract import Preprocessing


def prepare_plain(
    image: bytes | npt.NDArray[np.generic],
    preprocessing: Preprocessing,
    *,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[Any]:
    """`(3, height, width)`: uint8, or float32 in the exact mode. Raises ImageError."""
    import numpy as np

    shrink = partial(shrink_factor, preprocessing=preprocessing)
    decoded = decode(image, bands=preprocessing.bands, max_pixels=max_pixels, shrink=shrink)
    pixels = decoded.pixels
    if preprocessing.resize == "crop":
        pixels = bounded(pixels, preprocessing)
    size = resized(pixels.shape[0], pixels.shape[1], preprocessing)
    check_enlarged(pixels.shape[:2], size)
    whole = np.stack([_resample(pixels[:, :, band], size, preprocessing) for band in range(3)])
    return np.ascontiguousarray(_framed(whole, preprocessing))


def _resample(
    channel: npt.NDArray[np.uint8], size: tuple[int, int], preprocessing: Preprocessing
) -> npt.NDArray[Any]:
    import numpy as np
    from PIL import Image

    how = Image.Resampling[preprocessing.interpolation.upper()]
    if preprocessing.arithmetic == "exact":
        scaled = channel.astype(np.float32) * np.float32(preprocessing.rescale)
        return np.asarray(Image.fromarray(scaled).resize(size[::-1], how))
    return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], how))


def _framed(whole: npt.NDArray[Any], preprocessing: Preprocessing) -> npt.NDArray[Any]:
    """The centre of what covers the size, or what is smaller with the mean colour around it."""
    import numpy as np

    (height, width), (new_height, new_width) = preprocessing.size, whole.shape[1:]
    if preprocessing.resize != "pad":
        top, left = (new_height - height) // 2, (new_width - width) // 2
        return whole[:, top : top + height, left : left + width]
    colour = np.array(mean_colour(preprocessing), dtype=whole.dtype)
    padded = np.broadcast_to(colour[:, None, None], (3, height, width)).copy()
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded[:, top : top + new_height, left : left + new_width] = whole
    return padded
