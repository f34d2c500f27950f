"""L2 multinomial logistic regression to convergence, along a path of strengths.

Minimises `mean cross-entropy + |W|² / (2 C n)` over standardised features, the intercept free. The
features are rotated once into their principal axes, where the penalty stays what it is, directions
without variance drop out (so more features than rows cost no more than rows) and the Hessian is
close to diagonal: scaling each axis by that diagonal is the preconditioner that L-BFGS needs.
Products run in float32 and sums in float64; a solve that stops on rounding goes on in float64.
Estimators call `prepare` and `solve_path`, and know nothing else of this module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import minimize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]
    Float64s = npt.NDArray[np.float64]

CONSTANT_RELATIVE_STD = 1e-5
"""Below this share of its mean a deviation is rounding of float32 storage, not signal."""
RANK_TOLERANCE = 1e-7
"""Directions with less than this share of the largest variance are rounding noise."""
MEMORY_PAIRS = 20
FLAT_DECREASE = 1e-14


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows in principal axes: `Z` `(n, r)`, the way back to features, and the classes as codes."""

    Z: Floats
    codes: npt.NDArray[np.intp]
    class_count: int
    variances: Float64s
    axes: Float64s
    mean: Float64s
    scale: Float64s


@dataclass(frozen=True, slots=True)
class Solution:
    """Weights `(r, k)` in principal axes and intercept `(k,)` at one strength."""

    C: float
    weights: Float64s
    intercept: Float64s
    iterations: int
    converged: bool


def standardization(X: Floats) -> tuple[Float64s, Float64s]:
    """Mean and scale `(d,)` of each feature; the scale of a constant feature is 1."""
    mean = X.mean(axis=0, dtype=np.float64)
    deviation = np.sqrt(np.mean(np.square(X - mean), axis=0, dtype=np.float64))
    constant = deviation <= CONSTANT_RELATIVE_STD * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)


def prepare(X: Floats, codes: npt.NDArray[np.intp], class_count: int) -> Problem:
    """The problem of these rows, standardised and rotated, ready for any strength."""
    mean, scale = standardization(X)
    Z = ((X - mean) / scale).astype(np.float32)
    variances, axes = principal_axes(Z)
    rotated = Z @ axes.astype(np.float32)
    return Problem(rotated, codes, class_count, variances, axes, mean, scale)


def solve_path(
    problem: Problem, Cs: Sequence[float], *, tol: float, max_iter: int
) -> list[Solution]:
    """One solution for each strength, in this order; each starts from the one before.

    `Cs` should rise, since strong regularisation (small C) is quick from anywhere.
    """
    solution = _start(problem)
    path = []
    for C in Cs:
        solution = _solve(problem, C, solution, tol=tol, max_iter=max_iter)
        path.append(solution)
    return path


def to_feature_space(problem: Problem, solution: Solution) -> tuple[Float64s, Float64s]:
    """Weight `(k, d)` and intercept `(k,)` for features as they came, not standardised."""
    weight = (problem.axes @ solution.weights / problem.scale[:, None]).T
    return weight, solution.intercept - weight @ problem.mean


def objective(problem: Problem, C: float, weights: Float64s, intercept: Float64s) -> float:
    """The value that is minimised."""
    return _loss_and_gradient(problem, C, weights, intercept)[0]


def principal_axes(Z: Floats) -> tuple[Float64s, Float64s]:
    """Variances `(r,)` and orthonormal axes `(d, r)`, from the smaller Gram."""
    n, d = Z.shape
    wide = n < d
    gram = (Z @ Z.T if wide else Z.T @ Z).astype(np.float64) / n
    variances, vectors = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    kept = variances > max(RANK_TOLERANCE * variances[-1], np.finfo(np.float64).tiny)
    variances, vectors = variances[kept], vectors[:, kept]
    if wide:
        vectors = np.linalg.qr(Z.T.astype(np.float64) @ vectors)[0]
    return variances, vectors


def _start(problem: Problem) -> Solution:
    """Weights of zero, and the intercept that is best for them: centred log frequencies."""
    counts = np.bincount(problem.codes, minlength=problem.class_count)
    intercept = np.log(np.maximum(counts, 1) / len(problem.codes))
    shape = (problem.Z.shape[1], problem.class_count)
    return Solution(0.0, np.zeros(shape), intercept - intercept.mean(), 0, converged=True)


def _solve(problem: Problem, C: float, start: Solution, *, tol: float, max_iter: int) -> Solution:
    """L-BFGS from `start`; on in float64 where float32 products are too coarse to go further."""
    solution, stalled = _minimize(problem, C, start, tol=tol, max_iter=max_iter)
    if not stalled:
        return solution
    exact = replace(problem, Z=problem.Z.astype(np.float64))
    left = max_iter - solution.iterations
    refined, _ = _minimize(exact, C, solution, tol=tol, max_iter=left)
    return replace(refined, iterations=solution.iterations + refined.iterations)


def _minimize(
    problem: Problem, C: float, start: Solution, *, tol: float, max_iter: int
) -> tuple[Solution, bool]:
    """The solution reached, and whether rounding ended the search before the gradient was small.

    Variables are divided by `step`, the inverse root of the Hessian's diagonal where all classes
    are equally likely, so that `tol` bounds a gradient whose square is a decrease of the objective.
    """
    k = problem.class_count
    step = np.empty((len(problem.variances) + 1, 1))
    step[:-1, 0] = (problem.variances / k + 1 / (C * len(problem.codes))) ** -0.5
    step[-1, 0] = k**0.5

    def scaled(flat: Float64s) -> tuple[float, Float64s]:
        point = flat.reshape(-1, k) * step
        value, gradient = _loss_and_gradient(problem, C, point[:-1], point[-1])
        return value, (gradient * step).ravel()

    result = minimize(
        scaled,
        (np.vstack([start.weights, start.intercept]) / step).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max(max_iter, 1), "maxfun": 2 * max_iter + 20, "gtol": tol}
        | {"ftol": FLAT_DECREASE, "maxcor": MEMORY_PAIRS},
    )
    point = result.x.reshape(-1, k) * step
    intercept = point[-1] - point[-1].mean()
    solution = Solution(C, point[:-1], intercept, int(result.nit), bool(result.success))
    return solution, bool(np.abs(result.jac).max() > tol and result.nit < max_iter)


def _loss_and_gradient(
    problem: Problem, C: float, weights: Float64s, intercept: Float64s
) -> tuple[float, Float64s]:
    """The objective and its gradient `(r + 1, k)`, the intercept's last."""
    Z, codes = problem.Z, problem.codes
    n = len(codes)
    rows = np.arange(n)
    logits = Z @ weights.astype(Z.dtype)
    logits += intercept.astype(Z.dtype)
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[rows, codes].sum(dtype=np.float64)
    np.exp(logits, out=logits)
    totals = logits.sum(axis=1, keepdims=True)
    loss = (np.log(totals, dtype=np.float64).sum() - own) / n
    logits /= totals
    logits[rows, codes] -= 1
    gradient = np.empty((len(weights) + 1, problem.class_count))
    gradient[:-1] = (Z.T @ logits) / n + weights / (C * n)
    gradient[-1] = logits.sum(axis=0, dtype=np.float64) / n
    return float(loss + np.square(weights).sum() / (2 * C * n)), gradient
