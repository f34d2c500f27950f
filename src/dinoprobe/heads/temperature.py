"""One number that makes scores into honest probabilities: softmax(scores / temperature).

Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2. One more row is counted,
in which all classes are equally right, so that rows without a mistake still give a finite answer
(the thought of Platt 1999).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Codes

STEPS = 60
PRECISION = 1e-9
SHARPEST, FLATTEST = 1e4, 1e-3
"""Bounds of 1 / temperature, for scores whose spread is 1."""
ABSENT = -1e30
"""In place of minus infinity, the score of a class that was not trained on."""


def fit_temperature(
    scores: npt.NDArray[np.floating],
    codes: Codes,
    weights: npt.NDArray[np.float64] | None = None,
) -> float:
    """The temperature at which softmax(scores `(n, k)` / temperature) has the least log loss.

    A score of minus infinity stands for a class that was not trained on; `weights` `(n,)` say how
    often a row counts. Newton's method on the slope of a convex function, kept within a bracket.
    1 for scores that do not differ.
    """
    counts = np.ones(len(codes)) if weights is None else weights
    row_shares = counts / counts.sum()
    present = np.isfinite(scores)
    z = np.where(present, scores, 0).astype(np.float64)
    shares = present / present.sum(axis=1, keepdims=True)
    middle = (z * shares).sum(axis=1, keepdims=True)
    spread = float(np.sqrt(row_shares @ (np.square(z - middle) * shares).sum(axis=1)))
    if not spread > 0:
        return 1.0
    z = np.where(present, (z - middle) / spread, ABSENT)
    smoothing = 1 / (counts.sum() + 1)
    own = (1 - smoothing) * float(row_shares @ z[np.arange(len(z)), codes])
    return spread / _root(z, row_shares, own)


def _root(z: npt.NDArray[np.float64], row_shares: npt.NDArray[np.float64], own: float) -> float:
    """The sharpness b at which the expected score under softmax(b z) is `own`."""
    low, high, b = FLATTEST, SHARPEST, 1.0
    for _ in range(STEPS):
        slope, curvature = _derivatives(z, row_shares, b)
        slope -= own
        low, high = (low, b) if slope > 0 else (b, high)
        step = b - slope / curvature if curvature > 0 else 0.0
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - b) <= PRECISION * b:
            return following
        b = following
    return b


def _derivatives(
    z: npt.NDArray[np.float64], row_shares: npt.NDArray[np.float64], b: float
) -> tuple[float, float]:
    """First and second derivative by b of the mean of log(sum(exp(b z)))."""
    p = z * b
    p -= p.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    first = (p * z).sum(axis=1)
    p *= np.square(z - first[:, None])
    return float(row_shares @ first), float(row_shares @ p.sum(axis=1))
