"""Pictures that may be the same, found by thumbnails alone: whole, mirrored, or cut by a tenth.

Features need not be near for a mirrored or a cut copy: with the built-in encoder 14 to 33 % of
copies cut by 10 % were among the nearest at a cosine of 0.85, and 2 to 29 % of mirrored ones. Here
each picture asks for itself, for its mirror and for four parts of nine tenths, as 8 x 8 points in
an exact search; what comes is compared at 16 x 16 points, moved a little. The last word, on pixels,
has `duplicates.same_pictures`.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.heads.nearest import nearest
from dinoprobe.likeness import BLANK

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Float32s = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.intp]
    Box = tuple[float, float, float]

ASKED_PX, COMPARED_PX = 8, 16
FOUND_COSINE, ALIKE_COSINE = 0.86, 0.95
"""Of copies cut by a tenth at 8 points 0.89 was the least; sound pictures of one scene reach it."""
CUT = 0.9
PLACES, STEPS = (0.25, 0.75), (-0.25, 0.0, 0.25)
WHOLE: Box = (1.0, 0.0, 0.0)
PAIR_ROWS = 512


def lookalikes(thumbnails: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of rows of `(n, side, side, 3)` that may show one picture, the smaller row first."""
    if len(thumbnails) < 2:
        return []
    planes = np.ascontiguousarray(thumbnails.transpose(0, 3, 1, 2))
    rows = _points(planes, WHOLE, ASKED_PX)
    found: set[tuple[int, int]] = set()
    for top, left in product(PLACES, repeat=2):
        around = [(CUT, top + down, left + right) for down, right in product(STEPS, repeat=2)]
        found |= _found(planes, rows, (CUT, top, left), around)
    for mirrored in (False, True):
        found |= _found(planes, rows, WHOLE, [WHOLE], mirrored=mirrored)
    return sorted(found)


def _found(
    planes: npt.NDArray[np.uint8],
    rows: Float32s,
    box: Box,
    around: Sequence[Box],
    *,
    mirrored: bool = False,
) -> set[tuple[int, int]]:
    """Pairs of a picture whose part is like another one, at more points in one of `around` too."""
    step = -1 if mirrored else 1
    near = nearest(_points(planes[..., ::step], box, ASKED_PX), rows, 2)
    others = (near.rows != np.arange(len(rows))[:, None]) & (near.similarity >= FOUND_COSINE)
    asking, answer = np.nonzero(others)[0], near.rows[others]
    kept = np.zeros(len(asking), dtype=bool)
    for start in range(0, len(asking), PAIR_ROWS):
        some = slice(start, start + PAIR_ROWS)
        target = _points(planes[answer[some]], WHOLE, COMPARED_PX)
        asked = planes[asking[some]][..., ::step]
        values = [np.vecdot(_points(asked, part, COMPARED_PX), target) for part in around]
        kept[some] = np.max(values, axis=0) >= ALIKE_COSINE
    pairs = np.sort(np.stack([asking[kept], answer[kept]], axis=1), axis=1)
    return {(int(i), int(j)) for i, j in pairs}


def _points(planes: npt.NDArray[np.uint8], box: Box, side: int) -> Float32s:
    """A part of each picture `(n, 3, size, size)` as `side` x `side` points, of length 1.

    Each channel is centred; zeros where the picture shows one colour.
    """
    share, top, left = box
    size = planes.shape[-1]
    down = _areas(top * (1 - share), share, side, size)
    across = _areas(left * (1 - share), share, side, size)
    lines = planes.astype(np.float32) @ across.T
    small = np.ascontiguousarray(lines.swapaxes(2, 3)) @ down.T  # (n, 3, x, y)
    points = (small - small.mean(axis=(2, 3), keepdims=True)).reshape(len(small), -1)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    shown = length > 255 * BLANK * np.sqrt(points.shape[1])
    return np.ascontiguousarray(np.where(shown, points / np.maximum(length, 1e-6), 0), np.float32)


def _areas(start: float, share: float, count: int, size: int) -> Float32s:
    """Weights `(count, size)` of pixels in equal pieces of a stretch; each row sums to 1."""
    edges = size * np.linspace(start, start + share, count + 1)
    pixels = np.arange(size)
    upper = np.minimum(edges[1:, None], pixels + 1)
    overlap = np.maximum(upper - np.maximum(edges[:-1, None], pixels), 0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), dtype=np.float32)
