"""Heads on a feature matrix: scikit-learn estimators that know nothing of images.

Importing this package imports torch and scikit-learn; callers do it inside functions.
"""

from dinoprobe.decisions import MEASURES as ABSTENTION_MEASURES
from dinoprobe.decisions import SET_METHODS, Abstention, PredictionSets, check_sets, confidence
from dinoprobe.heads.abstention import check_abstention, fit_abstention, least_count
from dinoprobe.heads.attentive import AttentiveProbe
from dinoprobe.heads.base import Head, LinearBase, ProbeBase
from dinoprobe.heads.calibration import apply_temperature, at_temperature, fit_temperature
from dinoprobe.heads.conformal import fit_sets
from dinoprobe.heads.grid import LinearGridProbe
from dinoprobe.heads.grid_training import GridTraining
from dinoprobe.heads.lda import LDAProbe
from dinoprobe.heads.linear import LinearProbe, LinearTraining
from dinoprobe.heads.logistic import LogisticProbe
from dinoprobe.heads.multilabel import MultiLabelProbe
from dinoprobe.heads.names import HEADS, check_options, head_from_name
from dinoprobe.heads.neighbors import KNNProbe
from dinoprobe.heads.novelty import METHODS as NOVELTY_METHODS
from dinoprobe.heads.novelty import Novelty, check_novelty, fit_novelty, left_out_scores
from dinoprobe.heads.out_of_fold import OutOfFold, copy_for, frozen_choice, out_of_fold
from dinoprobe.heads.prior import (
    apply_prior,
    class_prior,
    estimate_prior,
    prior_shares,
    under_prior,
)
from dinoprobe.heads.prototype import PrototypeProbe
from dinoprobe.heads.ridge import RidgeProbe
from dinoprobe.heads.scaling import METHODS as CALIBRATION_METHODS
from dinoprobe.heads.scaling import Scaling, fit_scaling
from dinoprobe.heads.search import Candidate, Judged, search
from dinoprobe.heads.selection import RULES
from dinoprobe.heads.state import from_state, to_state
from dinoprobe.heads.streamed import StreamedRows
from dinoprobe.heads.wrapped import SklearnProbe, sklearn_probe, with_random_state

__all__ = [
    "ABSTENTION_MEASURES",
    "CALIBRATION_METHODS",
    "HEADS",
    "NOVELTY_METHODS",
    "RULES",
    "SET_METHODS",
    "Abstention",
    "AttentiveProbe",
    "Candidate",
    "GridTraining",
    "Head",
    "Judged",
    "KNNProbe",
    "LDAProbe",
    "LinearBase",
    "LinearGridProbe",
    "LinearProbe",
    "LinearTraining",
    "LogisticProbe",
    "MultiLabelProbe",
    "Novelty",
    "OutOfFold",
    "PredictionSets",
    "ProbeBase",
    "PrototypeProbe",
    "RidgeProbe",
    "Scaling",
    "SklearnProbe",
    "StreamedRows",
    "apply_prior",
    "apply_temperature",
    "at_temperature",
    "check_abstention",
    "check_novelty",
    "check_options",
    "check_sets",
    "class_prior",
    "confidence",
    "copy_for",
    "estimate_prior",
    "fit_abstention",
    "fit_novelty",
    "fit_scaling",
    "fit_sets",
    "fit_temperature",
    "from_state",
    "frozen_choice",
    "head_from_name",
    "least_count",
    "left_out_scores",
    "out_of_fold",
    "prior_shares",
    "search",
    "sklearn_probe",
    "to_state",
    "under_prior",
    "with_random_state",
]
