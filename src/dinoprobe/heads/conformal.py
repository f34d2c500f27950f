"""Sets of labels that hold the right one in a chosen share of images (conformal prediction).

A threshold on a score is taken from predictions that the head did not learn from: the smallest that
covers the chosen share of them, counted as n + 1. On images that come like those, a set then holds
the label with at least that probability, whatever the head (Vovk et al. 2005; Angelopoulos and
Bates 2021). That is exact where one held-out part gave the predictions. Those of
several folds come from heads fitted on less; the head of all rows errs to the safe side as a rule,
without a proof.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.decisions import PredictionSets, check_sets, scores

if TYPE_CHECKING:
    from dinoprobe.heads.base import Float64s
    from dinoprobe.heads.out_of_fold import OutOfFold

ROUNDING = 1e-9


def fit_sets(
    judged: OutOfFold, *, method: str = "lac", coverage: float = 0.9, per_class: bool = False
) -> PredictionSets:
    """Thresholds from out-of-fold predictions.

    `per_class` takes one from the rows of each class, so that each class is covered (Vovk 2012):
    larger sets, and a class with fewer than coverage / (1 - coverage) rows stands in every set.
    """
    check_sets(method, coverage)
    own = scores(judged.probabilities, method)[np.arange(len(judged)), judged.codes]
    if per_class:
        groups = [own[judged.codes == code] for code in range(len(judged.classes))]
    else:
        groups = [own]
    thresholds = tuple(_threshold(group, coverage) for group in groups)
    return PredictionSets(method, coverage, thresholds, len(judged))


def _threshold(own: Float64s, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest score; infinity where there are too few."""
    rank = math.ceil((len(own) + 1) * coverage - ROUNDING)
    return float(np.partition(own, rank - 1)[rank - 1]) if rank <= len(own) else math.inf
