"""The scenes of the demo task: real handwritten digits on procedural clutter.

The digits are the 1,797 images, 8 x 8, of `sklearn.datasets.load_digits` (UCI optdigits.tes, 13
writers in file order, writer ids not given). A scene pastes one digit at a random place, scale,
rotation and colour on a background of colour noise, bars, arcs and blobs, so a linear model on the
raw pixels is near chance while the digit stays readable. One scene of 64 px takes about 0.5 ms
on two cores; the same seed gives the same scenes.

torch and scikit-learn are imported inside the functions, so importing this module costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator, Tensor

TRAIN_DIGITS = 1200
SCENE_SIZE_PX = 64
_CHUNK = 200  # scenes rendered at a time: about 60 MB of intermediate values at 64 px
_BARS, _ARCS, _BLOBS = 4, 2, 3


@dataclass(frozen=True)
class Pose:
    """Where a digit may lie: side lengths as a fraction of the scene, rotation in degrees."""

    scale_min: float = 0.66
    scale_max: float = 0.90
    rotation_deg: float = 10.0
    shear: float = 0.10


def digit_parts() -> tuple[
    NDArray[np.float32], NDArray[np.str_], NDArray[np.float32], NDArray[np.str_]
]:
    """Return (train_images, train_labels, test_images, test_labels): 1,200 and 597 digits.

    Images are `(n, 8, 8)` in [0, 1], labels "0" to "9". The cut is by position in the file, which
    lists the digits writer after writer: the first two thirds train, the last third tests. Writer
    ids are not published, so the one writer at the cut may have digits on both sides.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)
    labels = digits.target.astype("U1")
    cut = TRAIN_DIGITS
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


def render_scenes(
    digits: NDArray[np.float32],
    seed: int,
    size_px: int = SCENE_SIZE_PX,
    pose: Pose | None = None,
) -> NDArray[np.uint8]:
    """Return one scene per digit, `(n, size_px, size_px, 3)`, from digits `(n, h, w)` in [0, 1]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    out = np.empty((len(digits), size_px, size_px, 3), np.uint8)
    for start in range(0, len(digits), _CHUNK):
        glyphs = torch.from_numpy(np.ascontiguousarray(digits[start : start + _CHUNK]))
        background = render_background(len(glyphs), size_px, generator)
        scenes, _ = paste(glyphs.float(), background, generator, pose or Pose())
        pixels = (scenes * 255).round().clamp(0, 255).to(torch.uint8)
        out[start : start + _CHUNK] = pixels.permute(0, 2, 3, 1).numpy()
    return out


def render_background(n: int, size_px: int, generator: Generator) -> Tensor:
    """Return n cluttered backgrounds, `(n, 3, size_px, size_px)` in [0, 1]."""
    canvas = _colour_noise(n, size_px, generator)
    grid = _pixel_grid(size_px)
    for cover in _clutter(n, grid, generator):
        colour = _uniform(generator, (n, 3, 1, 1), 0, 1)
        canvas = lay_over(canvas, colour, cover)
    return canvas


def paste(
    glyphs: Tensor, background: Tensor, generator: Generator, pose: Pose
) -> tuple[Tensor, Tensor]:
    """Return (scenes, cover): glyphs `(n, h, w)` pasted on `(n, 3, s, s)`, both in [0, 1].

    `cover` is `(n, 1, s, s)`: how much of each pixel the glyph covers, before its opacity.
    """
    import torch

    n, _, size_px, _ = background.shape
    cover = _warp(glyphs, size_px, generator, pose)
    colour = _contrasting_colour(background, cover, generator)
    opacity = _uniform(generator, (n, 1, 1, 1), 0.8, 1.0)
    scenes = lay_over(background, colour, cover * opacity)
    sigma = _uniform(generator, (n, 1, 1, 1), 0.0, 0.05)
    noise = torch.randn(scenes.shape, generator=generator)
    return (scenes + sigma * noise).clamp(0, 1), cover


def lay_over(canvas: Tensor, colour: Tensor, cover: Tensor) -> Tensor:
    """Return canvas with colour laid over it where cover is 1."""
    return canvas + cover * (colour - canvas)


def _uniform(generator: Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    import torch

    return torch.rand(shape, generator=generator) * (high - low) + low


def _pixel_grid(size_px: int) -> tuple[Tensor, Tensor]:
    """Return y and x of the pixel centres, each `(size_px, size_px)` in [0, 1]."""
    import torch

    axis = (torch.arange(size_px, dtype=torch.float32) + 0.5) / size_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def _colour_noise(n: int, size_px: int, generator: Generator) -> Tensor:
    """Return smooth colour noise of three octaves, `(n, 3, size_px, size_px)` in [0, 1]."""
    import torch
    from torch.nn.functional import interpolate

    canvas = _uniform(generator, (n, 3, 1, 1), 0.1, 0.9).expand(n, 3, size_px, size_px)
    for cells, strength in ((2, 0.25), (5, 0.15), (13, 0.10)):
        amount = _uniform(generator, (n, 1, 1, 1), 0, strength)
        grid = torch.randn((n, 3, cells, cells), generator=generator)
        canvas = canvas + amount * interpolate(grid, size=(size_px, size_px), mode="bilinear")
    return canvas.clamp(0, 1)


def _clutter(n: int, grid: tuple[Tensor, Tensor], generator: Generator) -> list[Tensor]:
    """Return the covers `(n, 1, s, s)` of one layer of clutter after the other."""
    blobs = [_blob(n, grid, generator) for _ in range(_BLOBS)]
    bars = [_bar(n, grid, generator) for _ in range(_BARS)]
    arcs = [_arc(n, grid, generator) for _ in range(_ARCS)]
    return blobs + bars + arcs


def _edge(distance: Tensor, size_px: int) -> Tensor:
    """Return cover in [0, 1] from a signed distance (inside is negative), one pixel soft."""
    return (0.5 - distance * size_px).clamp(0, 1).unsqueeze(1)


def _centre(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    return _uniform(generator, (n, 1, 1), 0, 1), _uniform(generator, (n, 1, 1), 0, 1)


def _bar(n: int, grid: tuple[Tensor, Tensor], generator: Generator) -> Tensor:
    """Return the cover of a thin bar with round ends: distance to a segment."""
    import torch

    y, x = grid
    cy, cx = _centre(n, generator)
    angle = _uniform(generator, (n, 1, 1), 0, math.pi)
    half = _uniform(generator, (n, 1, 1), 0.05, 0.25)
    radius = _uniform(generator, (n, 1, 1), 0.01, 0.045)
    dy, dx = y - cy, x - cx
    along = dy * torch.sin(angle) + dx * torch.cos(angle)
    across = dx * torch.sin(angle) - dy * torch.cos(angle)
    beyond = (along.abs() - half).clamp(min=0)
    return _edge(torch.sqrt(across**2 + beyond**2) - radius, len(y))


def _arc(n: int, grid: tuple[Tensor, Tensor], generator: Generator) -> Tensor:
    """Return the cover of half a ring: a stroke like a digit's own."""
    import torch

    y, x = grid
    cy, cx = _centre(n, generator)
    angle = _uniform(generator, (n, 1, 1), 0, 2 * math.pi)
    ring = _uniform(generator, (n, 1, 1), 0.06, 0.2)
    radius = _uniform(generator, (n, 1, 1), 0.015, 0.04)
    dy, dx = y - cy, x - cx
    distance = (torch.sqrt(dy**2 + dx**2) - ring).abs() - radius
    side = dy * torch.sin(angle) + dx * torch.cos(angle)
    return _edge(torch.maximum(distance, side), len(y))


def _blob(n: int, grid: tuple[Tensor, Tensor], generator: Generator) -> Tensor:
    """Return the cover of a turned ellipse, or of a box for half of the scenes."""
    import torch

    y, x = grid
    cy, cx = _centre(n, generator)
    angle = _uniform(generator, (n, 1, 1), 0, math.pi)
    height = _uniform(generator, (n, 1, 1), 0.06, 0.3)
    width = _uniform(generator, (n, 1, 1), 0.06, 0.3)
    dy, dx = y - cy, x - cx
    u = (dy * torch.sin(angle) + dx * torch.cos(angle)) / width
    v = (dx * torch.sin(angle) - dy * torch.cos(angle)) / height
    boxes = torch.rand((n, 1, 1), generator=generator) < 0.5
    norm = torch.where(boxes, torch.maximum(u.abs(), v.abs()), torch.sqrt(u**2 + v**2))
    cover = _edge((norm - 1) * torch.minimum(height, width), len(y))
    return cover * _uniform(generator, (n, 1, 1, 1), 0.3, 1.0)


def _warp(glyphs: Tensor, size_px: int, generator: Generator, pose: Pose) -> Tensor:
    """Return the cover `(n, 1, s, s)` of glyphs `(n, h, w)` at random place, scale and rotation."""
    from torch.nn.functional import affine_grid, grid_sample, interpolate

    fine = interpolate(glyphs.unsqueeze(1), size=(32, 32), mode="bicubic")
    theta = _affine(len(glyphs), generator, pose)
    grid = affine_grid(theta, [len(glyphs), 1, size_px, size_px], align_corners=False)
    value = grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return ((value - 0.36) * 4.0).clamp(0, 1)


def _affine(n: int, generator: Generator, pose: Pose) -> Tensor:
    """Return `(n, 2, 3)` maps from scene to glyph coordinates, both in [-1, 1]."""
    import torch

    scale = _uniform(generator, (n,), pose.scale_min, pose.scale_max)
    angle = _uniform(generator, (n,), -1, 1) * math.radians(pose.rotation_deg)
    shear = _uniform(generator, (n,), -1, 1) * pose.shear
    aspect = _uniform(generator, (n,), -0.12, 0.12).exp()
    room = (1 - scale * 0.9).clamp(min=0)
    shift_x = _uniform(generator, (n,), -1, 1) * room
    shift_y = _uniform(generator, (n,), -1, 1) * room
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows_x = torch.stack([cos, sin + shear], 1) / (scale * aspect).unsqueeze(1)
    rows_y = torch.stack([-sin, cos], 1) / (scale / aspect).unsqueeze(1)
    linear = torch.stack([rows_x, rows_y], 1)
    shift = -(linear @ torch.stack([shift_x, shift_y], 1).unsqueeze(2))
    return torch.cat([linear, shift], 2)


def _contrasting_colour(background: Tensor, cover: Tensor, generator: Generator) -> Tensor:
    """Return a colour `(n, 3, 1, 1)` 0.38 to 0.62 lighter or darker than what it covers."""
    import torch

    weights = background.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    area = cover.sum((2, 3), keepdim=True).clamp(min=1e-6)
    under = ((background * weights).sum(1, keepdim=True) * cover).sum((2, 3), keepdim=True) / area
    step = _uniform(generator, under.shape, 0.38, 0.62)
    flip = torch.rand(under.shape, generator=generator) * 0.5 + 0.5
    goal = torch.where(under > flip, under - step, under + step).clamp(0, 1)
    tint = _uniform(generator, (len(background), 3, 1, 1), -0.35, 0.35)
    tint = tint - (tint * weights).sum(1, keepdim=True)
    return (goal + tint).clamp(0, 1)
