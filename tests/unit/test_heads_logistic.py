from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from dinoprobe.errors import HeadError
from dinoprobe.heads import LogisticProbe
from dinoprobe.heads.axes import standardization
from dinoprobe.heads.folds import check_folds, deal_folds, group_codes, split_folds
from dinoprobe.heads.problem import SMALL_WORK, prepare
from dinoprobe.heads.solver import solve, solve_path, to_feature_space


def noisy(n=120, d=8, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = rng.normal(size=(k, d))[codes] + 1.5 * rng.normal(size=(n, d))
    return X.astype(np.float32), np.array([f"class {code}" for code in codes], dtype=object)


class TestSelection:
    def test_results_of_every_strength(self):
        probe = LogisticProbe().fit(*noisy())
        judged = probe.cv_results_["C"]
        assert judged.tolist() == pytest.approx(np.logspace(-4, 1.5, 12)[: len(judged)])
        assert probe.cv_results_["accuracy"].shape == probe.cv_results_["log_loss"].shape
        assert probe.cv_results_["accuracy"].shape == judged.shape
        assert probe.C_ in probe.cv_results_["C"]
        assert probe.selection_.startswith("5 stratified folds")
        assert probe.converged_
        assert probe.n_iter_ >= 1

    def test_most_accurate_then_smaller_log_loss(self):
        probe = LogisticProbe(Cs=(10, 0.001, 0.1)).fit(*noisy())
        results = probe.cv_results_
        assert results["C"].tolist() == [0.001, 0.1, 10]
        best = results["accuracy"] == results["accuracy"].max()
        expected = results["C"][best][results["log_loss"][best].argmin()]
        np.testing.assert_allclose(probe.C_, expected)

    def test_given_strength_skips_selection(self):
        probe = LogisticProbe(C=0.5).fit(*noisy())
        assert (probe.C_, probe.selection_, probe.cv_results_) == (0.5, "given", None)

    def test_given_folds_win(self):
        X, y = noisy()
        folds = np.where(np.arange(len(y)) < 90, -1, 0)
        probe = LogisticProbe().fit(X, y, groups=["all"] * len(y), folds=folds)
        assert probe.selection_.startswith("1 given fold")
        held_out = LogisticProbe(C=probe.C_, tol=1e-6).fit(X[:90], y[:90])
        best = list(probe.cv_results_["C"]).index(probe.C_)
        accuracy = (held_out.predict(X[90:]) == y[90:]).mean()
        assert probe.cv_results_["accuracy"][best] == pytest.approx(accuracy)

    def test_says_when_at_the_edge(self):
        probe = LogisticProbe(Cs=(1e-6, 1e-5)).fit(*noisy())
        assert probe.selection_ == "5 stratified folds, at the edge of the path"

    def test_one_sample_of_each_class(self):
        X, y = noisy(n=3)
        probe = LogisticProbe().fit(X, y)
        assert probe.C_ == 0.1
        assert "no class has rows to train and to validate" in probe.selection_

    def test_one_class_with_a_single_sample(self):
        X, y = noisy()
        y[0] = "rare"
        probe = LogisticProbe().fit(X, y)
        assert probe.selection_.startswith("5 stratified folds")
        assert "rare" in probe.classes_

    def test_two_samples_of_each_class(self):
        X, y = noisy(n=4, k=2)
        assert LogisticProbe().fit(X, y).selection_.startswith("4 stratified folds")

    def test_a_single_group(self):
        X, y = noisy()
        probe = LogisticProbe().fit(X, y, groups=["one"] * len(y))
        assert probe.selection_.startswith("default")

    def test_class_in_one_group_only(self):
        X, y = noisy()
        groups = np.where(y == "class 0", "g0", np.arange(len(y)).astype(str))
        assert LogisticProbe().fit(X, y, groups=groups).classes_.shape == (3,)

    def test_same_seed_same_head(self):
        fits = [LogisticProbe(random_state=3).fit(*noisy()) for _ in range(2)]
        assert np.array_equal(fits[0].coef_, fits[1].coef_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0.0}, "positive, finite"),
        ({"C": float("nan")}, "positive, finite"),
        ({"Cs": ()}, "positive, finite"),
        ({"Cs": (1, -1)}, r"\[-1.0, 1.0\]"),
        ({"cv": 1}, "cv is 1; expected at least 2"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(HeadError, match=message):
        LogisticProbe(**options).fit(*noisy())


def test_says_when_not_converged():
    with pytest.warns(ConvergenceWarning, match="stopped after 2 iterations at C = 10, "):
        probe = LogisticProbe(C=10, max_iter=2).fit(*noisy())
    assert not probe.converged_


def test_separable_classes_converge_at_weak_regularisation():
    X, y = noisy(n=40, d=200)
    probe = LogisticProbe(C=1e4).fit(X, y)
    assert probe.converged_
    assert (probe.predict(X) == y).all()


def test_says_when_rounding_ends_it(monkeypatch):
    """float32 can not tell what is left of an objective of 1e-6: more iterations would not help."""
    monkeypatch.setattr("dinoprobe.heads.problem.SMALL_WORK", 0)
    X, y = noisy(n=40, d=200)
    with pytest.warns(ConvergenceWarning, match=r"rounding hides any decrease\. Take a smaller C"):
        probe = LogisticProbe(C=1e5).fit(X, y)
    assert not probe.converged_
    assert probe.n_iter_ < probe.max_iter


def test_what_rounding_leaves_is_little_within_the_path(monkeypatch):
    X, y = noisy(n=40, d=200)
    exact = LogisticProbe(C=31.6).fit(X, y)
    monkeypatch.setattr("dinoprobe.heads.problem.SMALL_WORK", 0)
    rounded = LogisticProbe(C=31.6).fit(X, y)
    assert rounded.converged_
    np.testing.assert_allclose(rounded.predict_proba(X), exact.predict_proba(X), rtol=0.01)


def test_rounding_of_weights_is_not_multiplied_by_the_mean():
    X, y = noisy()
    X = np.round(X * 64).astype(np.float64) / 64  # so that the shift is exact
    codes = np.unique(y, return_inverse=True)[1]
    logits = []
    for rows in (X, X + 2.0**16):
        problem = prepare(rows, codes, 3)
        weight, intercept = to_feature_space(problem, solve(problem, 1.0, tol=1e-12, max_iter=500))
        logits.append(rows @ weight.astype(np.float32).T.astype(np.float64) + intercept)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)


def test_standardisation_is_folded_in():
    X, y = noisy()
    factor = 10.0 ** np.arange(-3, 5)
    shifted = (X * factor + 5 * factor).astype(np.float64)
    plain, moved = LogisticProbe(C=0.1).fit(X, y), LogisticProbe(C=0.1).fit(shifted, y)
    np.testing.assert_allclose(moved.predict_proba(shifted), plain.predict_proba(X), atol=1e-5)


def test_nearly_constant_feature_is_not_blown_up():
    X, y = noisy()
    X[:, 0] = 1000 + np.float32(1e-4) * (np.arange(len(X)) % 2)
    assert np.abs(LogisticProbe(C=10).fit(X, y).intercept_).max() < 1e4


def test_standardization_of_constant_feature():
    mean, scale = standardization(np.array([[3.0, 0.0], [3.0, 2.0]]))
    assert mean.tolist() == [3, 1]
    assert scale.tolist() == [1, 1]


def test_more_features_than_rows_cost_no_more_axes():
    X, y = noisy(n=20, d=100)
    problem = prepare(X, np.unique(y, return_inverse=True)[1], 3)
    (lane,) = problem.lanes.lanes
    assert [tuple(chunk.kept.shape) for chunk in lane] == [(20, 19)]
    np.testing.assert_allclose(problem.axes.T @ problem.axes, np.eye(19), atol=1e-10)


def objective(X, codes, C, problem, solution, weights=None):
    """Mean cross-entropy + |W|² / (2 C n) in float64, of standardised features."""
    weight, intercept = to_feature_space(problem, solution)
    logits = X.astype(np.float64) @ weight.T + intercept
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(codes)), codes]
    losses = np.log(np.exp(logits).sum(axis=1)) - own
    total = len(codes) if weights is None else weights.sum()
    standardised = weight * problem.scale
    penalty = np.square(standardised).sum() / (2 * C * total)
    return np.average(losses, weights=weights) + penalty


def test_path_equals_single_solutions():
    X, y = noisy(n=200)
    codes = np.unique(y, return_inverse=True)[1]
    problem = prepare(X, codes, 3)
    path = solve_path(problem, [0.01, 0.1, 1], tol=1e-9, max_iter=500)
    for on_path in path:
        alone = solve(problem, on_path.C, tol=1e-9, max_iter=500)
        values = [objective(X, codes, s.C, problem, s) for s in (on_path, alone)]
        assert values[0] == pytest.approx(values[1], rel=1e-7)
        assert on_path.value == pytest.approx(values[0], rel=1e-6)


def large(n=24_000, d=400, k=7, seed=0):
    """More values than small problems have, so that coarse products are used."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, n)
    X = 0.1 * rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.3
    return (3 + X).astype(np.float32), codes


class TestLargeProblems:
    def test_coarse_and_exact_products_find_the_same_minimum(self, monkeypatch):
        """The path's objective within 1e-4 of the float64 minimum, the final one within 1e-7."""
        X, codes = large()
        assert X.size * 7 > SMALL_WORK
        problem = prepare(X, codes, 7)
        path = solve_path(problem, [1e-3, 1e-2, 1e-1], tol=1e-4, max_iter=200)
        exact = solve(problem, 1e-1, tol=1e-8, max_iter=500)
        monkeypatch.setattr("dinoprobe.heads.problem.SMALL_WORK", 7 * X.size)
        wide = prepare(X.astype(np.float64), codes, 7)
        best = solve(wide, 1e-1, tol=1e-12, max_iter=1000)
        least = objective(X, codes, 1e-1, wide, best)
        assert exact.converged
        assert best.converged
        assert 0 <= objective(X, codes, 1e-1, problem, path[-1]) / least - 1 < 3e-4
        assert abs(objective(X, codes, 1e-1, problem, exact) / least - 1) < 1e-6
        own, theirs = (to_feature_space(*each)[0] for each in ((problem, exact), (wide, best)))
        assert np.abs(own - theirs).max() < 1e-3 * np.abs(theirs).max()

    def test_the_number_of_threads_changes_nothing(self):
        X, codes = large()
        found = []
        for threads in (1, 3):
            problem = prepare(X, codes, 7, threads=threads)
            found.append(solve(problem, 1e-2, tol=1e-6, max_iter=100).point)
        assert torch.equal(found[0], found[1])

    def test_features_are_left_as_they_were(self):
        X, codes = large()
        before = X.copy()
        LogisticProbe().fit(X, codes.astype(str))
        assert np.array_equal(X, before)

    def test_constant_features_and_a_large_mean(self):
        X, codes = large()
        X[:, 5], X[:, 6] = 7.0, 1e4 + X[:, 6]
        head = LogisticProbe(C=0.01).fit(X, codes.astype(str))
        assert head.converged_
        assert (head.predict(X) == codes.astype(str)).mean() > 0.9


def test_a_path_ends_where_it_only_gets_worse():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 100))
    y = np.where(X[:, 0] + 2 * rng.normal(size=400) > 0, "a", "b")
    probe = LogisticProbe().fit(X, y)
    results = probe.cv_results_
    assert len(results["C"]) < 12
    assert (results["accuracy"][-2:] < results["accuracy"].max()).all()
    assert (results["log_loss"][-2:] > results["log_loss"].min()).all()


class TestWeights:
    def test_weights_are_repeated_rows(self):
        X, y = noisy()
        weights = np.random.default_rng(0).integers(0, 4, len(y))
        weighted = LogisticProbe(C=0.1).fit(X, y, sample_weight=weights)
        repeated = LogisticProbe(C=0.1).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)
        np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, atol=1e-5)

    def test_weights_are_repeated_rows_in_the_choice(self):
        X, y = noisy()
        folds = np.arange(len(y)) // 3 % 3
        weights = np.random.default_rng(0).integers(1, 4, len(y))
        weighted = LogisticProbe().fit(X, y, folds=folds, sample_weight=weights)
        repeated = LogisticProbe().fit(
            np.repeat(X, weights, 0), np.repeat(y, weights), folds=np.repeat(folds, weights)
        )
        for name in ("C", "accuracy", "log_loss"):
            np.testing.assert_allclose(
                weighted.cv_results_[name], repeated.cv_results_[name], rtol=1e-4
            )

    def test_weights_of_a_large_problem(self):
        X, codes = large()
        weights = np.random.default_rng(0).integers(1, 3, len(codes)).astype(float)
        problem = prepare(X, codes, 7, weights=weights)
        solution = solve(problem, 0.01, tol=1e-8, max_iter=500)
        rows = np.repeat(np.arange(len(codes)), weights.astype(int))
        repeated = prepare(X, codes[rows], 7, rows=rows)
        expected = solve(repeated, 0.01, tol=1e-8, max_iter=500)
        values = [
            objective(X, codes, 0.01, *found, weights=weights)
            for found in ((problem, solution), (repeated, expected))
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-6)

    def test_balanced_classes_count_alike(self):
        X, y = noisy(n=300)
        y[100:] = "class 0"
        plain, balanced = (
            LogisticProbe(C=0.1, class_weight=w).fit(X, y) for w in (None, "balanced")
        )
        means = [head.predict_proba(X)[:, 0].mean() for head in (plain, balanced)]
        assert means[0] > 0.7
        assert means[1] < 0.5


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    fold_count=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_dealt_folds(codes, fold_count, seed):
    codes = np.array(codes)
    folds = deal_folds(codes, None, fold_count, seed)
    counts = np.bincount(codes)
    assert ((folds == -1) == (counts[codes] == 1)).all()
    for code in np.unique(codes[folds >= 0]):
        sizes = np.bincount(folds[codes == code], minlength=folds.max() + 1)
        assert sizes.max() - sizes.min() <= 1
    for train, validation in split_folds(folds, codes):
        assert set(codes[validation]) <= set(codes[train])
        assert not set(train) & set(validation)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdef") | st.none()), min_size=2))
def test_groups_stay_together(rows):
    codes, groups = np.array([code for code, _ in rows]), [group for _, group in rows]
    folds = deal_folds(codes, groups, 3, 0)
    units = group_codes(groups, len(rows))
    assert all(len(set(folds[units == unit])) == 1 for unit in units)
    assert len(set(units)) == len(set(groups) - {None}) + groups.count(None)


@pytest.mark.parametrize("folds", [[0, 1], [0.0, 1.0, 2.0], [0, 1, -2], ["a", "b", "c"]])
def test_wrong_folds(folds):
    with pytest.raises(HeadError, match="expected 3 integers"):
        check_folds(folds, 3)


def test_wrong_groups():
    with pytest.raises(HeadError, match="2 groups for 3 rows"):
        group_codes(["a", "b"], 3)
