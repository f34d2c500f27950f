"""Features as heads want them: their moments, and axes in which they do not vary together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh

from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s

    Floats = npt.NDArray[np.floating]

CONSTANT_RELATIVE_STD = 1e-5
"""Below this share of its mean a deviation is rounding of float32 storage, not signal."""
RANK_TOLERANCE = 1e-7
"""Directions with less than this share of the largest variance are left out: in standardised
features they are hardly more than the rounding of float32."""
BLOCK_ROWS = 2048


def standardization(
    X: Floats, rows: Codes | None = None, weights: Float64s | None = None
) -> tuple[Float64s, Float64s]:
    """Mean and scale `(d,)` of each feature over these rows; that of a constant feature is 1."""
    rows = np.arange(len(X)) if rows is None else rows
    parts = [slice(start, start + BLOCK_ROWS) for start in range(0, len(rows), BLOCK_ROWS)]
    pivot = X[rows[:BLOCK_ROWS]].mean(axis=0, dtype=np.float64)

    def sums(part: slice) -> Float64s:
        """Weights, and weighted first and second moments around the pivot `(3, d)`."""
        some = X[rows[part]] - pivot
        w = np.ones(len(some)) if weights is None else weights[part]
        squares = np.einsum("n,nd,nd->d", w, some, some)
        return np.stack([np.full(X.shape[1], w.sum()), w @ some, squares])

    with ThreadPoolExecutor(min(len(parts), usable_cores())) as pool:
        total, first, second = np.sum(list(pool.map(sums, parts)), axis=0)
    offset = first / total
    mean = pivot + offset
    deviation = np.sqrt(np.maximum(second / total - np.square(offset), 0))
    constant = deviation <= CONSTANT_RELATIVE_STD * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)


def principal_axes(Z: Floats, *, tolerance: float = RANK_TOLERANCE) -> tuple[Float64s, Float64s]:
    """Variances `(r,)` and orthonormal axes `(d, r)`, from the smaller Gram, in float64.

    `tolerance` is the share of the largest variance up to which a direction is left out.
    """
    n, d = Z.shape
    wide, Z = n < d, Z.astype(np.float64)
    variances, vectors = eigh(
        (Z @ Z.T if wide else Z.T @ Z) / n, overwrite_a=True, check_finite=False, driver="evd"
    )
    kept = variances > max(tolerance * variances[-1], np.finfo(np.float64).tiny)
    variances, vectors = variances[kept], vectors[:, kept]
    return variances, Z.T @ (vectors / np.sqrt(n * variances)) if wide else vectors
