"""One temperature for a head whose probabilities are surer, or less sure, than they are right.

Temperature scaling (Guo et al. 2017, section 4.2): logits divided by a number that minimises the
log loss of predictions that the head did not learn from. It changes no answer. A linear head takes
it into weight and bias, and stays one linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.decisions import logits_of
from dinoprobe.errors import HeadError
from dinoprobe.heads import temperature as temperatures
from dinoprobe.heads.base import LinearBase, softmax

if TYPE_CHECKING:
    from dinoprobe.heads.base import Float64s, ProbeBase
    from dinoprobe.heads.out_of_fold import OutOfFold

TEMPERATURES = (0.01, 100.0)


def fit_temperature(judged: OutOfFold) -> float:
    """The temperature with the smallest log loss on out-of-fold predictions, within `TEMPERATURES`.

    Rows count as often as their weights say. Raises HeadError without rows.
    """
    if not len(judged):
        raise HeadError(
            "There are no out-of-fold predictions to calibrate on; expected at least one. Add "
            "images, so that a class can train and validate, or leave calibration out."
        )
    logits = logits_of(judged.probabilities)
    found = temperatures.fit_temperature(logits, judged.codes, judged.weights)
    return float(np.clip(found, *TEMPERATURES))


def at_temperature(probabilities: Float64s, temperature: float) -> Float64s:
    """Probabilities `(n, k)` after a division of their logits; 0 stays 0."""
    return softmax(logits_of(probabilities) / temperature)


def apply_temperature(head: ProbeBase, temperature: float) -> None:
    """Divide the logits of a fitted linear head for good; sets `temperature_`.

    Raises HeadError for a head without logits.
    """
    linear = require_linear(head)
    weight, intercept = linear.coef_.astype(np.float64), linear.intercept_.astype(np.float64)
    reached = linear.temperature_ * temperature
    linear.set_linear(weight / temperature, intercept / temperature, temperature=reached)


def require_linear(head: ProbeBase) -> LinearBase:
    """The head; HeadError where it has no weight and bias."""
    if not isinstance(head, LinearBase):
        raise HeadError(
            f"{type(head).__name__} has no weight and bias that could take a temperature; expected "
            f"a linear head, such as LogisticProbe. Leave calibration out."
        )
    return head
