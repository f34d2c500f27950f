"""The flag for what was never seen: its distances, its promised share, its saved form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from dinoprobe.errors import ConfigurationError, FormatError, HeadError
from dinoprobe.heads import Novelty, fit_novelty, left_out_scores
from dinoprobe.heads import novelty as module
from dinoprobe.heads.folds import deal_folds

METHODS = ("mahalanobis", "knn")


def drawn(n=300, d=20, k=4, seed=0):
    """Classes apart in 6 directions, which vary 3 times as much within each as the others do."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    spread = np.where(np.arange(d) < 6, 3.0, 1.0)
    centers = np.random.default_rng(99).normal(size=(k, d)) * np.where(np.arange(d) < 6, 6.0, 0)
    X = 5 + centers[codes] + spread * rng.normal(size=(n, d))
    return X.astype(np.float32), np.array([f"class {c}" for c in codes], dtype=object)


def fitted(X, y, method="mahalanobis", share=0.01):
    folds = deal_folds(np.unique(y, return_inverse=True)[1], None, 20, 0)
    return fit_novelty(X, y, left_out_scores(X, y, folds, method), method=method, share=share)


def plain_relative(X, y, rows):
    """Relative Mahalanobis as its formula says it, in all directions, float64."""
    center, deviation = X.mean(axis=0, dtype=np.float64), X.astype(np.float64).std(axis=0)
    Z, Q = (X - center) / deviation, (rows - center) / deviation
    codes = np.unique(y, return_inverse=True)[1]
    means = np.stack([Z[codes == j].mean(axis=0) for j in range(codes.max() + 1)])

    def inverse(residuals, free):
        S = residuals.T @ residuals / free
        return np.linalg.inv(0.7 * S + 0.3 * S.trace() / len(S) * np.eye(len(S)))

    within, overall = inverse(Z - means[codes], len(Z) - len(means)), inverse(Z, len(Z) - 1)
    far = [((Q - m) @ within * (Q - m)).sum(axis=1) for m in means]
    return np.min(far, axis=0) - (Q @ overall * Q).sum(axis=1)


def test_the_distance_is_the_formula():
    X, y = drawn()
    rows = drawn(50, seed=1)[0]
    np.testing.assert_allclose(
        fitted(X, y).scores(rows), plain_relative(X, y, rows), rtol=1e-3, atol=2e-3
    )


def test_directions_that_are_left_out_share_one_variance(monkeypatch):
    X, y = drawn(2000)
    rows = np.concatenate([drawn(200, seed=1)[0], 3 * drawn(200, seed=2)[0]])
    monkeypatch.setattr(module, "DIRECTIONS", 12)
    few = fitted(X, y)
    assert few.arrays["axes"].shape == (20, 12)
    assert np.corrcoef(few.scores(rows), plain_relative(X, y, rows))[0, 1] > 0.95


def test_the_neighbour_is_the_fifth():
    X, y = drawn(40)
    rows = drawn(7, seed=1)[0].astype(np.float64)
    unit, queries = (Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (X, rows))
    expected = 1 - np.sort(queries @ unit.T, axis=1)[:, -5]
    np.testing.assert_allclose(fitted(X, y, "knn").scores(rows), expected, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_promised_share_of_fresh_images_is_flagged(method):
    hits, n = 0, 400
    for seed in range(100):
        X, y = drawn(500, seed=2 * seed)
        found = fitted(X, y, method)
        assert found.share == pytest.approx(5 / 501)
        hits += int(found.flags(found.scores(drawn(n, seed=2 * seed + 1)[0])).sum())
    assert 0.007 < hits / (100 * n) < 0.013


@pytest.mark.parametrize("method", METHODS)
def test_the_threshold_is_of_scores_that_the_rows_did_not_give_themselves(method):
    """Few rows in many dimensions: scores of the rows themselves would flag nearly everything."""
    hits, n = [], 100
    for seed in range(40):
        X, y = drawn(60, d=200, seed=2 * seed)
        found = fitted(X, y, method, share=0.1)
        hits.append(int(found.flags(found.scores(drawn(n, d=200, seed=2 * seed + 1)[0])).sum()))
    assert max(hits) <= betabinom(n, 6, 55).ppf(1 - 1e-5)
    assert 0.01 < np.mean(hits) / n < 0.13
    if method == "knn":
        return
    own = found.scores(X)
    assert np.median(own) < np.quantile(found.scores(drawn(n, d=200, seed=1)[0]), 0.05)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_elsewhere_is_flagged(method):
    X, y = drawn()
    found = fitted(X, y, method)
    strange = np.random.default_rng(3).normal(size=(100, 20)) * 20
    assert found.flags(found.scores(strange)).mean() > 0.9


def test_a_class_that_was_not_trained_on_is_farther_than_those_that_were():
    X, y = drawn(800, k=5)
    known, new = y != "class 4", y == "class 4"
    found = fitted(X[known], y[known])
    fresh, names = drawn(400, k=5, seed=1)
    typical = np.median(found.scores(fresh[names != "class 4"]))
    assert (found.scores(X[new]) > typical).mean() > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_a_score_does_not_depend_on_the_other_rows(method):
    X, y = drawn()
    found = fitted(X, y, method)
    rows = drawn(150, seed=1)[0]
    whole = found.scores(rows)
    assert found.scores(rows[70:71])[0] == whole[70]
    assert found.scores(rows[:0]).shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_few_rows_constant_features_and_lone_classes_are_finite(method):
    X, y = drawn(9, d=50, k=4)
    X[:, 7], X[:, 8] = 3.0, 0.0
    rows = drawn(20, d=50, seed=1)[0]
    assert np.isfinite(fitted(X, y, method).scores(rows)).all()
    alone = fit_novelty(X[:4], y[:4], np.array([1.0]), method=method)
    assert np.isfinite(alone.scores(rows)).all()
    copies = fit_novelty(np.repeat(X[:4], 5, axis=0), np.repeat(y[:4], 5), np.array([1.0]))
    assert np.isfinite(copies.scores(rows)).all()
    same = fit_novelty(np.ones((4, 5), dtype=np.float32), y[:4], np.array([1.0]), method=method)
    assert np.isfinite(same.scores(np.ones((2, 5)))).all()


def test_too_few_scores_say_what_share_they_give():
    X, y = drawn(24)
    found = fitted(X, y)
    assert (found.n, found.share) == (24, pytest.approx(1 / 25))
    with pytest.raises(HeadError, match="no scores of rows that were left out"):
        fit_novelty(X, y, np.empty(0))


def test_what_is_kept_is_bounded(monkeypatch):
    X, y = drawn(3000, d=12)
    monkeypatch.setattr(module, "NEIGHBOUR_ROWS", 100)
    rows = fitted(X, y, "knn").arrays["rows"]
    assert (rows.shape, rows.dtype) == ((100, 12), np.float16)
    monkeypatch.setattr(module, "FITTED_ROWS", 8)
    assert fitted(X, y).arrays["means"].shape == (4, 7)


@pytest.mark.parametrize("method", METHODS)
def test_values_and_arrays_and_back(method):
    X, y = drawn()
    found = fitted(X, y, method)
    read = Novelty.from_dict(found.to_dict(), found.arrays, 20)
    np.testing.assert_array_equal(read.scores(X), found.scores(X))
    assert read.to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "distance"}, "'distance'"),
        ({"threshold": None}, "TypeError"),
        ({"threshold": float("nan")}, "a threshold, a share or a count"),
        ({"share": 1.0}, "a threshold, a share or a count"),
        ({"n": 2.5}, "a threshold, a share or a count"),
    ],
)
def test_damaged_values_are_refused(change, message):
    found = fitted(*drawn(40))
    with pytest.raises(FormatError, match=message):
        Novelty.from_dict(found.to_dict() | change, found.arrays, 20)
    with pytest.raises(FormatError, match="Saved measure of novelty"):
        Novelty.from_dict([], found.arrays, 20)


@pytest.mark.parametrize("method", METHODS)
def test_damaged_arrays_are_refused(method):
    found = fitted(*drawn(40), method)
    for name, array in found.arrays.items():
        cut = {**found.arrays, name: array[..., :-1]}
        spoiled = {**found.arrays, name: np.full_like(array, np.nan)}
        double = {**found.arrays, name: array.astype(np.float64)}
        absent = {key: value for key, value in found.arrays.items() if key != name}
        for arrays in (cut, spoiled, double, absent, {**found.arrays, "more": array}):
            with pytest.raises(FormatError, match="Saved measure of novelty: arrays"):
                Novelty.from_dict(found.to_dict(), arrays, 20)
    with pytest.raises(FormatError, match="arrays"):
        Novelty.from_dict(found.to_dict(), found.arrays, 21)


def test_what_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match="expected one of mahalanobis, knn"):
        fit_novelty(*drawn(40), np.ones(40), method="energy")
    with pytest.raises(ConfigurationError, match="share is 0"):
        fit_novelty(*drawn(40), np.ones(40), share=0)
