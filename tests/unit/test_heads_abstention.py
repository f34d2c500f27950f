"""A threshold that keeps its target on fresh images, and measures of confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logsumexp

from dinoprobe.errors import ConfigurationError, FormatError, HeadError
from dinoprobe.heads import (
    Abstention,
    LogisticProbe,
    check_abstention,
    confidence,
    fit_abstention,
    least_count,
)
from dinoprobe.heads.abstention import lower_bound
from dinoprobe.heads.base import softmax


def drawn(n, seed):
    """Confidences, and answers right with 0.6 to 1 the surer they are."""
    rng = np.random.default_rng(seed)
    sure = rng.random(n)
    return sure, rng.random(n) < right(sure)


def right(sure):
    return 0.6 + 0.4 * np.sqrt(sure)


def true_accuracy(threshold):
    return right(np.linspace(threshold, 1, 2001)).mean()


@pytest.mark.parametrize(("n", "target"), [(500, 0.9), (1200, 0.9), (1200, 0.95)])
def test_the_target_is_kept_on_fresh_images_and_most_are_answered(n, target):
    rules = [fit_abstention("probability", *drawn(n, seed), target) for seed in range(200)]
    found = [rule for rule in rules if rule is not None]
    missed = sum(true_accuracy(rule.threshold) < target for rule in found)
    assert missed / 200 < 0.08
    assert len(found) > 0.5 * len(rules)
    best = max(c for c in np.linspace(0.01, 1, 100) if true_accuracy(1 - c) >= target)
    assert 0.5 * best < np.mean([rule.coverage for rule in found]) < best


def test_the_point_estimate_would_miss_it_every_other_time():
    """Why there is a bound: without it the same draws miss the target."""
    missed = 0
    for seed in range(200):
        sure, correct = drawn(1200, seed)
        order = np.argsort(-sure)
        kept = np.flatnonzero(correct[order].cumsum() / np.arange(1, 1201) >= 0.9)
        missed += true_accuracy(sure[order[kept[-1]]]) < 0.9
    assert missed / 200 > 0.3


def test_what_is_told_is_what_the_threshold_does():
    sure, correct = drawn(800, 0)
    sure = np.round(sure, 2)  # many are equally sure, and answered together
    rule = fit_abstention("probability", sure, correct, 0.9)
    answered = sure >= rule.threshold
    assert rule.coverage == answered.mean()
    assert rule.accuracy == correct[answered].mean()
    assert (rule.by, rule.target, rule.n) == ("probability", 0.9, 800)
    P = np.stack([0.5 + sure / 2, 0.5 - sure / 2], axis=1)
    there = Abstention("probability", 0.5 + rule.threshold / 2, 0.9, 0.5, 0.95, 800)
    np.testing.assert_array_equal(there.answers(P, None), answered)


def test_no_threshold_keeps_a_target_that_can_not_be_shown():
    sure, correct = drawn(250, 0)
    assert least_count(0.99) == 299
    assert fit_abstention("probability", sure, np.ones(250, dtype=bool), 0.99) is None
    assert fit_abstention("probability", sure, correct, 0.97) is None
    every = fit_abstention("probability", sure, np.ones(250, dtype=bool), 0.98)
    assert every.coverage == 1
    assert lower_bound(299, 299) >= 0.99 > lower_bound(298, 298)


def test_the_bound_is_that_of_clopper_and_pearson():
    from scipy.stats import binomtest

    for hits, count in ((7, 10), (95, 100), (10, 10)):
        exact = binomtest(hits, count).proportion_ci(confidence_level=0.9, method="exact")
        assert lower_bound(hits, count) == pytest.approx(exact.low)
    assert lower_bound(0, 10) == 0


def test_energy_is_the_logarithm_of_the_sum_over_centred_logits():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5))
    head = LogisticProbe(C=1.0).fit(X, np.array(["a", "b", "c"] * 20, dtype=object))
    logits = head.logits(X)
    expected = logsumexp(logits - logits.mean(axis=1, keepdims=True), axis=1)
    np.testing.assert_allclose(confidence("energy", softmax(logits), None), expected, atol=1e-9)
    sure = confidence("energy", np.array([[1.0, 0.0], [0.5, 0.5]]), None)
    assert np.isfinite(sure).all()
    assert sure[0] > sure[1] == pytest.approx(math.log(2))


def test_other_measures_by_hand():
    P = np.array([[0.6, 0.4], [0.1, 0.9]])
    assert confidence("probability", P, None).tolist() == [0.6, 0.9]
    assert confidence("distance", P, np.array([3.0, -1.0])).tolist() == [-3.0, 1.0]
    with pytest.raises(HeadError, match="scores of novelty"):
        confidence("distance", P, None)


def test_values_and_back_and_what_is_refused():
    rule = Abstention("energy", -1.5, 0.9, 0.7, 0.93, 100)
    assert Abstention.from_dict(rule.to_dict(), has_novelty=False) == rule
    near = Abstention("distance", -1.5, 0.9, 0.7, 0.93, 100)
    assert Abstention.from_dict(near.to_dict(), has_novelty=True) == near
    for damaged in ([], {}, {**rule.to_dict(), "accuracy": float("inf")}, near.to_dict()):
        with pytest.raises(FormatError, match="Saved rule of abstention"):
            Abstention.from_dict(damaged, has_novelty=False)
    with pytest.raises(ConfigurationError, match="expected one of probability, energy, distance"):
        check_abstention("entropy", 0.9)
    with pytest.raises(ConfigurationError, match="target accuracy is 1"):
        check_abstention("energy", 1)
