"""Random resized crop and horizontal flip, for heads that train on augmented images.

The box is drawn as torchvision's RandomResizedCrop draws it, from a NumPy generator, so that a seed
gives the same crops in any order of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinoprobe.errors import ConfigurationError
from dinoprobe.preprocess.resize import allowed_shrink, fit, resample, shrink_factor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.preprocess.contract import Preprocessing

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`scale` is the crop's share of the area, `ratio` its width over its height, both from least
    to greatest; a scale of (1, 1) takes the whole image as without augmentation. `flip` is the
    probability of a horizontal flip. Raises ConfigurationError.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    @property
    def crops(self) -> bool:
        """Whether it draws a part of the image."""
        return self.scale[0] < 1

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigurationError(
                f"scale is {self.scale}; expected two shares of the area, 0 < least <= greatest "
                "<= 1. (0.35, 1.0) is the default."
            )
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigurationError(
                f"ratio is {self.ratio}; expected width over height, 0 < least <= greatest. "
                "(3/4, 4/3) is the default."
            )
        if not 0 <= self.flip <= 1:
            raise ConfigurationError(
                f"flip is {self.flip}; expected a probability from 0 to 1. 0 never flips."
            )


def augmented(
    pixels: npt.NDArray[np.uint8],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> torch.Tensor:
    """`(3, *size)`: a random part of the image, squashed to the size, perhaps mirrored."""
    if augmentation.crops:
        top, left, height, width = draw_box(pixels.shape[0], pixels.shape[1], augmentation, rng)
        part = pixels[top : top + height, left : left + width]
        image = resample(part, preprocessing.size, preprocessing)
    else:
        image = fit(pixels, preprocessing)
    return image.flip(-1) if rng.random() < augmentation.flip else image


def draw_box(
    height: int, width: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width), as torchvision v2 RandomResizedCrop.make_params."""
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*augmentation.scale)
        ratio = math.exp(
            rng.uniform(math.log(augmentation.ratio[0]), math.log(augmentation.ratio[1]))
        )
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    return _central_box(height, width, augmentation.ratio)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The greatest box in the middle with a permitted ratio, where ten draws did not fit."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = max(1, min(width, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def augmented_shrink(
    height: int, width: int, preprocessing: Preprocessing, augmentation: Augmentation
) -> int:
    """What `shrink_factor` is for a whole image, for the smallest part that may be drawn."""
    if not augmentation.crops:
        return shrink_factor(height, width, preprocessing)
    area = height * width * augmentation.scale[0]
    least_height = min(height, width, math.sqrt(area / augmentation.ratio[1]))
    least_width = min(height, width, math.sqrt(area * augmentation.ratio[0]))
    return allowed_shrink((least_height, least_width), preprocessing.size, preprocessing)
