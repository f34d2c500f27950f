"""One temperature for a head whose probabilities are surer, or less sure, than they are right.

Temperature scaling (Guo et al. 2017, section 4.2): logits divided by a number that minimises the
log loss of predictions that the head did not learn from. It changes no answer. A linear head takes
it into weight and bias, and stays one linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from dinoprobe.errors import HeadError
from dinoprobe.heads.base import LinearBase, softmax

if TYPE_CHECKING:
    from dinoprobe.heads.base import Float64s, ProbeBase
    from dinoprobe.heads.out_of_fold import OutOfFold

TEMPERATURES = (0.01, 100.0)


def fit_temperature(judged: OutOfFold) -> float:
    """The temperature with the smallest log loss on out-of-fold predictions, within `TEMPERATURES`.

    The loss is convex in 1/T, and its slope is searched for zero. One more row is counted, in which
    all classes are equally right: else predictions without a mistake would have T go to 0, and
    claim certainty (the thought of Platt 1999). Raises HeadError without rows.
    """
    if not len(judged):
        raise HeadError(
            "There are no out-of-fold predictions to calibrate on; expected at least one. Add "
            "images, so that a class can train and validate, or leave calibration out."
        )
    known = judged.probabilities > 0
    logits = np.log(np.where(known, judged.probabilities, 1.0))
    own = logits[np.arange(len(judged)), judged.codes]
    even = logits.sum(axis=1) / known.sum(axis=1)
    share = 1 / (len(judged) + 1)
    target = ((1 - share) * own + share * even).mean()

    def slope(inverse: float) -> float:
        weights = softmax(np.where(known, inverse * logits, -np.inf))
        return float((weights * logits).sum(axis=1).mean() - target)

    coldest, hottest = (1 / temperature for temperature in TEMPERATURES)
    if slope(hottest) >= 0:
        return TEMPERATURES[1]
    if slope(coldest) <= 0:
        return TEMPERATURES[0]
    return float(1 / brentq(slope, hottest, coldest, rtol=1e-10))


def at_temperature(probabilities: Float64s, temperature: float) -> Float64s:
    """Probabilities `(n, k)` after a division of their logits; 0 stays 0."""
    known = probabilities > 0
    logits = np.log(np.where(known, probabilities, 1.0)) / temperature
    return softmax(np.where(known, logits, -np.inf))


def apply_temperature(head: ProbeBase, temperature: float) -> None:
    """Divide the logits of a fitted linear head for good; sets `temperature_`.

    Raises HeadError for a head without logits.
    """
    if not isinstance(head, LinearBase):
        raise HeadError(
            f"{type(head).__name__} has no weight and bias that could take a temperature; expected "
            f"a linear head, such as LogisticProbe. Leave calibration out."
        )
    weight, intercept = head.coef_.astype(np.float64), head.intercept_.astype(np.float64)
    before = head.temperature_
    head.set_linear(weight / temperature, intercept / temperature)
    head.temperature_ = before * temperature
