"""Can these weights be used here, are they the right ones, and what does less precision cost?"""

from dinoprobe.doctor.checks import Check, State
from dinoprobe.doctor.examination import SCHEMA, Examination, Wishes, examine
from dinoprobe.drift import Drift, measure_drift

__all__ = [
    "SCHEMA",
    "Check",
    "Drift",
    "Examination",
    "State",
    "Wishes",
    "examine",
    "measure_drift",
]
