"""Photo-like JPEGs from a seed: clouds of all scales, shapes with edges, and the noise of a sensor.

The mean picture has 500 x 375 pixels at quality 90 and about 77 kB; a share has 4000 x 3000 and
3.3 MB, as cameras make them. What a decoder and a resize cost depends on size and on how much
detail there is, and on nothing else.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

SMALL = (500, 375)
LARGE = (4000, 3000)
_QUALITY = 90
_SHAPES = 12
_NOISE, _NOISE_OF_LARGE = 12.5, 8.5  # such that files are as large as photographs are


def write_photos(folder: Path, count: int, *, large_share: float = 0.0, seed: int = 0) -> list[str]:
    """`count` files, the large ones first among equals spread over the list; their paths."""
    rng = np.random.default_rng(seed)
    large = round(count * large_share)
    sizes = [LARGE if number < large else _varied(rng) for number in range(count)]
    order = rng.permutation(count)
    paths = []
    for number, index in enumerate(order.tolist()):
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(photo(rng, sizes[index]))
        paths.append(str(path))
    return paths


def photos(seed: int) -> Iterator[bytes]:
    """Endless JPEGs of about the mean size, from a seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield photo(rng, _varied(rng))


def _varied(rng: np.random.Generator) -> tuple[int, int]:
    """Around SMALL, in both orientations."""
    scale = float(rng.uniform(0.8, 1.2))
    width, height = (round(side * scale) for side in SMALL)
    return (width, height) if rng.random() < 0.7 else (height, width)


def photo(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """One JPEG of `size` (width, height)."""
    width, height = size
    pixels = _clouds(rng, height, width)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for _ in range(_SHAPES):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.3, 2) * min(size)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        kind = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        kind([x, y, x + w, y + h], fill=colour)
    noisy = np.array(picture, dtype=np.float32)
    noise = _NOISE_OF_LARGE if size == LARGE else _NOISE
    noisy += noise * rng.standard_normal(noisy.shape, dtype=np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _clouds(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Sums of enlarged noise, each octave half as strong as the one before."""
    total = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(6):
        cells = 3 * 2**octave
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float32) / 2**octave
    low, high = total.min(), total.max()
    clouds: npt.NDArray[np.uint8] = ((total - low) / (high - low) * 255).astype(np.uint8)
    return clouds
