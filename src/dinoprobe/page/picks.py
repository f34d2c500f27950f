"""Which images to label next: different ones first, then those that the model is unsure of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.heads.neighbors import normalized

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.page.fitting import Model
    from dinoprobe.page.workspace import Standing, Workspace

    Rows = npt.NDArray[np.intp]

MOST_ROWS = 50_000
POOL = 10
"""Unsure images that are looked at for each that is picked: of near copies one is enough."""


def next_picks(work: Workspace, standing: Standing, count: int) -> tuple[str, list[int]]:
    """How they were picked ("diverse" or "uncertain"), and rows without a label."""
    unlabelled = np.array([label is None for label in standing.labels], dtype=bool)
    free = np.flatnonzero(unlabelled & ~standing.dropped & ~work.is_test())
    rng = np.random.default_rng(standing.version)
    if len(free) > MOST_ROWS:
        free = np.sort(rng.choice(free, MOST_ROWS, replace=False))
    if not len(free):
        return "diverse", []
    known = np.flatnonzero(~unlabelled & ~standing.dropped)
    model = work.model
    if model is None:
        return "diverse", spread(work.features.X, free, known, count, rng)
    return "uncertain", _unsure(work.features.X, model, free, known, count, rng)


def _unsure(
    X: npt.NDArray[np.float32],
    model: Model,
    free: Rows,
    known: Rows,
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Small margins between the two best classes, and among these ones that differ."""
    pool = free[np.argsort(model.margin[free], kind="stable")[: POOL * count]]
    return spread(X, pool, known, count, rng)


def spread(
    X: npt.NDArray[np.float32],
    candidates: Rows,
    known: Rows,
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Candidates far from each other and from what is known, drawn by squared distance.

    k-means++ (Arthur and Vassilvitskii 2007) on rows of length 1, with the known rows as its first
    centres; the farthest point of all would be an outlier each time.
    """
    Z = normalized(X[candidates])
    nearest = np.full(len(Z), np.inf)
    for start in range(0, len(known), 512):
        cosine = Z @ normalized(X[known[start : start + 512]]).T
        nearest = np.minimum(nearest, 2 - 2 * cosine.max(axis=1))
    picked: list[int] = []
    for _ in range(min(count, len(Z))):
        place = _draw(Z, nearest, rng)
        picked.append(int(candidates[place]))
        nearest = np.minimum(nearest, 2 - 2 * (Z @ Z[place]))
        nearest[place] = -1.0
    return picked


def _draw(
    Z: npt.NDArray[np.float32], nearest: npt.NDArray[np.float64], rng: np.random.Generator
) -> int:
    """A row by its squared distance; the most central one where nothing is known yet."""
    if np.isinf(nearest).any():
        return int((Z @ Z.mean(axis=0)).argmax())
    weight = np.maximum(nearest, 0)
    if weight.sum() <= 0:  # copies of what was picked
        return int(np.flatnonzero(nearest >= 0)[0] if (nearest >= 0).any() else nearest.argmax())
    return int(rng.choice(len(weight), p=weight / weight.sum()))
