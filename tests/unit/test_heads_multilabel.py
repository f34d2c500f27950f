"""Several labels a row: scikit-learn's one-vs-rest as the oracle, choices against refits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from dinoprobe.errors import FormatError, HeadError, NonFiniteError
from dinoprobe.heads import MultiLabelProbe, binary_fits, from_state, to_state
from dinoprobe.heads.binary_solver import Columns, solve_columns
from dinoprobe.heads.thresholds import NEVER, choose_threshold

CLASSES = ["cat", "dog", "fox", "owl", "ant"]


def tagged(n=400, d=20, seed=0, noise=1.0):
    """Standardised features and an indicator matrix of five classes, the last in 3 % of rows."""
    rng = np.random.default_rng(seed)
    X = StandardScaler().fit_transform(rng.normal(size=(n, d)) * np.linspace(0.3, 2, d))
    scores = X @ rng.normal(size=(d, 5)) * 3 / d**0.5 + noise * rng.logistic(size=(n, 5))
    cuts = [np.quantile(scores[:, j], q) for j, q in enumerate((0.4, 0.6, 0.8, 0.9, 0.97))]
    return X, (scores > cuts).astype(int)


def oracle(X, Y, C):
    probe = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
    return OneVsRestClassifier(probe).fit(X, Y)


@pytest.mark.parametrize("shape", [(400, 20), (150, 300), (60, 2)])
@pytest.mark.parametrize("C", [1e-3, 0.1, 3.0])
def test_equals_one_vs_rest_of_scikit_learn(shape, C):
    X, Y = tagged(*shape)
    kept = Y.any(axis=0)
    queries = tagged(50, shape[1], seed=1)[0]
    found = MultiLabelProbe(C=C).fit(X, Y[:, kept])
    expected = oracle(X, Y[:, kept], C)
    np.testing.assert_allclose(
        found.predict_proba(queries), expected.predict_proba(queries), atol=1e-3
    )
    assert found.converged_


def test_equals_it_in_float32_and_in_blocks_of_classes(monkeypatch):
    X, Y = tagged(600, 30)
    expected = oracle(X, Y, 0.1).predict_proba(X)
    from dinoprobe.heads import statistics

    monkeypatch.setattr(statistics, "SMALL_SIZE", 0)
    monkeypatch.setattr(binary_fits, "BLOCK_CLASSES", 2)
    found = MultiLabelProbe(C=0.1).fit(X.astype(np.float32), Y)
    np.testing.assert_allclose(found.predict_proba(X), expected, atol=1e-3)


def test_features_in_any_units():
    X, Y = tagged()
    moved = 40 + X * np.linspace(0.1, 9, X.shape[1])
    np.testing.assert_allclose(
        MultiLabelProbe(C=0.1).fit(moved, Y).predict_proba(moved),
        MultiLabelProbe(C=0.1).fit(X, Y).predict_proba(X),
        atol=1e-4,
    )


@pytest.mark.parametrize("scoring", ["average_precision", "log_loss"])
def test_chooses_by_refits_of_the_folds(scoring):
    X, Y = tagged(noise=3.0)
    folds = np.random.default_rng(0).integers(0, 4, len(X))
    path = [1e-3, 0.03, 1.0]
    found = MultiLabelProbe(path, scoring=scoring).fit(X, Y, folds=folds)
    precision, loss, scores = [], [], []
    for C in path:
        P = np.empty(Y.shape)
        for fold in range(4):
            P[folds == fold] = oracle(X[folds != fold], Y[folds != fold], C).predict_proba(
                X[folds == fold]
            )
        scores.append(P)
        precision.append(average_precision_score(Y, P))
        loss.append(-np.log(np.where(Y, P, 1 - P)).mean())
    results = found.cv_results_
    np.testing.assert_allclose(results["average_precision"], precision, atol=2e-3)
    np.testing.assert_allclose(results["log_loss"], loss, atol=1e-3)
    best = int(np.argmax(precision) if scoring == "average_precision" else np.argmin(loss))
    assert path[best] == found.C_
    assert found.selection_.startswith("4 given folds")
    given = np.column_stack(
        [choose_threshold(scores[best][:, j], Y[:, j], "f1") for j in range(Y.shape[1])]
    )
    reached = f1_score(Y, scores[best] >= found.thresholds_, average=None)
    np.testing.assert_allclose(reached, f1_score(Y, scores[best] >= given, average=None), atol=0.03)


def test_thresholds_for_f1_are_better_than_a_half():
    X, Y = tagged(2000, noise=2.0)
    queries, truths = X[1000:], Y[1000:]
    probe = MultiLabelProbe().fit(X[:1000], Y[:1000])
    found = f1_score(truths, probe.predict(queries), average="macro")
    half = f1_score(truths, probe.predict_proba(queries) >= 0.5, average="macro", zero_division=0)
    assert found > half + 0.03


def test_thresholds_for_a_precision():
    X, Y = tagged(4000, noise=2.0)
    probe = MultiLabelProbe(C=0.1, thresholds=0.8).fit(X[:2000], Y[:2000])
    given = probe.predict(X[2000:])
    assert precision_score(Y[2000:], given, average="micro") > 0.75
    recall = (given & Y[2000:])[:, 0].sum() / Y[2000:, 0].sum()
    assert recall > 0.3


@pytest.mark.parametrize("target", ["f1", 0.5, 0.75, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_thresholds_equal_brute_force(target, seed):
    rng = np.random.default_rng(seed)
    P = rng.integers(0, 12, 60) / 12  # with ties
    truth = rng.random(60) < P
    weights = rng.integers(1, 4, 60).astype(float)
    found = choose_threshold(P, truth, target, weights)

    def figures(threshold):
        given = threshold <= P
        right = weights @ (given & truth)
        total = weights @ given + weights @ truth
        return 2 * right / total, right / max(weights @ given, 1e-9), right

    tried = [figures(cut) for cut in np.unique(P)]
    if target == "f1":
        assert figures(found)[0] == max(f1 for f1, _, _ in tried)
    elif found == NEVER:
        assert all(precision < target for _, precision, _ in tried)
    else:
        assert figures(found)[1] >= target
        assert figures(found)[2] == max(right for _, p, right in tried if p >= target)


def test_threshold_without_a_true_row():
    assert choose_threshold(np.array([0.1, 0.9]), np.zeros(2), "f1") == 0.5


def test_classes_that_no_row_has_or_all():
    X, Y = tagged()
    Y = np.column_stack([Y, np.zeros(len(Y)), np.ones(len(Y))]).astype(int)
    with pytest.warns(UserWarning, match="2 classes have no row with, or no row without them"):
        probe = MultiLabelProbe(C=0.1).fit(X, Y, classes=[*CLASSES, "none", "all"])
    assert probe.constant_classes_.tolist() == ["none", "all"]
    probabilities = probe.predict_proba(X)
    np.testing.assert_allclose(probabilities[:, 5], 0.5 / 401, rtol=1e-4)
    np.testing.assert_allclose(probabilities[:, 6], 400.5 / 401, rtol=1e-4)
    given = probe.predict(X)
    assert not given[:, 5].any()
    assert given[:, 6].all()
    plain = MultiLabelProbe(C=0.1).fit(X, Y[:, :5])
    np.testing.assert_allclose(probabilities[:, :5], plain.predict_proba(X), atol=1e-6)


def test_a_class_with_one_row_is_fitted():
    X, Y = tagged()
    Y[:, 4] = 0
    Y[7, 4] = 1
    probe = MultiLabelProbe().fit(X, Y)
    assert np.isfinite(probe.predict_proba(X)).all()
    assert probe.predict_proba(X)[:, 4].argmax() == 7


@pytest.mark.parametrize("shape", [(2, 4), (60, 2), (20, 90), (30, 1)])
@pytest.mark.parametrize("features", ["any", "constant"])
@pytest.mark.filterwarnings("ignore:.*probability is constant")
def test_degenerate_rows_are_fitted(shape, features):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=shape).astype(np.float32), rng.integers(0, 2, (shape[0], 30))
    if features == "constant":
        X[:] = 2.5
    probe = MultiLabelProbe().fit(X, Y)
    assert probe.converged_
    probabilities = probe.predict_proba(X)
    assert ((probabilities > 0) & (probabilities < 1)).all()
    if features == "constant":
        shares = np.clip(Y.mean(axis=0), 0.5 / (len(Y) + 1), 1 - 0.5 / (len(Y) + 1))
        np.testing.assert_allclose(probabilities[0], shares, atol=1e-3)


def test_labels_as_lists():
    X, Y = tagged()
    names = np.array(CLASSES, dtype=object)
    lists = [tuple(names[row == 1]) for row in Y]
    by_list = MultiLabelProbe(C=0.1).fit(X, lists)
    order = np.argsort(CLASSES)
    assert by_list.classes_.tolist() == sorted(CLASSES)
    by_matrix = MultiLabelProbe(C=0.1).fit(X, Y, classes=CLASSES)
    assert by_matrix.classes_.tolist() == CLASSES
    np.testing.assert_allclose(
        by_list.predict_proba(X), by_matrix.predict_proba(X)[:, order], atol=1e-6
    )
    row = by_list.predict_labels(X)[3]
    assert row == tuple(by_list.classes_[by_list.predict(X)[3] == 1])
    again = MultiLabelProbe(C=0.1).fit(X, lists, classes=CLASSES)
    assert again.classes_.tolist() == CLASSES


def test_integer_weights_are_repeated_rows():
    X, Y = tagged(noise=2.0)
    rng = np.random.default_rng(0)
    weights, folds = rng.integers(0, 4, len(X)), rng.integers(0, 3, len(X))
    path = [0.003, 0.3]
    weighted = MultiLabelProbe(path).fit(X, Y, folds=folds, sample_weight=weights)
    repeated = MultiLabelProbe(path).fit(
        X.repeat(weights, axis=0), Y.repeat(weights, axis=0), folds=folds.repeat(weights)
    )
    assert weighted.C_ == repeated.C_
    for name, values in repeated.cv_results_.items():
        np.testing.assert_allclose(weighted.cv_results_[name], values, rtol=2e-3)
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=2e-4)


def test_row_does_not_depend_on_its_neighbours():
    X, Y = tagged()
    probe = MultiLabelProbe(C=0.1).fit(X, Y)
    whole = probe.predict_proba(X)
    for rows in (slice(0, 1), slice(5, 70), slice(130, 400)):
        assert np.array_equal(probe.predict_proba(X[rows]), whole[rows])
    np.testing.assert_allclose(1 / (1 + np.exp(-probe.decision_function(X))), whole)


def test_is_saved_and_loaded():
    X, Y = tagged()
    probe = MultiLabelProbe(C=0.1).fit(X, Y, classes=CLASSES)
    config, arrays = to_state(probe)
    loaded = from_state(config, arrays)
    np.testing.assert_array_equal(loaded.predict_proba(X), probe.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), probe.predict(X))
    assert loaded.predict_labels(X) == probe.predict_labels(X)
    for name in arrays:
        with pytest.raises(FormatError, match="Saved head"):
            from_state(config, {**arrays, name: arrays[name][:-1]})
    with pytest.raises(FormatError, match="at least 1, each once"):
        from_state({**config, "classes": ["cat"] * 5}, arrays)
    with pytest.raises(HeadError, match="string labels"):
        to_state(MultiLabelProbe(C=0.1).fit(X, Y))


def test_options_of_an_estimator():
    probe = MultiLabelProbe([0.1, 1], thresholds=0.9, cv=3)
    assert clone(probe).get_params() == probe.get_params()
    with pytest.raises(NotFittedError):
        probe.predict(np.ones((2, 3)))
    X, Y = tagged()
    folds = MultiLabelProbe(cv=4).fit(X, Y)
    assert folds.selection_.startswith("4 stratified folds")
    with pytest.raises(ValueError, match="19 features"):
        folds.predict(X[:, :19])
    with pytest.warns(ConvergenceWarning, match="5 classes stopped before"):
        assert not MultiLabelProbe(C=3.0, max_iter=1).fit(X, Y).converged_


def test_without_folds_there_is_a_default():
    X, Y = tagged()
    probe = MultiLabelProbe().fit(X, Y, folds=np.full(len(X), -1))
    assert probe.C_ == 0.1
    assert probe.selection_.startswith("default")
    assert probe.thresholds_.tolist() == [0.5] * 5


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (np.full((400, 5), 2), None, "other values than 0 and 1"),
        (np.ones((400, 5)), CLASSES[:4], "4 classes for 5 columns"),
        (np.ones((9, 5)), None, "y has 9 rows and the features have 400"),
        (np.ones((400, 0)), None, "No row has a label"),
        ([[]] * 400, None, "No row has a label"),
        (["cat"] * 400, None, "y is 'cat' in row 0"),
        ([["cat"], None] * 200, None, "y is None in row 1"),
        ([["cat"], ["eel"]] * 200, ["cat"], "1 labels that are not among the classes.*'eel'"),
        ([["cat"]] * 400, ["cat", "cat"], "Of 2 classes only 1 differ"),
        ([["cat", 3]] * 400, None, "can not be sorted"),
        ("cat", None, "y is str"),
    ],
)
def test_wrong_labels(y, classes, message):
    X, _ = tagged()
    with pytest.raises(HeadError, match=message):
        MultiLabelProbe().fit(X, y, classes=classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "f1"}, "expected one of average_precision, log_loss"),
        ({"thresholds": 1.5}, 'expected "f1", or the precision'),
        ({"thresholds": "f2"}, 'expected "f1", or the precision'),
        ({"C": -1.0}, "positive, finite numbers"),
        ({"cv": 1}, "at least 2 folds"),
    ],
)
def test_wrong_options(options, message):
    X, Y = tagged()
    with pytest.raises(HeadError, match=message):
        MultiLabelProbe(**options).fit(X, Y)


def test_refuses_values_that_are_not_finite():
    X, Y = tagged()
    X[3, 2] = np.nan
    with pytest.raises(NonFiniteError, match="the first is row 3"):
        MultiLabelProbe().fit(X, Y)


def test_goes_on_in_float64_where_rounding_ends_a_column(monkeypatch):
    X, Y = tagged(400, 60)
    from dinoprobe.heads import statistics

    monkeypatch.setattr(statistics, "SMALL_SIZE", 0)
    monkeypatch.setattr(binary_fits.BinaryFits, "tol", 1e-10)
    probe = MultiLabelProbe(C=1.0).fit(X.astype(np.float32), Y)
    assert probe.converged_
    expected = oracle(X, Y, 1.0).predict_proba(X)
    np.testing.assert_allclose(probe.predict_proba(X), expected, atol=1e-5)


def test_solver_reaches_the_minimum_of_each_column():
    """Also where columns end at different times, and from a start far away."""
    rng = np.random.default_rng(0)
    Z, Y = rng.normal(size=(300, 12)), (rng.random((300, 7)) < np.linspace(0.02, 0.9, 7)) * 1.0
    columns = Columns(Z, Y, np.full(300, 1 / 300), Z.var(axis=0), 0.01)
    start = 5 * rng.normal(size=(13, 7))
    found, converged = solve_columns(columns, start, tol=1e-9, max_iter=500)
    assert converged.all()
    P = 1 / (1 + np.exp(-(Z @ found[:-1] + found[-1])))
    assert np.abs(Z.T @ (P - Y) / 300 + 0.01 * found[:-1]).max() < 1e-8
    assert np.abs((P - Y).mean(axis=0)).max() < 1e-8
    few, converged = solve_columns(columns, start, tol=1e-9, max_iter=3)
    assert not converged.any()
    assert np.isfinite(few).all()
