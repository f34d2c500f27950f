"""What scikit-learn asks of an estimator, and what every head here promises beyond it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from dinoprobe.errors import ConfigurationError, HeadError, NonFiniteError
from dinoprobe.heads import (
    Head,
    KNNProbe,
    LDAProbe,
    LinearGridProbe,
    LinearProbe,
    LogisticProbe,
    PrototypeProbe,
    RidgeProbe,
    SklearnProbe,
    head_from_name,
    sklearn_probe,
)

HEADS = [
    LinearProbe(),
    LinearGridProbe(),
    LogisticProbe(),
    KNNProbe(),
    KNNProbe("auto"),
    LDAProbe(),
    RidgeProbe(),
    PrototypeProbe(),
    SklearnProbe(),
    SklearnProbe("sklearn.naive_bayes.GaussianNB"),
]


@parametrize_with_checks([*HEADS, LinearProbe(standardize=True), LogisticProbe(C=1.0)])
def test_estimator(estimator, check):
    if isinstance(estimator, LinearProbe) and "weight_equivalence" in str(check):
        pytest.skip("asks 1e-7 of float32 sums of batches; test_heads_weights.py asks 1e-5")
    check(estimator)


def blobs(n=90, d=6, labels=("a", "b", "c"), seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % len(labels)
    centers = 3 * rng.normal(size=(len(labels), d))
    X = (centers[codes] + rng.normal(size=(n, d))).astype(np.float32)
    return X, np.array([labels[code] for code in codes], dtype=object)


@pytest.fixture(params=HEADS, ids=repr)
def head(request):
    return head_copy(request.param)


def head_copy(head):
    return type(head)(**head.get_params())


def test_is_a_head(head):
    X, y = blobs()
    fitted = head.fit(X, y)
    assert isinstance(fitted, Head)
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (90, 3)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert list(fitted.predict(X)) == [fitted.classes_[i] for i in probabilities.argmax(axis=1)]


def test_keeps_labels_of_any_script(head):
    X, y = blobs(labels=("Żaba", "猫", "🦊 fox", "z"))
    fitted = head.fit(X, y)
    assert fitted.classes_.tolist() == sorted(set(y))
    assert set(fitted.predict(X)) <= set(y)


def test_row_does_not_depend_on_its_neighbours(head):
    X, y = blobs(n=200, d=37)
    fitted = head.fit(X, y)
    whole = fitted.predict_proba(X)
    for rows in (slice(0, 1), slice(5, 70), slice(130, 200)):
        alone = fitted.predict_proba(X[rows])
        if isinstance(head, SklearnProbe):  # predicts by itself
            np.testing.assert_allclose(alone, whole[rows], rtol=1e-9)
        else:
            assert np.array_equal(alone, whole[rows])


@pytest.mark.parametrize("layout", ["read-only", "fortran", "mapped"])
def test_where_features_lie_does_not_matter(head, layout, tmp_path):
    X, y = blobs()
    expected = head_copy(head).fit(X, y).predict_proba(X)
    if layout == "mapped":
        np.save(tmp_path / "X.npy", X)
        given = np.load(tmp_path / "X.npy", mmap_mode="r")
    else:
        given = np.array(X, order="F" if layout == "fortran" else "C")
        given.setflags(write=layout != "read-only")
    found = head.fit(given, y).predict_proba(given)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(given, X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_values_that_are_not_finite(head, value):
    X, y = blobs()
    broken = X.copy()
    broken[7, 2] = value
    with pytest.raises(NonFiniteError, match="1 of 90 rows, the first is row 7"):
        head.fit(broken, y)
    with pytest.raises(NonFiniteError, match="row 7"):
        head.fit(X, y).predict_proba(broken)


def test_accepts_large_values_whose_sum_is_infinite(head):
    if isinstance(head, SklearnProbe):
        pytest.skip("what a classifier of scikit-learn makes of 3e37 is its own matter")
    X, y = blobs()
    head.fit(X, y).predict_proba(np.full((60, 6), 3e37, dtype=np.float32))


def test_refuses_one_class(head):
    X, _ = blobs()
    with pytest.raises(HeadError, match=r"one class, 'cat'.*at least 2"):
        head.fit(X, ["cat"] * len(X))


def test_refuses_missing_labels(head):
    X, y = blobs()
    y[4] = None
    with pytest.raises(HeadError, match="Row 4 has the label None"):
        head.fit(X, y)


def test_refuses_other_dimensions(head):
    X, y = blobs()
    with pytest.raises(ValueError, match="5 features"):
        head.fit(X, y).predict(X[:, :5])


def test_constant_features_do_no_harm(head):
    X, y = blobs()
    X[:, 0] = 4.25
    X[:, 1] = 0
    assert np.isfinite(head.fit(X, y).predict_proba(X)).all()


def test_one_sample_of_each_class(head):
    X, y = blobs(n=3)
    assert head.fit(X, y).predict_proba(X).shape == (3, 3)


SHAPES = {  # rows of each class, features
    "binary": ([40, 50], 6),
    "many classes": ([6] * 30, 12),
    "one row in a class": ([30, 30, 1], 6),
    "one row in all but one": ([30, 1, 1, 1], 6),
    "more classes than features": ([12] * 20, 3),
    "one feature": ([30, 30, 30], 1),
    "fewer rows than features": ([5, 6, 7], 90),
    "two rows": ([1, 1], 4),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("features", ["any", "constant", "mostly constant", "twice"])
def test_degenerate_rows_are_fitted(head, shape, features):
    """Every shape gives finite probabilities, and where classes lie apart the right answers."""
    counts, d = shape
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(len(counts)), counts)
    X = 20 * rng.normal(size=(len(counts), d))[codes] + rng.normal(size=(len(codes), d))
    if features == "constant":
        X[:] = 2.5
    if features == "mostly constant":
        X[:, 1:] = 2.5
    if features == "twice":
        X = np.hstack([X, X])
    y = np.array([f"c{code:02d}" for code in codes], dtype=object)
    if features == "constant" and getattr(head, "estimator", "").endswith("GaussianNB"):
        with np.errstate(all="ignore"), pytest.raises(HeadError, match="GaussianNB gives"):
            head.fit(X, y).predict_proba(X)  # it divides by variances of 0
        return
    probabilities = head.fit(X.astype(np.float32), y).predict_proba(X.astype(np.float32))
    assert probabilities.shape == (len(X), len(counts))
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-9)
    if isinstance(head, LDAProbe) and features in {"any", "twice"} and d > 1:
        assert (head.predict(X) == y).mean() > 0.9


def test_head_from_name():
    assert head_from_name("linear", epochs=3).get_params()["epochs"] == 3
    assert isinstance(head_from_name("logistic"), LogisticProbe)
    assert head_from_name("knn", k=4).k == 4
    forest = head_from_name("sklearn:sklearn.ensemble.RandomForestClassifier", n_estimators=7)
    assert forest.params == {"n_estimators": 7}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "logstic",
            {},
            "expected linear, .*, lda, ridge, prototype, sklearn:.*Did you mean 'logistic'",
        ),
        ("", {}, "No head is called ''"),
        ("logistic", {"c": 1}, "no option 'c'"),
        ("linear", {"learning_rate": 1}, "no option 'learning_rate'"),
        ("linear", {"epoch": 1}, "Did you mean 'epochs'"),
        ("sklearn:", {}, "not a classifier of scikit-learn"),
        ("sklearn:os.system", {}, "not a classifier of scikit-learn"),
        ("sklearn:sklearn.svm.SVR", {}, "not a classifier of scikit-learn"),
        ("sklearn:sklearn.nothing.SVC", {}, "not a classifier of scikit-learn"),
        ("sklearn:sklearn.base.ClassifierMixin", {}, "not a classifier of scikit-learn"),
        ("sklearn:sklearn.svm.SVC", {"c": 1}, "no parameter 'c'; expected some of C, kernel"),
    ],
)
def test_wrong_names(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        head_from_name(name, **options)


class TestSklearnProbe:
    def test_says_when_probabilities_are_scores(self):
        X, y = blobs()
        assert sklearn_probe("sklearn.svm.LinearSVC").fit(X, y).probabilities_are_scores_
        assert (
            not sklearn_probe("sklearn.naive_bayes.GaussianNB").fit(X, y).probabilities_are_scores_
        )

    def test_two_classes_by_decision_function(self):
        X, y = blobs(labels=("no", "yes"))
        probe = sklearn_probe("sklearn.svm.LinearSVC").fit(X, y)
        decision = probe.estimator_.decision_function(X)
        np.testing.assert_allclose(probe.predict_proba(X)[:, 1], 1 / (1 + np.exp(-decision)))

    def test_random_state_is_fixed(self):
        X, y = blobs()
        fits = [
            sklearn_probe("sklearn.ensemble.RandomForestClassifier", n_estimators=5).fit(X, y)
            for _ in range(2)
        ]
        assert np.array_equal(fits[0].predict_proba(X), fits[1].predict_proba(X))

    def test_wrong_count_of_scores(self):
        X, y = blobs(labels=("a", "b", "c", "d"))
        probe = sklearn_probe("sklearn.svm.SVC", decision_function_shape="ovo").fit(X, y)
        with pytest.raises(HeadError, match="6 scores for 4 classes"):
            probe.predict_proba(X)

    def test_beyond_float32(self):
        X, y = blobs()
        with pytest.raises(HeadError, match="range of float32"):
            sklearn_probe("sklearn.svm.SVC").fit(X.astype(np.float64) * 1e39, y)
