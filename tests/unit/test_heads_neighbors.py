from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads import KNNProbe, neighbors


def rows(n=150, d=5, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d))
    return X.astype(np.float32), np.array([f"c{code}" for code in codes], dtype=object)


def brute_force(X, codes, queries, k, temperature, class_count):
    unit = [Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (queries, X)]
    similarity = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    result = np.zeros((len(queries), class_count))
    for row, values in enumerate(similarity):
        for index in np.argsort(-values)[:k]:
            result[row, codes[index]] += np.exp(values[index] / temperature)
    return result / result.sum(axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 80), d=st.integers(2, 9), k=st.integers(1, 100), seed=st.integers(0, 99))
def test_equals_brute_force(n, d, k, seed):
    X, y = rows(n, d, seed=seed)
    queries = rows(17, d, seed=seed + 1000)[0]
    probe = KNNProbe(k).fit(X, y)
    expected = brute_force(X, probe.codes_, queries, k, 0.07, 3)
    np.testing.assert_allclose(probe.predict_proba(queries), expected, rtol=1e-4, atol=1e-7)


def test_blocks_do_not_show(monkeypatch):
    X, y = rows()
    whole = KNNProbe(20).fit(X, y).predict_proba(X)
    monkeypatch.setattr(neighbors, "HELD_NEIGHBORS", 7 * 20)
    monkeypatch.setattr(neighbors, "NORMALIZED_ROWS", 7)
    assert np.array_equal(KNNProbe(20).fit(X, y).predict_proba(X), whole)


def count_correct(X, codes, k, excluded):
    """Rows that are right by the votes of rows with another `excluded`."""
    correct = 0
    for row in range(len(X)):
        others = excluded != excluded[row]
        votes = brute_force(X[others], codes[others], X[[row]], k, 0.07, 3)
        correct += votes[0].argmax() == codes[row]
    return correct


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("group_size", [1, 15])
def test_auto_k_leaves_one_group_out(seed, group_size):
    X, y = rows(seed=seed)
    groups = (np.arange(150) // group_size).tolist()
    probe = KNNProbe("auto").fit(X, y, groups=groups)
    candidates = [10, 20, 100, 150]
    scores = [count_correct(X, probe.codes_, k, np.array(groups)) for k in candidates]
    assert probe.k_ == candidates[int(np.argmax(scores))]
    assert probe.selection_ == "leaving one out, 150 rows"


def test_copies_of_a_row_do_not_vote_for_it():
    """Labels are random: only copies could be right, and only a small k would hear them."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(60, 5)), 12, axis=0)
    y = np.repeat(rng.permutation(np.repeat(["a", "b", "b"], 20)), 12)
    groups = np.repeat(np.arange(60), 12).tolist()
    assert KNNProbe("auto").fit(X, y).k_ == 10
    assert KNNProbe("auto").fit(X, y, groups=groups).k_ > 10


def test_auto_k_by_folds():
    X, y = rows()
    folds = np.where(np.arange(150) < 100, -1, 0)
    assert KNNProbe("auto").fit(X, y, folds=folds).selection_ == "1 given fold, 50 rows"


@pytest.mark.parametrize("folds", [[-1] * 150, [0] * 150])
def test_auto_k_without_a_choice(folds):
    probe = KNNProbe("auto").fit(*rows(), folds=folds)
    assert (probe.k_, probe.selection_) == (20, "default: all rows belong to one group")


def test_k_is_clipped_and_zero_rows_are_neutral():
    X, y = rows(n=6)
    probe = KNNProbe(100).fit(X, y)
    assert probe.k_ == 6
    np.testing.assert_allclose(probe.predict_proba(np.zeros((1, 5))), 1 / 3)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": "all"}, {"k": 2.5}, {"temperature": 0.0}])
def test_wrong_options(options):
    with pytest.raises(ConfigurationError, match="expected"):
        KNNProbe(**options).fit(*rows())
