"""L2 multinomial logistic regression to convergence, along a path of strengths.

Minimises `mean cross-entropy + |W|² / (2 C n)` over standardised features, the intercept free. The
features are rotated once into their principal axes: there the penalty stays what it is, directions
without variance drop out where rows are fewer than features, and the Hessian is close to diagonal,
mean p (1 - p) of a class times the variance of an axis plus 1 / (C n). From that L-BFGS starts. A
step costs one product for the change of all scores and one for the gradient; another try along the
same line only the latter, since scores move along a line, too.

From strength to strength the solution is extrapolated, and what is known of the curvature goes
along: the penalty's part of it is known exactly. A path moves by coarse products; `Search.polish`
ends a solution by exact ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from dinoprobe.heads.base import for_features
from dinoprobe.heads.curvature import CurvatureMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dinoprobe.heads.base import Float64s
    from dinoprobe.heads.problem import Problem
    from dinoprobe.heads.rows import Chunk

MEMORY_PAIRS = 10
SUFFICIENT_DECREASE = 1e-4
STEEP = 0.9
LINE_TRIALS = 12
NOISE = 4
APPROACH_VALUE, SMALLEST_VALUE = 1e-2, 1e-6
"""Below these an objective is as good as 0: on the way along a path, and at the end."""
APPROACH_TOL = 1e-4
ROUNDED_TOL = 1e-4
"""What may be left where rounding hides any decrease, which more steps would not change."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Weights `(k, r)` in principal axes, the intercept in a last column, at one strength.

    `value` is the objective; `gap` what its quadratic model promises below, as a share of it.
    """

    C: float
    point: Tensor
    value: float
    gap: float
    iterations: int
    converged: bool


def solve_path(
    problem: Problem,
    Cs: Sequence[float],
    *,
    tol: float,
    max_iter: int,
    go_on: Callable[[Solution], bool] = lambda _: True,
) -> list[Solution]:
    """One solution by coarse products for each strength, in this order, while `go_on` says so.

    `Cs` should rise, since strong regularisation (small C) is quick from anywhere.
    """
    path = []
    search = Search(problem)
    with problem.lanes.running():
        for C in Cs:
            path.append(search.move_to(C, tol=tol, max_iter=max_iter))
            if not go_on(path[-1]):
                break
    return path


def solve(problem: Problem, C: float, *, tol: float, max_iter: int) -> Solution:
    """The solution at one strength by exact products, after an approach by coarse ones.

    It counts as converged, too, where rounding ends it with a gap of `ROUNDED_TOL` at most.
    """
    search = Search(problem)
    with problem.lanes.running():
        found = search.move_to(C, tol=max(tol, APPROACH_TOL), max_iter=max_iter)
        end = search.polish(tol=tol, max_iter=max_iter - found.iterations)
        return replace(end, iterations=found.iterations + end.iterations)


def to_feature_space(problem: Problem, solution: Solution) -> tuple[Float64s, Float64s]:
    """Weight `(k, d)` and intercept `(k,)` for features as they came, not standardised."""
    point = solution.point.double().cpu().numpy()
    weight = point[:, :-1] @ problem.axes.double().cpu().numpy().T / problem.scale
    return for_features(weight, point[:, -1] - point[:, -1].mean(), problem.mean)


class Search:
    """A descent, and where it stands: L-BFGS with a line search on the scores."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.exact = problem, problem.is_exact
        self.memory = CurvatureMemory(MEMORY_PAIRS, problem.start)
        self.C, self.least = 0.0, APPROACH_VALUE
        self.point, self.before = problem.start, (0.0, problem.start)
        self.loss, self.gradient, self.diagonal = 0.0, problem.start, problem.start

    def move_to(self, C: float, *, tol: float, max_iter: int) -> Solution:
        """The solution at another strength, by coarse products, from the one before."""
        last_C, last, last_loss = self.C, self.point, self.loss
        guess = self._guess(C)
        self.C = C
        if last_C:
            more = self._penalty - self._penalty_at(last_C)
            self.memory.add_curvature(more.expand_as(last))
        self._stand_at(last if guess is None else guess)
        if guess is not None and self.value > last_loss + self._penalty_of(last):
            self._stand_at(last)
        self.before = (last_C, last)
        return self._descend(tol, max_iter)

    def polish(self, *, tol: float, max_iter: int) -> Solution:
        """The same by exact products, until the gap by the curvature of the end is within `tol`.

        Where probabilities have become sure there is far less curvature than where the descent
        began, and far more is left than the model of the beginning sees (a share of 0.02 in place
        of 1e-8 at C = 1e4; docs/log.md).
        """
        self.exact = True
        self._stand_at(self.point)
        self.least = SMALLEST_VALUE
        iterations, before = 0, math.inf
        while True:
            iterations += self._descend(tol, max_iter - iterations).iterations
            self._stand_at(self.point)
            gap = self._gap()
            is_over = not self.value < before - self._noise(self.value)
            if gap <= tol or is_over or iterations >= max_iter:
                break
            before = self.value
        converged = gap <= (max(tol, ROUNDED_TOL) if is_over else tol)
        return Solution(self.C, self.point, self.value, gap, iterations, converged)

    @property
    def value(self) -> float:
        """The objective at the present point."""
        return self.loss + self._penalty_of(self.point)

    @property
    def _penalty(self) -> Tensor:
        return self._penalty_at(self.C)

    def _penalty_at(self, C: float) -> Tensor:
        """Second derivative `(1, r + 1)` of the penalty."""
        found = torch.full_like(self.problem.start[:1], 1 / (C * self.problem.total))
        found[:, -1] = 0
        return found

    def _penalty_of(self, point: Tensor) -> float:
        squares = point[:, :-1].square().sum(dtype=torch.float64)
        return float(squares) / (2 * self.C * self.problem.total)

    def _guess(self, C: float) -> Tensor | None:
        """Where the last two solutions point to, on a logarithmic scale of strengths."""
        before_C, before = self.before
        if not before_C or not self.C or before_C == self.C:
            return None
        share = math.log(C / self.C) / math.log(self.C / before_C)
        return self.point + share * (self.point - before)

    def _stand_at(self, point: Tensor) -> None:
        """Scores, loss, gradient and the Hessian's diagonal at a point; its scores are exact."""
        found = self.problem.lanes.map(partial(self._look, self._weights(point, exact=True)))
        spread = torch.stack([spread for _, _, spread in found]).sum(0) / self.problem.total
        self.point = point
        self._take([(loss, gradient) for loss, gradient, _ in found])
        variances = torch.cat([self.problem.variances, self.problem.variances.new_ones(1)])
        self.diagonal = spread.to(variances)[:, None] * variances + self._penalty
        self.diagonal.clamp_(min=torch.finfo(variances.dtype).tiny)

    def _look(self, weights: _Weights, lane: list[Chunk]) -> tuple[float, Tensor, Tensor]:
        """Loss, gradient and spread of a lane, where its scores begin anew."""
        total, gradient, spread = 0.0, self._no_gradient(), torch.zeros((), dtype=torch.float64)
        for chunk in lane:
            rows = chunk.kept if chunk.fresh is None else chunk.fresh()
            chunk.set_scores(torch.addmm(weights.intercept, weights.of_rows, rows.T))
            spread = spread + chunk.spread()
            total += self._descent(chunk, rows, gradient)
        return total, gradient, spread

    def _descend(self, tol: float, max_iter: int) -> Solution:
        iterations, gap = 0, self._gap()
        while gap > tol and iterations < max_iter and self._step():
            iterations, gap = iterations + 1, self._gap()
        self.point = self.point.clone()
        return Solution(self.C, self.point, self.value, gap, iterations, gap <= tol)

    def _gap(self) -> float:
        """What a quadratic model with the diagonal promises, as a share of the objective."""
        promised = (self.gradient.square() / self.diagonal).sum(dtype=torch.float64) / 2
        return float(promised) / max(self.value, self.least)

    def _noise(self, value: float) -> float:
        """Differences of objectives around `value` that may be rounding alone."""
        return NOISE * torch.finfo(self.point.dtype).eps * abs(value)

    def _step(self) -> bool:
        """One step of the descent; False where rounding hides any decrease."""
        direction = self.memory.direction(self.gradient, self.diagonal)
        slope = _dot(self.gradient, direction)
        if not slope < 0:
            direction = -self.gradient / self.diagonal
            slope = _dot(self.gradient, direction)
        if not self.exact:
            direction[:, :-1] = direction[:, :-1].to(self.problem.coarse).to(direction.dtype)
        point, gradient, loss, value = self.point, self.gradient, self.loss, self.value
        noise = self._noise(value)
        weights = self._weights(direction, exact=self.exact)
        low, high, here, t = (0.0, slope), (math.inf, 0.0), 0.0, 1.0
        for _ in range(LINE_TRIALS):
            found = self.problem.lanes.map(partial(self._move, weights, here, t))
            self.point, here = point + t * direction, t
            self._take(found)
            now = _dot(self.gradient, direction)
            lower = self.value <= value + SUFFICIENT_DECREASE * t * slope + noise
            if lower and abs(now) <= STEEP * abs(slope):
                self.memory.add(self.point - point, self.gradient - gradient)
                return True
            low, high = (low, (t, now)) if now > 0 or not lower else ((t, now), high)
            t = _between(low, high)
        self.point, self.gradient, self.loss = point, gradient, loss
        return False

    def _move(
        self, weights: _Weights, here: float, there: float, lane: list[Chunk]
    ) -> tuple[float, Tensor]:
        """Loss and gradient of a lane after a step from `here` to `there` along a direction."""
        more = there - here
        total, gradient = 0.0, self._no_gradient()
        for chunk in lane:
            rows = chunk.fresh() if self.exact and chunk.fresh else chunk.kept
            if here == 0:
                chunk.set_change(weights.of_rows @ rows.T)
            chunk.scores.add_(chunk.change, alpha=more).add_(weights.intercept, alpha=more)
            total += self._descent(chunk, rows, gradient)
        return total, gradient

    def _descent(self, chunk: Chunk, rows: Tensor, gradient: Tensor) -> float:
        """The chunk's loss; its gradient is added, the intercept's in the last column."""
        loss, residuals = chunk.residuals()
        if not self.exact:
            rows = chunk.kept
        gradient[:, :-1] += residuals.to(rows.dtype) @ rows
        gradient[:, -1] += residuals.sum(dim=1)
        return loss

    def _weights(self, point: Tensor, *, exact: bool) -> _Weights:
        """Weights as products with rows want them: rotated back for rows that are not kept."""
        weights = point[:, :-1]
        if self.problem.is_exact:
            return _Weights(weights, point[:, -1:])
        if exact:
            return _Weights(weights @ self.problem.axes.T, point[:, -1:])
        return _Weights(weights.to(self.problem.coarse), point[:, -1:])

    def _no_gradient(self) -> Tensor:
        k, r = self.problem.start.shape
        width = len(self.problem.axes) + 1 if self.exact and not self.problem.is_exact else r
        return self.problem.start.new_zeros((k, width))

    def _take(self, found: list[tuple[float, Tensor]]) -> None:
        """Loss and gradient of the objective from those of the lanes."""
        self.loss = math.fsum(loss for loss, _ in found) / self.problem.total
        gradient = torch.stack([part for _, part in found]).sum(0)
        if self.exact and not self.problem.is_exact:
            gradient = torch.cat([gradient[:, :-1] @ self.problem.axes, gradient[:, -1:]], dim=1)
        self.gradient = gradient / self.problem.total + self._penalty * self.point


class _Weights(NamedTuple):
    """A point or a direction, ready for products with rows: `(k, d)` or `(k, r)`, and `(k, 1)`."""

    of_rows: Tensor
    intercept: Tensor


def _between(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where the slope should be zero, from two places and their slopes; further on without a high.

    Never close to an end: a slope that rounding bends would else hold the search there.
    """
    (a, slope_a), (b, slope_b) = low, high
    if math.isinf(b):
        return 2 * max(a, 0.5)
    share = slope_a / (slope_a - slope_b) if slope_b > 0 else 0.5
    return a + (b - a) * min(max(share, 0.1), 0.9)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))
