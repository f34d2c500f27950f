"""The memory of L-BFGS in its compact form: what past steps say of the curvature.

Byrd, Nocedal and Schnabel 1994, theorem 2.2, with a diagonal for the inverse Hessian to start from.
A direction costs four products with the stacked pairs, where the usual recursion makes twice as
many passes over them, one pair at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

FLAT = 1e-10
"""A pair whose step and change of gradient are as good as perpendicular says nothing."""


class CurvatureMemory:
    """The last `limit` steps and changes of the gradient, as rows of `(limit, size)`."""

    def __init__(self, limit: int, like: Tensor) -> None:
        shape = (limit, like.numel())
        self.steps = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.changes = torch.zeros_like(self.steps)
        self.order: list[int] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Keep a pair in place of the oldest one; nothing where it holds no curvature."""
        s, y = step.ravel(), change.ravel()
        if not float(s @ y) > FLAT * float(s.norm() * y.norm()):
            return
        full = len(self.order) == len(self.steps)
        row = self.order.pop(0) if full else len(self.order)
        self.order.append(row)
        self.steps[row], self.changes[row] = s, y

    def add_curvature(self, curvature: Tensor) -> None:
        """The objective has got this much more of a second derivative, the same everywhere."""
        if self.order:
            self.changes += self.steps * curvature.ravel()

    def direction(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        """Where to go from here: minus the inverse Hessian times the gradient, in its shape.

        `diagonal` approximates the Hessian where the pairs say nothing.
        """
        g, inverse = gradient.ravel(), 1 / diagonal.ravel()
        if not self.order:
            return -(g * inverse).reshape(gradient.shape)
        S, Y = self.steps[self.order], self.changes[self.order]
        newest = self.order[-1]
        y = self.changes[newest]
        inverse = inverse * ((self.steps[newest] @ y) / (y @ (y * inverse)))
        HY = Y * inverse
        SY, YHY = (S @ Y.T).double(), (Y @ HY.T).double()
        upper = SY.triu()
        right = (S @ g).double()
        left = torch.linalg.solve_triangular(upper, right[:, None], upper=True)[:, 0]
        inner = SY.diagonal() * left + YHY @ left - (HY @ g).double()
        inner = torch.linalg.solve_triangular(upper.T, inner[:, None], upper=False)[:, 0]
        result = g * inverse + S.T @ inner.to(S.dtype) - HY.T @ left.to(S.dtype)
        direction: Tensor = -result.reshape(gradient.shape)
        return direction
