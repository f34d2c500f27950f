"""Coverage is tested against its distribution: Beta(r, n + 1 - r) for the rank r of n scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, betabinom

from dinoprobe.decisions import scores
from dinoprobe.errors import ConfigurationError, FormatError
from dinoprobe.heads import OutOfFold, PredictionSets, fit_sets
from dinoprobe.heads.base import softmax

RESAMPLINGS = 100
ROWS, TESTED = 300, 1000


def drawn(n, k=6, seed=0):
    """Exchangeable rows whose probabilities are twice too sure: coverage must not rely on them."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, k))
    codes = (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    classes = np.array([f"class {j}" for j in range(k)], dtype=object)
    return OutOfFold(classes, np.arange(n), codes, softmax(2 * logits))


def halves(seed):
    """A part to take thresholds from, and a fresh one."""
    rows = drawn(ROWS + TESTED, seed=seed)
    parts = (slice(ROWS), slice(ROWS, None))
    return [
        OutOfFold(rows.classes, rows.rows[part], rows.codes[part], rows.probabilities[part])
        for part in parts
    ]


def covered(found, judged):
    return found[np.arange(len(judged)), judged.codes]


@pytest.mark.parametrize("coverage", [0.7, 0.9])
@pytest.mark.parametrize("method", ["lac", "aps"])
def test_coverage_on_fresh_rows_is_what_theory_says(method, coverage):
    rank = math.ceil((ROWS + 1) * coverage - 1e-9)
    law = betabinom(TESTED, rank, ROWS + 1 - rank)
    shares = []
    for seed in range(RESAMPLINGS):
        known, fresh = halves(seed)
        sets = fit_sets(known, method=method, coverage=coverage)
        hits = int(covered(sets.conforming(fresh.probabilities), fresh).sum())
        assert law.ppf(1e-7) <= hits <= law.ppf(1 - 1e-7)
        assert covered(sets.members(fresh.probabilities), fresh).sum() >= hits
        shares.append(hits / TESTED)
    expected, deviation = rank / (ROWS + 1), law.std() / TESTED
    assert expected == pytest.approx(beta(rank, ROWS + 1 - rank).mean())
    assert abs(np.mean(shares) - expected) < 4 * deviation / RESAMPLINGS**0.5
    assert 0.7 < np.std(shares) / deviation < 1.3


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_each_class_is_covered_where_that_is_asked_for(method):
    hits, counts = np.zeros(6), np.zeros(6)
    plain = np.zeros(6)
    for seed in range(RESAMPLINGS):
        known, fresh = (skewed(part) for part in halves(seed))
        sets = fit_sets(known, method=method, coverage=0.9, per_class=True)
        assert len(sets.thresholds) == 6
        own = np.bincount(
            fresh.codes, covered(sets.conforming(fresh.probabilities), fresh), minlength=6
        )
        for code in range(6):
            n, m = (int((part.codes == code).sum()) for part in (known, fresh))
            rank = math.ceil((n + 1) * 0.9 - 1e-9)
            law = betabinom(m, rank, n + 1 - rank)
            assert law.ppf(1e-7) <= own[code] <= law.ppf(1 - 1e-7)
        hits += own
        one = fit_sets(known, method=method, coverage=0.9)
        plain += np.bincount(
            fresh.codes, covered(one.conforming(fresh.probabilities), fresh), minlength=6
        )
        counts += np.bincount(fresh.codes, minlength=6)
    assert (hits / counts > 0.895).all()
    assert (hits / counts < 0.93).all()
    assert (plain / counts).min() < 0.87


def skewed(rows):
    """One class is systematically underrated."""
    probabilities = rows.probabilities * np.array([0.2, 1, 1, 1, 1, 1])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return OutOfFold(rows.classes, rows.rows, rows.codes, probabilities)


def test_scores_by_hand():
    P = np.array([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(scores(P, "lac"), 1 - P)
    np.testing.assert_allclose(scores(P, "aps"), [[0.0, 0.8, 0.5], [0.0, 0.4, 0.8]])


def ladder(n):
    """The label has the probabilities 1, 2 … n of n + 1."""
    P = np.arange(1, n + 1) / (n + 1)
    classes = np.array(["a", "b"], dtype=object)
    return OutOfFold(classes, np.arange(n), np.zeros(n, dtype=int), np.stack([P, 1 - P], axis=1))


def test_the_rank_counts_one_row_more():
    judged = ladder(9)
    assert fit_sets(judged, coverage=0.9).thresholds == (pytest.approx(0.9),)
    assert fit_sets(judged, coverage=0.7).thresholds == (pytest.approx(0.7),)
    assert fit_sets(judged, coverage=0.5).thresholds == (pytest.approx(0.5),)
    assert fit_sets(judged, coverage=0.91).thresholds == (math.inf,)


def test_the_rank_is_not_moved_by_rounding():
    assert 100 * 0.55 > 55
    assert fit_sets(ladder(99), coverage=0.55).thresholds == (pytest.approx(0.55),)


def test_too_few_rows_put_the_label_into_every_set():
    judged = drawn(400)
    rare = OutOfFold(
        judged.classes,
        judged.rows,
        np.where((judged.codes == 3) & (judged.rows > 20), 4, judged.codes),
        judged.probabilities,
    )
    sets = fit_sets(rare, per_class=True)
    assert sets.thresholds[3] == math.inf
    assert sets.members(rare.probabilities)[:, 3].all()
    assert not sets.members(rare.probabilities)[:, 0].all()


def test_a_set_is_never_empty():
    sets = PredictionSets("lac", 0.9, (0.01,), 100)
    P = np.array([[0.5, 0.3, 0.2], [0.995, 0.005, 0.0]])
    assert sets.conforming(P).tolist() == [[False] * 3, [True, False, False]]
    assert sets.members(P).tolist() == [[True, False, False]] * 2


def test_sets_of_the_least_mean_size_and_sets_that_follow_the_image():
    known, fresh = halves(0)
    sizes = {
        method: fit_sets(known, method=method).members(fresh.probabilities).sum(axis=1)
        for method in ("lac", "aps")
    }
    assert sizes["lac"].mean() < sizes["aps"].mean()


@pytest.mark.parametrize("per_class", [False, True])
def test_values_of_json_and_back(per_class):
    sets = fit_sets(drawn(40), method="aps", coverage=0.9, per_class=per_class)
    assert PredictionSets.from_dict(sets.to_dict(), 6) == sets
    assert (None in sets.to_dict()["thresholds"]) == per_class


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "raps"}, "'raps'"),
        ({"coverage": 1.0}, "1.0"),
        ({"coverage": "much"}, "ValueError"),
        ({"thresholds": [0.1, 0.2]}, "2 thresholds for 6 classes"),
        ({"thresholds": 0.1}, "TypeError"),
        ({"thresholds": [float("nan")]}, "no number"),
        ({"n": "many"}, "no number"),
    ],
)
def test_damaged_values_are_refused(change, message):
    values = fit_sets(drawn(40)).to_dict() | change
    with pytest.raises(FormatError, match=message):
        PredictionSets.from_dict(values, 6)
    with pytest.raises(FormatError, match="Saved prediction sets"):
        PredictionSets.from_dict(None, 6)


def test_a_method_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="expected one of lac, aps"):
        fit_sets(drawn(40), method="raps")
    with pytest.raises(ConfigurationError, match="coverage is 0"):
        fit_sets(drawn(40), coverage=0)
