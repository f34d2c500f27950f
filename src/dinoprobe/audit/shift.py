"""Whether test images come from where training images do: a classifier two-sample test.

A head that is to tell the parts apart, out of fold; 0.5 is chance (Lopez-Paz and Oquab 2017,
"Revisiting Classifier Two-Sample Tests"). Each class is centred first, so that class frequencies
do not count: those are tested by themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2_contingency
from sklearn.metrics import roc_auc_score

from dinoprobe.audit.finding import Finding
from dinoprobe.heads import LDAProbe, out_of_fold
from dinoprobe.partition import dealt_folds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.evaluation import Interval
    from dinoprobe.types import Features

FEWEST_ROWS = 20
HIGH, MEDIUM = 0.8, 0.65
SHRINKAGE = 0.1
LABEL_SIGNIFICANCE, LABEL_DISTANCE = 1e-3, 0.1


def shift(
    features: Features, near: Sequence[str | None], seed: int
) -> tuple[list[Finding], dict[str, Any] | None]:
    """Findings and figures; None without a given test part, or too few images in a part."""
    parts = np.array([part or "train" for part in features.splits], dtype=object)
    name = "test" if "test" in parts else "val"
    tested = parts == name
    if min(int(tested.sum()), int((~tested).sum())) < FEWEST_ROWS:
        return [], None
    auc, interval = _told_apart(features, tested, near, seed)
    figures: dict[str, Any] = {
        "part": name, "n": int((~tested).sum()), "n_test": int(tested.sum()), "auc": auc,
        "interval": list(interval), "label_distance": None, "label_p_value": None,
    }  # fmt: skip
    findings = []
    if interval[0] > 0.5:
        findings.append(_shifted(name, auc, interval))
    labelled = np.array([label is not None for label in features.y])
    if len(features.classes) > 1 and (labelled & tested).any() and (labelled & ~tested).any():
        distance, p_value = _labels(features.y[labelled], tested[labelled])
        figures |= {"label_distance": distance, "label_p_value": p_value}
        if p_value < LABEL_SIGNIFICANCE and distance >= LABEL_DISTANCE:
            findings.append(_label_shift(name, distance, p_value))
    return findings, figures


def _told_apart(
    features: Features, tested: npt.NDArray[np.bool_], near: Sequence[str | None], seed: int
) -> tuple[float, Interval]:
    from dataclasses import replace

    y = np.where(tested, "test", "train").astype(object)
    folds = dealt_folds(replace(features, y=y), seed=seed, near=near)
    X = features.X.copy()
    for label in {*features.y.tolist()}:
        rows = np.array([other == label for other in features.y])
        X[rows] -= X[rows].mean(axis=0)
    judged = out_of_fold(LDAProbe(shrinkage=SHRINKAGE, temperature=1.0), X, y, folds)
    column = list(judged.classes).index("test")
    truth = judged.codes == column
    auc = float(roc_auc_score(truth, judged.probabilities[:, column]))
    return auc, _interval(auc, int(truth.sum()), int((~truth).sum()))


def _interval(auc: float, positives: int, negatives: int) -> Interval:
    """95 % interval of an AUC (Hanley and McNeil 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    reach = 1.96 * math.sqrt(max(variance, 0) / (positives * negatives))
    return max(auc - reach, 0.0), min(auc + reach, 1.0)


def _labels(labels: npt.NDArray[Any], tested: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Half the sum of differences of class shares, and the p-value of a chi-squared test."""
    codes = np.unique(labels.astype(str), return_inverse=True)[1]
    k = codes.max() + 1
    table = np.stack([np.bincount(codes[part], minlength=k) for part in (tested, ~tested)])
    shares = table / table.sum(axis=1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), float(chi2_contingency(table).pvalue)


def _shifted(name: str, auc: float, interval: Interval) -> Finding:
    severity = "high" if auc >= HIGH else "medium" if auc >= MEDIUM else "low"
    return Finding(
        kind="shift", severity=severity, split=name, score=auc,
        reason=f"a head tells images of this part from the others with an AUC of {auc:.2f} "
        f"(95 % interval {interval[0]:.2f} to {interval[1]:.2f}); 0.5 is chance",
    )  # fmt: skip


def _label_shift(name: str, distance: float, p_value: float) -> Finding:
    return Finding(
        kind="label-shift", severity="medium", split=name, score=distance,
        reason=f"{100 * distance:.0f} % of the images would have to change class for equal "
        f"frequencies (chi-squared test, p = {p_value:.1g})",
    )  # fmt: skip
