"""Other class frequencies: Bayes' rule, its place in a head, and the frequencies of new rows."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.errors import HeadError
from dinoprobe.heads import (
    KNNProbe,
    LDAProbe,
    LinearProbe,
    LogisticProbe,
    PrototypeProbe,
    RidgeProbe,
    apply_prior,
    class_prior,
    estimate_prior,
    from_state,
    prior_shares,
    sklearn_probe,
    to_state,
    under_prior,
)

CLASSES = ["a", "b", "c"]


def drawn(counts, seed=0, d=8, noise=1.6):
    """Rows of Gaussian classes, so many of each."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(len(counts), d))
    codes = np.repeat(np.arange(len(counts)), counts)
    X = centers[codes] + noise * rng.normal(size=(len(codes), d))
    return X.astype(np.float32), np.array([f"{chr(97 + code)}" for code in codes])


@pytest.mark.parametrize(
    "head", [LDAProbe(), LogisticProbe(C=0.1), RidgeProbe(), PrototypeProbe(), LinearProbe()]
)
def test_a_linear_head_takes_it_into_its_bias(head):
    X, y = drawn([200, 60, 20])
    head.fit(X, y)
    before, weight = head.predict_proba(X), head.coef_.copy()
    old, new = class_prior(head, y), prior_shares({"a": 1, "b": 2, "c": 7}, CLASSES)
    apply_prior(head, old, new)
    np.testing.assert_array_equal(head.coef_, weight)
    np.testing.assert_allclose(head.predict_proba(X), under_prior(before, old, new), rtol=1e-5)
    apply_prior(head, new, old)
    np.testing.assert_allclose(head.predict_proba(X), before, rtol=1e-5)


@pytest.mark.parametrize("class_weight", [None, {"c": 3}])
def test_neighbours_multiply_votes_and_are_saved(class_weight):
    X, y = drawn([200, 60, 20])
    head = KNNProbe(class_weight=class_weight).fit(X, y)
    before = head.predict_proba(X)
    old, new = class_prior(head, y), prior_shares("uniform", CLASSES)
    apply_prior(head, old, new)
    expected = under_prior(before, old, new)
    np.testing.assert_allclose(head.predict_proba(X), expected, rtol=1e-9)
    loaded = from_state(*to_state(head))
    np.testing.assert_allclose(loaded.predict_proba(X), expected, rtol=1e-9)


def test_other_heads_say_so():
    X, y = drawn([20, 20, 20])
    head = sklearn_probe("sklearn.naive_bayes.GaussianNB").fit(X, y)
    with pytest.raises(HeadError, match=r"SklearnProbe has no bias.*under_prior"):
        apply_prior(head, np.full(3, 1 / 3), np.full(3, 1 / 3))


def test_frequencies_that_a_head_is_for():
    X, y = drawn([60, 30, 10])
    np.testing.assert_allclose(class_prior(LDAProbe().fit(X, y), y), [0.6, 0.3, 0.1])
    balanced = LDAProbe(class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(class_prior(balanced, y), np.full(3, 1 / 3))
    twice = LDAProbe(class_weight={"c": 6}).fit(X, y)
    np.testing.assert_allclose(class_prior(twice, y), [0.4, 0.2, 0.4])
    np.testing.assert_allclose(class_prior(PrototypeProbe().fit(X, y), y), np.full(3, 1 / 3))


def test_lda_shifted_is_lda_with_these_priors():
    """The one head whose prior is a term of its own: shifting equals fitting with it."""
    X, y = drawn([300, 100, 30])
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    old = theirs.priors_
    shares = np.array([0.1, 0.2, 0.7])
    expected = theirs.predict_proba(X)
    theirs.intercept_ = theirs.intercept_ + np.log(shares / old)
    np.testing.assert_allclose(under_prior(expected, old, shares), theirs.predict_proba(X))


def test_uniform_prior_raises_balanced_accuracy_of_a_long_tail():
    counts = np.geomspace(300, 5, 12).astype(int)
    X, y = drawn(counts, d=16)
    queries, truth = drawn([200] * 12, seed=1, d=16)

    def balanced_accuracy(head):
        return np.mean(head.predict(queries) == truth)

    for head in (LogisticProbe(C=0.1), LDAProbe(), RidgeProbe()):
        before = balanced_accuracy(head.fit(X, y))
        apply_prior(head, class_prior(head, y), prior_shares("uniform", head.classes_))
        assert balanced_accuracy(head) > before + 0.05


def test_frequencies_of_new_rows_are_found():
    X, y = drawn([600, 300, 100])
    head = LDAProbe().fit(X, y)
    trained = class_prior(head, y)
    true = np.array([0.05, 0.15, 0.8])
    queries, truth = drawn((4000 * true).astype(int), seed=1)
    probabilities = head.predict_proba(queries)
    found = estimate_prior(probabilities, trained)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, true, atol=0.02)
    counted = probabilities.mean(axis=0)  # what would be read off without it
    assert np.abs(counted - true).max() > 3 * np.abs(found - true).max()
    better = under_prior(probabilities, trained, found).argmax(axis=1)
    accuracy = (head.classes_[better] == truth).mean()
    assert accuracy > (head.predict(queries) == truth).mean() + 0.02


def test_the_same_frequencies_stay():
    X, y = drawn([600, 300, 100])
    head = LDAProbe().fit(X, y)
    queries, _ = drawn([2400, 1200, 400], seed=1)
    found = estimate_prior(head.predict_proba(queries), class_prior(head, y))
    np.testing.assert_allclose(found, [0.6, 0.3, 0.1], atol=0.03)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("even", "'even'; expected \"uniform\""),
        ({"a": 1, "b": 1}, "lacks 'c'; expected a share for each of the 3 classes"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "names 'd', which is no class"),
        ({"a": 1, "b": 0, "c": 1}, "prior of 'b' is 0"),
        ({"a": 1, "b": "1", "c": 1}, "prior of 'b' is '1'"),
        (0.5, "is 0.5; expected"),
    ],
)
def test_wrong_priors(prior, message):
    with pytest.raises(HeadError, match=message):
        prior_shares(prior, CLASSES)


@pytest.mark.parametrize(
    ("probabilities", "trained"),
    [
        (np.ones((0, 3)), np.ones(3)),
        (np.ones((5, 3)), np.ones(2)),
        (np.ones(3), np.ones(3)),
        (np.ones((5, 3)), [1, 0, 1]),
        (np.full((5, 3), np.nan), np.ones(3)),
        (-np.ones((5, 3)), np.ones(3)),
    ],
)
def test_wrong_probabilities(probabilities, trained):
    with pytest.raises(HeadError, match="Probabilities of shape"):
        estimate_prior(probabilities, trained)
