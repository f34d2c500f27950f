"""Prediction sets against MAPIE, a library of its own for conformal prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.base import BaseEstimator, ClassifierMixin
from tests.unit.test_heads_conformal import halves

from dinoprobe.decisions import scores
from dinoprobe.heads import fit_sets

mapie = pytest.importorskip("mapie.classification")


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose features are its probabilities."""

    def __init__(self, class_count: int = 0) -> None:
        self.class_count = class_count

    def fit(self, X: np.ndarray, y: np.ndarray) -> Given:
        """Learn nothing."""
        self.classes_ = np.arange(self.class_count)
        self.n_features_in_ = self.class_count
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X).argmax(axis=1)


def conformal(method: str, coverage: float, known: Any) -> Any:
    """MAPIE's classifier with thresholds of the known part."""
    head = Given(known.probabilities.shape[1]).fit(known.probabilities, known.codes)
    found = mapie.SplitConformalClassifier(
        head, confidence_level=coverage, conformity_score=method, prefit=True, random_state=0
    )
    return found.conformalize(known.probabilities, known.codes)


@pytest.mark.parametrize("coverage", [0.55, 0.7, 0.9, 0.95])
def test_lac_sets_are_those_of_mapie(coverage: float) -> None:
    for seed in range(10):
        known, fresh = halves(seed)
        _, expected = conformal("lac", coverage, known).predict_set(fresh.probabilities)
        found = fit_sets(known, coverage=coverage).conforming(fresh.probabilities)
        np.testing.assert_array_equal(found, expected[:, :, 0])


def test_aps_scores_of_mapie_lie_a_random_part_of_the_label_beyond() -> None:
    """MAPIE adds a random share of the label's own probability, dinoprobe none (conformal.py)."""
    known, _ = halves(0)
    rows = np.arange(len(known))
    theirs = conformal("aps", 0.9, known)._mapie_classifier.conformity_scores_.ravel()
    own = scores(known.probabilities, "aps")[rows, known.codes]
    share = (theirs - own) / known.probabilities[rows, known.codes]
    assert share.min() > -1e-9
    assert share.max() < 1 + 1e-9
    assert kstest(share, "uniform").pvalue > 1e-3
