"""Whether two pictures are one, by their pixels: re-encoded, resized, brighter, mirrored or cut.

Both at 24 x 24 points, as they are and over small cuts and shifts; the best of these is moved while
that helps, for a cut may stand anywhere.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Float32s = npt.NDArray[np.float32]
    Box = tuple[int, int, int]

SAME_PICTURE = 0.985
"""Correlation of the pixels from which two files show one picture."""
FIRST_LOOK = 0.6
"""Correlation without any shift, below which shifts are not tried: they cost 37 times as much."""
SIDE_PX, LOOKED_AT_PX = 24, 96
CUTS = (0.98, 0.96, 0.93, 0.90)
WORTH_MOVING, MOVES_PX, SMALLEST_PART_PX = 0.93, (2, 1), 82
"""A cut stands anywhere: of copies cut by a tenth 32 and 38 % were found without that, 91 and
95 % with it."""
BLANK = 1e-2
"""Deviation of pixels within 0 to 1 under which a picture shows nothing."""

_WHOLE: Box = (0, 0, LOOKED_AT_PX)
_BOXES: tuple[Box, ...] = (
    _WHOLE,
    *(
        ((LOOKED_AT_PX - side) * down // 2, (LOOKED_AT_PX - side) * right // 2, side)
        for side in (round(LOOKED_AT_PX * cut) for cut in CUTS)
        for down, right in product(range(3), repeat=2)
    ),
)


def _moved(box: Box, step: int) -> list[Box]:
    """Parts of a picture that differ from this one by a step in place or size."""
    top, left, side = box
    near = [
        (top + down, left + right, side + more)
        for down, right, more in product((-step, 0, step), repeat=3)
        if (down, right, more) != (0, 0, 0)
    ]
    return [
        (y, x, size)
        for y, x, size in near
        if min(y, x) >= 0 and max(y, x) + size <= LOOKED_AT_PX and size >= SMALLEST_PART_PX
    ]


class Look:
    """One picture at `SIDE_PX` points a side: whole, and cut and shifted in 36 ways."""

    def __init__(self, pixels: torch.Tensor) -> None:
        from torch.nn.functional import interpolate

        size = (LOOKED_AT_PX, LOOKED_AT_PX)
        scaled = pixels.float() / (255 if not pixels.is_floating_point() else 1)
        self._pixels = interpolate(scaled[None], size=size, mode="bilinear", antialias=True)
        self.whole = self._view(*_WHOLE)
        self._cuts: Float32s | None = None

    @classmethod
    def at(cls, pixels: torch.Tensor | None) -> Look | None:
        """None where there is nothing to look at."""
        return None if pixels is None else cls(pixels)

    @property
    def cuts(self) -> Float32s:
        """All views `(37, points)`, made when they are asked for."""
        if self._cuts is None:
            self._cuts = np.stack([self._view(*box) for box in _BOXES])
        return self._cuts

    def likeness(self, points: Float32s) -> float:
        """The largest correlation of any part of this picture with the points of another one.

        The best view, and from `WORTH_MOVING` on its edges are moved as long as that helps.
        """
        values = self.cuts @ points
        best = int(values.argmax())
        box, value = _BOXES[best], float(values[best])
        for step in MOVES_PX if value >= WORTH_MOVING else ():
            moved = True
            while moved and value < SAME_PICTURE:
                tried = [(float(self._view(*near) @ points), near) for near in _moved(box, step)]
                top, near = max(tried)
                moved = top > value
                value, box = (top, near) if moved else (value, box)
        return value

    def _view(self, top: int, left: int, side: int) -> Float32s:
        """Points of length 1, each channel centred, so that a colour is none; zeros for a blank."""
        from torch.nn.functional import interpolate

        part = self._pixels[:, :, top : top + side, left : left + side]
        small = interpolate(part, size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        points = (small - small.mean(dim=(2, 3), keepdim=True)).flatten().numpy()
        length = float(np.linalg.norm(points))
        shown = length > BLANK * np.sqrt(points.size)
        return np.asarray(points / length if shown else np.zeros_like(points), dtype=np.float32)


def correlation(first: Look | None, second: Look | None, *, mirrored: bool = False) -> float:
    """The largest correlation of one picture with the other, whole or cut; or with its mirror."""
    if first is None or second is None:
        return 0.0
    a, b = first.whole, second.whole
    if mirrored:
        a, b = _mirror(a), _mirror(b)
    whole = float(first.whole @ b)
    if whole < FIRST_LOOK:
        return whole
    return max(second.likeness(a), first.likeness(b))


def _mirror(points: Float32s) -> Float32s:
    return np.ascontiguousarray(points.reshape(-1, SIDE_PX, SIDE_PX)[:, :, ::-1]).ravel()
