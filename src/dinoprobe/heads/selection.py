"""Which strength a path of them is left with: the most accurate, or a simpler one as good as it.

`one-se` is the one-standard-error rule (Breiman et al. 1984, section 3.4.3; Hastie, Tibshirani,
Friedman, "The Elements of Statistical Learning", 7.10): the most regularised strength that is not
worse than the best by more than chance explains. Strengths are judged on the same rows, so chance
is taken from the rows on which the two differ, where these are known: with 1,000 rows and 90 %
right, two strengths that differ on 20 rows are 0.45 points apart at one standard error, where the
share itself has 0.95. Rows of one group are counted as if they stood alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.errors import HeadError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s

RULES = ("best", "one-se")
ROUNDING = 1e-12
"""Accuracies are quotients: equal ones may differ by so much."""


def check_rule(rule: str) -> None:
    """HeadError unless it is one of `RULES`."""
    if rule not in RULES:
        raise HeadError(f"rule is {rule!r}; expected {' or '.join(map(repr, RULES))}.")


def select(
    accuracy: Float64s,
    loss: Float64s,
    errors: Float64s,
    *,
    rule: str,
    strongest_last: bool,
) -> int:
    """The chosen one of strengths `(p,)` in order of regularisation; see `standard_errors`.

    `strongest_last` tells the order of the path.
    """
    best = best_of(accuracy, loss)
    if rule == "best":
        return best
    return strongest_within(accuracy, best, errors, strongest_last=strongest_last)


def best_of(accuracy: Float64s, loss: Float64s) -> int:
    """The most accurate, of equals the one with the smaller loss."""
    return int(np.lexsort((loss, -accuracy))[0])


def strongest_within(
    accuracy: Float64s, best: int, errors: Float64s, *, strongest_last: bool
) -> int:
    """The most regularised strength at most its standard error behind `best`."""
    admitted = np.flatnonzero(accuracy[best] - accuracy <= errors + ROUNDING)
    return int(admitted[-1 if strongest_last else 0])


def standard_errors(
    best: int,
    row_count: float,
    correct: npt.NDArray[np.bool_],
    weights: Float64s | None = None,
) -> Float64s:
    """Of how far each strength is behind `best`, `(p,)`, from pairs of answers on the same rows.

    `correct` `(p, m)` says which of m of the `row_count` rows each strength got right, `weights`
    `(m,)` how often each counts.
    """
    differences = correct[best].astype(np.float64) - correct
    mean = np.average(differences, axis=1, weights=weights)
    variance = np.average(np.square(differences - mean[:, None]), axis=1, weights=weights)
    return np.asarray(np.sqrt(variance / row_count))


def in_words(rule: str) -> str:
    """What the rule adds to how a strength was chosen."""
    return "" if rule == "best" else ", the most regularised within one standard error of the best"
