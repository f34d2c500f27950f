"""Two-class fits of many classes on parts of the same rows: along a path, and without each fold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.heads.axes import principal_axes
from dinoprobe.heads.binary_solver import Columns, solve_columns
from dinoprobe.heads.statistics import moments, product_dtype
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float32s, Float64s
    from dinoprobe.heads.closed import Floats

SELECTION_TOL_FACTOR = 100
BLOCK_CLASSES = 64
"""Classes that are solved together: scores of a block are held for each thread."""


class BinaryFits:
    """Standardised rows in principal axes, and the fits on parts of them.

    Axes and moments are those of all rows once, also for the folds.
    """

    tol = 1e-6

    def __init__(self, X: Floats, truths: Floats, weights: Float64s | None, max_iter: int) -> None:
        self.center, self.scale = moments(X, weights)
        dtype = product_dtype(X)
        Z = ((X - self.center) / self.scale).astype(dtype)
        self.variances, self.axes = principal_axes(Z)
        self.Z = Z @ self.axes.astype(dtype)
        self.truths = truths.astype(dtype)
        self.weights, self.max_iter = weights, max_iter

    def some_weights(self, rows: Codes) -> Float64s | None:
        """Weights of some rows, None where all count once."""
        return None if self.weights is None else self.weights[rows]

    def constant(self, rows: Codes) -> npt.NDArray[np.bool_]:
        """Classes `(k,)` that none of these rows has, or all."""
        counted = rows if self.weights is None else rows[self.weights[rows] > 0]
        positives = self.truths[counted].sum(axis=0, dtype=np.float64)
        return np.asarray((positives == 0) | (positives == len(counted)))

    def solve(
        self, Cs: Sequence[float], rows: Codes, *, tol: float
    ) -> tuple[Float64s, npt.NDArray[np.bool_]]:
        """Weights `(p, r + 1, k)`, the intercept last; which converged `(k,)` at the last C."""
        weights = self.some_weights(rows)
        counts = np.ones(len(rows)) if weights is None else weights
        positive = counts @ self.truths[rows].astype(np.float64)
        total = float(counts.sum())
        result = np.zeros((len(Cs), self.Z.shape[1] + 1, self.truths.shape[1]))
        result[:, -1] = np.log((positive + 0.5) / (total - positive + 0.5))
        varying = np.flatnonzero(~self.constant(rows))
        Z, shares = self.Z[rows], (counts / total).astype(self.Z.dtype)
        converged = np.ones(self.truths.shape[1], dtype=bool)

        def along_path(block: Codes) -> None:
            start = result[0][:, block]
            truths = np.ascontiguousarray(self.truths[np.ix_(rows, block)])
            for position, C in enumerate(Cs):
                columns = Columns(Z, truths, shares, self.variances, 1 / (C * total))
                start, done = self._solve(columns, start, tol)
                result[position][:, block], converged[block] = start, done

        blocks = [varying[at : at + BLOCK_CLASSES] for at in range(0, len(varying), BLOCK_CLASSES)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(along_path, blocks))
        return result, converged

    def _solve(
        self, columns: Columns, start: Float64s, tol: float
    ) -> tuple[Float64s, npt.NDArray[np.bool_]]:
        """As `solve_columns`; on in float64 where rounding ended a column early."""
        found, done = solve_columns(columns, start, tol=tol, max_iter=self.max_iter)
        if done.all() or columns.Z.dtype == np.float64:
            return found, done
        left = np.flatnonzero(~done)
        wide = [each.astype(np.float64) for each in (columns.Z, columns.truths[:, left])]
        exact = replace(
            columns, Z=wide[0], truths=wide[1], shares=columns.shares.astype(np.float64)
        )
        found[:, left], done[left] = solve_columns(
            exact, found[:, left], tol=tol, max_iter=self.max_iter
        )
        return found, done

    def out_of_fold(self, Cs: Sequence[float], folds: Codes, judged: Codes) -> Floats:
        """Scores `(p, m, k)` of the judged rows by fits without their fold."""
        scores = np.empty((len(Cs), len(judged), self.truths.shape[1]), dtype=self.Z.dtype)

        def judge(fold: int) -> None:
            fits, _ = self.solve(
                Cs, np.flatnonzero(folds != fold), tol=self.tol * SELECTION_TOL_FACTOR
            )
            own = np.flatnonzero(folds[judged] == fold)
            Z = self.Z[judged[own]]
            for position, weights in enumerate(fits.astype(Z.dtype)):
                scores[position][own] = Z @ weights[:-1] + weights[-1]

        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(judge, np.unique(folds[judged]).tolist()))
        return scores

    def to_feature_space(self, weights: Float64s) -> tuple[Float32s, Float32s]:
        """Weight `(k, d)` and intercept `(k,)` for features as they came."""
        weight = (self.axes @ weights[:-1] / self.scale[:, None]).T.astype(np.float32)
        intercept = weights[-1] - weight.astype(np.float64) @ self.center
        return weight, intercept.astype(np.float32)
