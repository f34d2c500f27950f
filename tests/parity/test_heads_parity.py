"""Heads and figures against scikit-learn, on its handwritten digits. Each tolerance says why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits
from torch import nn

from dinoprobe.evaluation import evaluate
from dinoprobe.heads import (
    KNNProbe,
    LDAProbe,
    LinearProbe,
    LogisticProbe,
    OutOfFold,
    PrototypeProbe,
    RidgeProbe,
    at_temperature,
    fit_temperature,
)
from dinoprobe.heads.axes import standardization
from dinoprobe.heads.base import softmax
from dinoprobe.heads.threads import one_torch_thread


@pytest.fixture(autouse=True)
def one_thread():
    """scikit-learn's products are small, and wait for each other on busy cores."""
    with threadpool_limits(1), one_torch_thread():
        yield


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:1000], y[:1000].astype(str), X[1000:], y[1000:].astype(str)


def objective(X, codes, C, weight, intercept):
    """Mean cross-entropy + |W|² / (2 C n), for weights of these (standardised) features."""
    P = softmax(X @ weight.T + intercept)
    loss = -np.log(P[np.arange(len(codes)), codes]).mean()
    return loss + np.square(weight).sum() / (2 * C * len(codes))


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1, 30])
def test_logistic_objective_and_probabilities(digits, C):
    """1e-6 at the default tol. Probabilities within 1e-3 at tol 1e-14: the objective is so flat
    around its minimum where C is large that at the default tol they differ by 0.05 at C = 30."""
    X, y, X_test, _ = digits
    scaler = StandardScaler().fit(X)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(scaler.transform(X), y)
    ours = LogisticProbe(C=C).fit(X, y)
    mean, scale = standardization(X)
    weight = ours.coef_.astype(np.float64) * scale
    codes = np.unique(y, return_inverse=True)[1]
    values = [
        objective((X - mean) / scale, codes, C, weight, ours.intercept_ + ours.coef_ @ mean),
        objective(scaler.transform(X), codes, C, theirs.coef_, theirs.intercept_),
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    expected = theirs.predict_proba(scaler.transform(X_test))
    np.testing.assert_array_equal(ours.predict(X_test), theirs.classes_[expected.argmax(axis=1)])
    sharp = LogisticProbe(C=C, tol=1e-14).fit(X, y)
    np.testing.assert_allclose(sharp.predict_proba(X_test), expected, atol=1e-3)


@pytest.mark.parametrize("C", [30, 1e4])
def test_logistic_objective_where_classes_come_apart(digits, C):
    """To 1e-6 of an objective of 1e-4 to 1e-7, where most of the curvature is gone."""
    X, y, _, _ = digits
    X, y = X[:100], y[:100]
    scaler = StandardScaler().fit(X)
    Z, codes = scaler.transform(X), np.unique(y, return_inverse=True)[1]
    theirs = LogisticRegression(C=C, tol=1e-12, max_iter=100_000).fit(Z, y)
    ours = LogisticProbe(C=C).fit(X, y)
    mean, scale = standardization(X)
    weight = ours.coef_.astype(np.float64) * scale
    value = objective(Z, codes, C, weight, ours.intercept_ + ours.coef_.astype(np.float64) @ mean)
    expected = objective(Z, codes, C, theirs.coef_, theirs.intercept_)
    assert ours.converged_
    assert value <= expected * (1 + 1e-6)


def test_logistic_uses_small_features_beside_a_huge_one(digits):
    """Without standardising: a variance of 1e-12 of the largest is no noise in float64."""
    X, y, _, _ = digits
    X = np.column_stack([X / 10, 1e5 * np.sin(np.arange(len(X)))])
    codes = np.unique(y, return_inverse=True)[1]
    ours = LogisticProbe(C=1.0, standardize=False).fit(X, y)
    plain = LogisticProbe(C=1.0, standardize=False).fit(X[:, :-1], y)
    values = [
        objective(X[:, : head.coef_.shape[1]], codes, 1.0, head.coef_, head.intercept_)
        for head in (ours, plain)
    ]
    assert values[0] <= values[1] * (1 + 1e-4)


def test_logistic_without_standardising(digits):
    """Probabilities within 1e-3, as above."""
    X, y, X_test, _ = digits
    theirs = LogisticRegression(C=0.01, tol=1e-8, max_iter=10_000).fit(X, y)
    ours = LogisticProbe(C=0.01, standardize=False).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X_test), theirs.predict_proba(X_test), atol=1e-3)


def test_logistic_two_classes_is_twice_the_strength(digits):
    """Two rows of weights w/2 and -w/2 have half the squared norm of one row w."""
    X, y, X_test, _ = digits
    y = np.where(np.char.isdigit(y) & (y.astype(int) % 2 == 0), "even", "odd")
    scaler = StandardScaler().fit(X)
    theirs = LogisticRegression(C=0.2, tol=1e-8, max_iter=10_000).fit(scaler.transform(X), y)
    ours = LogisticProbe(C=0.1).fit(X, y)
    expected = theirs.predict_proba(scaler.transform(X_test))
    np.testing.assert_allclose(ours.predict_proba(X_test), expected, atol=1e-3)


def test_logistic_with_more_features_than_rows(digits):
    X, y, X_test, _ = digits
    X, y = X[:50], y[:50]
    scaler = StandardScaler().fit(X)
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(scaler.transform(X), y)
    expected = theirs.predict_proba(scaler.transform(X_test))
    ours = LogisticProbe(C=0.1).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X_test), expected, atol=1e-3)


@pytest.mark.parametrize("shrinkage", [1e-3, 0.3])
def test_lda(digits, shrinkage):
    """Probabilities within 1e-4: weights are saved in float32. Constant pixels, which ours leaves
    out, would count in the d of scikit-learn's trace / d."""
    X, y, X_test, _ = digits
    varying = X.std(axis=0) > 0
    scaler = StandardScaler().fit(X[:, varying])
    theirs = LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage)
    theirs.fit(scaler.transform(X[:, varying]), y)
    ours = LDAProbe(shrinkage=shrinkage, temperature=1).fit(X, y)
    expected = theirs.predict_proba(scaler.transform(X_test[:, varying]))
    seen = np.isin(X_test[:, ~varying], 0).all(axis=1)
    np.testing.assert_allclose(ours.predict_proba(X_test[seen]), expected[seen], atol=1e-4)


def test_ridge_leaves_one_out(digits):
    """The same strength of 13 by squared error, and scores of the fit within 1e-4."""
    X, y, X_test, _ = digits
    alphas = np.logspace(-1, 5, 13)
    scaler = StandardScaler().fit(X)
    theirs = RidgeClassifierCV(alphas).fit(scaler.transform(X), y)
    results = RidgeProbe(alphas.tolist()).fit(X, y).cv_results_
    assert results["alpha"][results["squared_loss"].argmin()] == theirs.alpha_
    ours = RidgeProbe(alpha=theirs.alpha_, temperature=1).fit(X, y)
    expected = theirs.decision_function(scaler.transform(X_test))
    np.testing.assert_allclose(ours.logits(X_test), expected, atol=1e-4)


def test_closed_forms_are_accurate_and_calibrated(digits):
    """Logistic regression is right in 93 % of the test part."""
    X, y, X_test, y_test = digits
    for head, least in ((LDAProbe(), 0.9), (RidgeProbe(), 0.89), (PrototypeProbe(), 0.82)):
        evaluation = evaluate(y_test, head.fit(X, y).predict_proba(X_test), head.classes_)
        assert evaluation.accuracy > least
        assert evaluation.expected_calibration_error < 0.08


def test_logistic_picks_a_good_strength(digits):
    """scikit-learn at its default strength is right in 92.6 % of the test part."""
    X, y, X_test, y_test = digits
    scaler = StandardScaler().fit(X)
    theirs = LogisticRegression(max_iter=1000).fit(scaler.transform(X), y)
    baseline = theirs.score(scaler.transform(X_test), y_test)
    assert LogisticProbe().fit(X, y).score(X_test, y_test) >= baseline - 0.005


def test_linear_is_the_plain_torch_loop(digits):
    """The same start and order give the same weights, up to float32 rounding over 160 steps."""
    X, y, _, _ = digits
    X, codes = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y.astype(int))
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 10)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1 / 8, 1 / 8, generator=generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    history = []
    for _ in range(5):
        running_loss, batches = 0.0, torch.randperm(1000, generator=generator).split(32)
        for batch in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(layer(X[batch]), codes[batch])
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        history.append(running_loss / len(batches))
    ours = LinearProbe().fit(X.numpy(), y)
    np.testing.assert_allclose(ours.coef_, layer.weight.detach(), atol=1e-5)
    np.testing.assert_allclose(ours.loss_history_, history, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 20, 200])
def test_neighbors(digits, k):
    """1e-5: stored features are float32, and the temperature makes rounding 14 times larger."""
    X, y, X_test, _ = digits
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(normalize(X), y)
    expected = theirs.predict_proba(normalize(X_test))
    np.testing.assert_allclose(KNNProbe(k).fit(X, y).predict_proba(X_test), expected, atol=1e-5)


def test_evaluation(digits):
    """The same definitions: equal up to float64 rounding."""
    X, y, X_test, y_test = digits
    head = LogisticProbe(C=1e-4).fit(X[:100], y[:100])
    P, predicted, classes = head.predict_proba(X_test), head.predict(X_test), head.classes_.tolist()
    ours = evaluate(y_test.tolist(), P, classes)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        y_test, predicted, labels=classes, zero_division=0
    )
    assert ours.accuracy == pytest.approx(metrics.accuracy_score(y_test, predicted))
    assert ours.balanced_accuracy == pytest.approx(
        metrics.balanced_accuracy_score(y_test, predicted)
    )
    assert ours.log_loss == pytest.approx(metrics.log_loss(y_test, P, labels=classes))
    assert ours.top5_accuracy == pytest.approx(
        metrics.top_k_accuracy_score(y_test, P, k=5, labels=classes)
    )
    assert np.array_equal(ours.confusion, metrics.confusion_matrix(y_test, predicted))
    assert [c.recall for c in ours.per_class] == pytest.approx(recall.tolist())
    assert [c.precision or 0 for c in ours.per_class] == pytest.approx(precision.tolist())
    assert [c.f1 for c in ours.per_class] == pytest.approx(f1.tolist())
    assert [c.support for c in ours.per_class] == support.tolist()
    assert [ours.macro_precision, ours.macro_recall, ours.macro_f1] == pytest.approx(
        [precision.mean(), recall.mean(), f1.mean()]
    )


@pytest.mark.parametrize("C", [1e-3, 1e-1])
def test_temperature(digits, C):
    """0.015 in probabilities: the one row more that is counted here moves T by about 2 % of itself
    in 797 rows."""
    X, y, X_held, y_held = digits
    head = LogisticRegression(C=C, max_iter=10_000).fit(X / 16, y)
    theirs = CalibratedClassifierCV(FrozenEstimator(head), method="temperature", ensemble=False)
    theirs.fit(X_held / 16, y_held)
    P = head.predict_proba(X_held / 16)
    codes = np.searchsorted(head.classes_, y_held)
    judged = OutOfFold(head.classes_, np.arange(len(codes)), codes, P)
    found = at_temperature(P, fit_temperature(judged))
    np.testing.assert_allclose(found, theirs.predict_proba(X_held / 16), atol=0.015)
    assert np.abs(P - found).max() > 0.05
