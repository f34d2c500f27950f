"""What makes the logits of a head into honest probabilities: a temperature, or vector scaling.

Vector scaling (Guo et al. 2017, section 4.2) has a factor and a bias for each class. Unlike one
temperature it can change answers, and it has 2 k numbers to learn, so it is held at the temperature
by a penalty that weighs as much as `PRIOR_ROWS` rows: on images of hands, clothes and digits its
log loss was 1.5 % below to 1.3 % above that of the temperature (docs/log.md), which therefore is
the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from dinoprobe.decisions import centred_logits
from dinoprobe.errors import ConfigurationError
from dinoprobe.heads.base import softmax
from dinoprobe.heads.calibration import (
    apply_temperature,
    at_temperature,
    fit_temperature,
    require_linear,
)

if TYPE_CHECKING:
    from dinoprobe.heads.base import Codes, Float64s, ProbeBase
    from dinoprobe.heads.out_of_fold import OutOfFold

METHODS = ("temperature", "vector")
PRIOR_ROWS = 100.0
"""Of 3, 10, 30 and 100 the one with which the log loss rose least where rows were few."""
SMALLEST_FACTOR = 0.05
"""Relative to the temperature: a factor stays positive, so a larger logit stays a larger one."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Logits divided by `temperature`; with `factors` and `biases` `(k,)`, vector scaling.

    Logits are then centred to a mean of 0 over the classes, times the factors, plus the biases.
    """

    temperature: float
    factors: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()

    @property
    def method(self) -> str:
        """One of `METHODS`."""
        return "vector" if self.factors else "temperature"

    def apply(self, probabilities: Float64s) -> Float64s:
        """Scaled probabilities `(n, k)`; 0 stays 0."""
        if not self.factors:
            return at_temperature(probabilities, self.temperature)
        logits = centred_logits(probabilities) / self.temperature
        return softmax(np.array(self.factors) * logits + self.biases)

    def undo(self, probabilities: Float64s) -> Float64s:
        """The inverse of `apply`."""
        if not self.factors:
            return at_temperature(probabilities, 1 / self.temperature)
        factors = np.array(self.factors)
        logits = (centred_logits(probabilities) - self.biases) / factors
        shares = (1 / factors) / (1 / factors).sum()
        logits -= logits.sum(axis=1, keepdims=True) * shares
        return softmax(logits * self.temperature)

    def fold_into(self, head: ProbeBase) -> None:
        """Give it to weight and bias of a fitted linear head; HeadError for other heads."""
        linear = require_linear(head)
        apply_temperature(linear, self.temperature)
        if self.factors:
            factors = np.array(self.factors)
            weight, bias = linear.coef_.astype(np.float64), linear.intercept_.astype(np.float64)
            linear.set_linear(
                factors[:, None] * (weight - weight.mean(axis=0)),
                factors * (bias - bias.mean()) + self.biases,
                temperature=linear.temperature_,
            )


def fit_scaling(judged: OutOfFold, method: str = "temperature") -> Scaling:
    """The scaling with the least log loss on out-of-fold predictions.

    Raises HeadError without rows, ConfigurationError for an unknown method.
    """
    if method not in METHODS:
        raise ConfigurationError(
            f"The method of calibration is {method!r}; expected one of {', '.join(METHODS)}."
        )
    temperature = fit_temperature(judged)
    if method == "temperature":
        return Scaling(temperature)
    changes, biases = _fit_vector(
        centred_logits(judged.probabilities) / temperature, judged.codes
    ).reshape(2, -1)
    return Scaling(temperature, tuple((1 + changes).tolist()), tuple(biases.tolist()))


def _fit_vector(logits: Float64s, codes: Codes) -> Float64s:
    """Factors less 1, then biases `(2 k,)`: the least of a convex function."""
    n, k = logits.shape
    rows = np.arange(n)
    finite = np.where(np.isfinite(logits), logits, 0)

    def loss(parameters: Float64s) -> tuple[float, Float64s]:
        change, bias = parameters.reshape(2, k)
        scaled = (1 + change) * logits + bias
        probabilities = softmax(scaled)
        own = np.log(np.maximum(probabilities[rows, codes], np.finfo(np.float64).tiny))
        value = PRIOR_ROWS / 2 * np.square(parameters).sum() - own.sum()
        probabilities[rows, codes] -= 1
        slopes = [(probabilities * finite).sum(axis=0), probabilities.sum(axis=0)]
        return value / n, (np.concatenate(slopes) + PRIOR_ROWS * parameters) / n

    bounds = [(SMALLEST_FACTOR - 1, None)] * k + [(None, None)] * k
    found = minimize(loss, np.zeros(2 * k), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(found.x, dtype=np.float64)
