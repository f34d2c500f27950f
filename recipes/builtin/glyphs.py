"""Training instances of the built-in encoder: small grey bitmaps, and their random distortion.

Three sources, all made without labels: the 1,200 digits of the training writers, the letters of
Pillow's built-in font, and glyphs drawn from random strokes. A distortion (turn, stretch, elastic
warp, stroke thickness) makes many instances of each, as different hands would write it.
"""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE_PX = 32


def enlarge(digits: NDArray[np.float32]) -> Tensor:
    """Return digits `(n, 8, 8)` as `(n, 32, 32)` in [0, 1]."""
    fine = interpolate(torch.from_numpy(digits).unsqueeze(1), size=SIDE_PX, mode="bicubic")
    return fine.squeeze(1).clamp(0, 1)


def letters() -> Tensor:
    """Return the 52 ASCII letters of Pillow's built-in font, `(52, 32, 32)`, digit-like soft."""
    return torch.stack([_letter(letter) for letter in string.ascii_letters])


def _letter(letter: str) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=34)
    image = Image.new("L", (SIDE_PX, SIDE_PX))
    box = ImageDraw.Draw(image).textbbox((0, 0), letter, font=font)
    offset = (16 - (box[0] + box[2]) / 2, 16 - (box[1] + box[3]) / 2)
    ImageDraw.Draw(image).text(offset, letter, fill=255, font=font, stroke_width=0.7)
    return _soften(torch.from_numpy(np.asarray(image, np.float32) / 255))


def scribbles(n: int, seed: int) -> Tensor:
    """Return n glyphs of random curved strokes, `(n, 32, 32)`."""
    rng = np.random.default_rng(seed)
    return torch.stack([_scribble(rng) for _ in range(n)])


def _scribble(rng: np.random.Generator) -> Tensor:
    from PIL import Image, ImageDraw

    image = Image.new("L", (SIDE_PX * 4, SIDE_PX * 4))
    draw = ImageDraw.Draw(image)
    points = rng.uniform(24, 104, (rng.integers(4, 7), 2))
    for t in np.linspace(0, 1, 160):
        x, y = _bezier(points, float(t))
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=255)
    small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return _soften(torch.from_numpy(np.asarray(small, np.float32) / 255))


def _bezier(points: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """Return the point at t on the Bezier curve of points `(k, 2)` (de Casteljau)."""
    while len(points) > 1:
        points = points[:-1] * (1 - t) + points[1:] * t
    return np.asarray(points[0])


def _soften(glyph: Tensor) -> Tensor:
    """Return a glyph with the softness of an enlarged 8 x 8 digit."""
    coarse = avg_pool2d(glyph[None, None], 4)
    return interpolate(coarse, size=SIDE_PX, mode="bicubic")[0, 0].clamp(0, 1)


def distort(glyphs: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """Return glyphs `(n, 32, 32)` after a random affine and elastic warp and stroke thickness."""
    n = len(glyphs)
    grid = affine_grid(
        _affine(n, generator, strength), [n, 1, SIDE_PX, SIDE_PX], align_corners=False
    )
    field = torch.randn((n, 2, 4, 4), generator=generator) * (0.09 * strength)
    bend = interpolate(field, size=SIDE_PX, mode="bicubic").permute(0, 2, 3, 1)
    warped = grid_sample(glyphs.unsqueeze(1), grid + bend, align_corners=False)
    return _thickness(warped, generator, strength).squeeze(1)


def _affine(n: int, generator: Generator, strength: float) -> Tensor:
    def spread(amount: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * (amount * strength)

    angle = spread(math.radians(12))
    width, height = spread(0.2).exp(), spread(0.15).exp()
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([cos * width, (sin + spread(0.25)) * width, spread(0.12)], 1)
    row_y = torch.stack([-sin * height, cos * height, spread(0.12)], 1)
    return torch.stack([row_x, row_y], 1)


def _thickness(glyphs: Tensor, generator: Generator, strength: float) -> Tensor:
    """Return glyphs `(n, 1, 32, 32)` with strokes made up to one pixel thinner or thicker."""
    blurred = avg_pool2d(glyphs, 5, stride=1, padding=2)
    amount = torch.rand((len(glyphs), 1, 1, 1), generator=generator) * 2 - 1
    thicker = torch.maximum(glyphs, (blurred * 1.4).clamp(0, 1))
    thinner = glyphs * (blurred * 1.6).clamp(0, 1)
    target = torch.where(amount > 0, thicker, thinner)
    return glyphs + (amount.abs() * strength).clamp(0, 1) * (target - glyphs)
