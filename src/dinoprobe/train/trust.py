"""What makes answers trustworthy, taken from rows that a head, or a measure, was not fitted on.

The order matters: probabilities are calibrated, and the thresholds of sets and of abstention are
those of calibrated probabilities. The test part is never seen here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.calibration import Calibration, calibrate
from dinoprobe.heads import (
    confidence,
    fit_abstention,
    fit_novelty,
    fit_sets,
    least_count,
    left_out_scores,
)
from dinoprobe.partition import dealt_folds
from dinoprobe.train.config import (
    NO_NOVELTY,
    TrainConfig,
    calibration_method,
    wants_calibration,
    wants_predictions,
    wants_sets,
    wants_sets_per_class,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads import Abstention, Novelty, OutOfFold, PredictionSets, ProbeBase
    from dinoprobe.train.prior import Shift
    from dinoprobe.types import Features

FEW_FOLDS, MANY_FOLDS = 5, 20
FITTED_ROWS = 10_000
"""Rows times folds that leave one out, between these bounds."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What is taken from out-of-fold predictions, None where it is not, and sentences on that."""

    calibration: Calibration | None = None
    sets: PredictionSets | None = None
    novelty: Novelty | None = None
    abstention: Abstention | None = None
    notes: tuple[str, ...] = ()


def trusted(
    config: TrainConfig,
    head: ProbeBase,
    judged: OutOfFold,
    training: Features,
    shift: Shift | None = None,
) -> Trust:
    """Calibrate the head, and take sets and a rule of abstention from the same predictions.

    The calibration comes before a shift to other class frequencies, as rows come; the thresholds of
    sets after it, for the probabilities that are given.
    """
    novelty, strangeness, notes = _novelty(config, training)
    if not wants_predictions(config):
        return Trust(novelty=novelty, notes=notes)
    if not len(judged):
        note = (
            "Neither calibrated nor with sets, nor with a rule to abstain: no class has rows to "
            "train and to validate."
        )
        return Trust(novelty=novelty, notes=(*notes, note))
    calibration = None
    if wants_calibration(config):
        calibration = calibrate(head, judged, calibration_method(config))
        scaled = calibration.scaling.apply(judged.probabilities)
        judged = replace(judged, probabilities=scaled)
    sets = None
    if wants_sets(config):
        given = judged
        if shift is not None:
            given = replace(judged, probabilities=shift.probabilities(judged.probabilities))
        per_class = wants_sets_per_class(config)
        sets = fit_sets(given, method=config.sets, coverage=config.coverage, per_class=per_class)
    abstention, more = _abstention(config, judged, strangeness)
    return Trust(calibration, sets, novelty, abstention, (*notes, *more))


def _novelty(
    config: TrainConfig, training: Features
) -> tuple[Novelty | None, npt.NDArray[np.float64] | None, tuple[str, ...]]:
    """The measure, and the score of each training row by what was fitted without it.

    With few rows more folds: what is fitted without one is then nearly as good as that of all rows.
    """
    if config.novelty == NO_NOVELTY:
        return None, None, ()
    n_folds = min(max(FITTED_ROWS // len(training), FEW_FOLDS), MANY_FOLDS)
    folds = dealt_folds(training, seed=config.seed, n_folds=n_folds)
    scores = left_out_scores(training.X, training.y, folds, config.novelty)
    if not np.isfinite(scores).any():
        note = "No flag for images unlike the training images: no class has rows to leave out."
        return None, None, (note,)
    found = fit_novelty(
        training.X, training.y, scores, method=config.novelty, share=config.novelty_share
    )
    return found, scores, ()


def _abstention(
    config: TrainConfig, judged: OutOfFold, strangeness: npt.NDArray[np.float64] | None
) -> tuple[Abstention | None, tuple[str, ...]]:
    """The rule that keeps the target accuracy, or a sentence why there is none."""
    target = config.target_accuracy
    if target is None or (config.abstain_by == "distance" and strangeness is None):
        return None, ()
    scores = None if strangeness is None else strangeness[judged.rows]
    sure = confidence(config.abstain_by, judged.probabilities, scores)
    correct = judged.probabilities.argmax(axis=1) == judged.codes
    known = np.isfinite(sure)
    rule = fit_abstention(config.abstain_by, sure[known], correct[known], target)
    if rule is not None:
        return rule, ()
    note = (
        f"No threshold by {config.abstain_by} is shown to keep an accuracy of {100 * target:g} %, "
        f"and so every image is answered: {int(correct.sum()):,} of {len(correct):,} out-of-fold "
        f"predictions are right, and {least_count(target):,} answers without a mistake are the "
        f"fewest that can show it. Add images, or lower --target-accuracy."
    )
    return None, (note,)
