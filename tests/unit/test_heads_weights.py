from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, ShuffleSplit
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from dinoprobe.errors import ConfigurationError, FormatError, HeadError
from dinoprobe.heads import (
    KNNProbe,
    LDAProbe,
    LinearProbe,
    PrototypeProbe,
    RidgeProbe,
    from_state,
    statistics,
    to_state,
)
from dinoprobe.heads.temperature import fit_temperature
from dinoprobe.heads.weights import row_weights

LABELS = np.array(["a", "b", "c"], dtype=object)
CODES = np.array([0, 0, 0, 1, 1, 2, 0, 1, 0])
SAMPLE_WEIGHT = np.array([1, 2, 0, 3, 0.5, 1, 1, 1, 4])


def test_none_where_all_rows_count_once():
    assert row_weights(CODES, 3) is None


@pytest.mark.parametrize("class_weight", ["balanced", {"a": 2, "b": 0.5, "c": 3}, {"b": 7}])
def test_as_scikit_learn(class_weight):
    expected = compute_sample_weight(class_weight, LABELS[CODES])
    found = row_weights(CODES, 3, class_weight, classes=LABELS)
    np.testing.assert_allclose(found, expected)


def test_balanced_weights_of_weighted_rows_are_those_of_repeated_rows():
    counts = np.array([1, 2, 0, 3, 1, 1, 4, 0, 2])
    repeated = row_weights(CODES.repeat(counts), 3, "balanced")
    weighted = row_weights(CODES, 3, "balanced", counts)
    np.testing.assert_allclose(np.repeat(weighted, counts) / counts.repeat(counts), repeated)
    assert weighted.sum() == pytest.approx(counts.sum())


def test_product_of_both():
    found = row_weights(CODES, 3, {"a": 2}, SAMPLE_WEIGHT, classes=LABELS)
    np.testing.assert_allclose(found, np.where(CODES == 0, 2, 1) * SAMPLE_WEIGHT)
    alone = row_weights(CODES, 3, None, SAMPLE_WEIGHT.tolist())
    np.testing.assert_array_equal(alone, SAMPLE_WEIGHT)


def test_class_of_weight_zero_takes_no_share():
    weights = np.where(CODES == 2, 0, 1.0)
    found = row_weights(CODES, 3, "balanced", weights)
    assert found[CODES == 2].tolist() == [0]
    np.testing.assert_allclose(found[CODES < 2], row_weights(CODES[CODES < 2], 2, "balanced"))


def test_given_weights_are_not_changed():
    given = SAMPLE_WEIGHT.copy()
    row_weights(CODES, 3, "balanced", given)[:] = -1
    row_weights(CODES, 3, None, given)[:] = -1
    np.testing.assert_array_equal(given, SAMPLE_WEIGHT)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(8), r"shape \(8,\); expected 9 numbers"),
        (np.ones((9, 2)), r"shape \(9, 2\)"),
        (2.0, r"shape \(\)"),
        ([1, 1, -1, 1, 1, 1, 1, -2, 1], r"-1 in row 2 \(2 such rows\)"),
        ([1, np.nan, 1, 1, 1, 1, 1, 1, 1], "nan in row 1"),
        ([np.inf, 1, 1, 1, 1, 1, 1, 1, 1], "inf in row 0"),
        (np.zeros(9), "zero in all 9 rows"),
        (["x"] * 9, "does not hold numbers"),
    ],
)
def test_wrong_sample_weights(weights, message):
    with pytest.raises(HeadError, match=message):
        row_weights(CODES, 3, None, weights)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ("balance", "'balance'; expected None"),
        (3, "is 3; expected None"),
        ({"a": 0}, "is 0 for 'a'; expected a finite number above 0"),
        ({"a": "2"}, "'2' for 'a'"),
        ({"a": np.inf}, "inf for 'a'"),
        ({"z": 1}, r"names 'z' \(1 such labels\), which no row has; expected some of 'a', 'b'"),
    ],
)
def test_wrong_class_weights(class_weight, message):
    with pytest.raises(HeadError, match=message):
        row_weights(CODES, 3, class_weight, classes=LABELS)


def weighted_rows(n=90, d=6, k=3, seed=0, dtype=np.float64):
    """Rows of `k` classes with weights from 0 to 4, the folds of each row, and rows to judge."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(k, d))[codes] + 1.5 * rng.normal(size=(n, d)) * np.linspace(0.2, 3, d)
    weights = rng.integers(0, 5, n)
    return X.astype(dtype), LABELS[codes], weights, rng.integers(0, 3, n), rng.normal(size=(50, d))


PROBES = [LDAProbe, RidgeProbe, PrototypeProbe]
SHAPES = [(90, 6), (60, 100)]


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 3, "b": 0.5}])
def test_integer_weights_are_repeated_rows(kind, shape, class_weight):
    X, y, weights, folds, queries = weighted_rows(*shape)
    options = {} if kind is PrototypeProbe else {"class_weight": class_weight}
    weighted = kind(**options).fit(X, y, folds=folds, sample_weight=weights)
    repeated = kind(**options).fit(
        X.repeat(weights, axis=0), y.repeat(weights), folds=folds.repeat(weights)
    )
    assert weighted.selection_ == repeated.selection_
    for name, values in repeated.cv_results_.items():
        np.testing.assert_allclose(weighted.cv_results_[name], values, rtol=1e-6)
    for option in kind.selects:
        assert getattr(weighted, f"{option}_") == pytest.approx(getattr(repeated, f"{option}_"))
    np.testing.assert_allclose(
        weighted.predict_proba(queries), repeated.predict_proba(queries), atol=1e-5
    )


@pytest.mark.parametrize("kind", PROBES)
def test_integer_weights_are_repeated_rows_in_float32_blocks(kind, monkeypatch):
    monkeypatch.setattr(statistics, "SMALL_SIZE", 0)
    monkeypatch.setattr(statistics, "CHUNK_ROWS", 100)
    X, y, weights, folds, queries = weighted_rows(n=900, d=20, dtype=np.float32)
    weighted = kind().fit(X, y, folds=folds, sample_weight=weights)
    repeated = kind().fit(X.repeat(weights, axis=0), y.repeat(weights), folds=folds.repeat(weights))
    np.testing.assert_allclose(
        weighted.predict_proba(queries), repeated.predict_proba(queries), atol=1e-4
    )


@pytest.mark.parametrize("kind", [*PROBES, LinearProbe, KNNProbe])
def test_rows_of_weight_zero_are_absent(kind):
    """Also where they hold a class of their own."""
    X, y, weights, _, queries = weighted_rows()
    weights = np.where(y == "c", 0, weights)
    kept = weights > 0
    whole = kind().fit(X, y, sample_weight=weights)
    rest = kind().fit(X[kept], y[kept], sample_weight=weights[kept])
    assert whole.classes_.tolist() == ["a", "b"]
    np.testing.assert_array_equal(whole.predict_proba(queries), rest.predict_proba(queries))
    with pytest.raises(HeadError, match="at least 2 classes"):
        kind().fit(X, y, sample_weight=y == "a")


@pytest.mark.parametrize("kind", [LDAProbe, RidgeProbe, LinearProbe])
def test_class_weights_are_sample_weights(kind):
    X, y, _, _, queries = weighted_rows(n=130)
    y[::2] = "a"
    for class_weight in ("balanced", {"a": 0.25, "b": 2}):
        by_class = kind(class_weight=class_weight).fit(X, y)
        by_row = kind().fit(X, y, sample_weight=compute_sample_weight(class_weight, y))
        np.testing.assert_allclose(
            by_class.predict_proba(queries), by_row.predict_proba(queries), atol=1e-6
        )
        assert not np.allclose(by_class.coef_, kind().fit(X, y).coef_, rtol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_equals_scikit_learn(shape):
    X, y, weights, _, queries = weighted_rows(*shape)
    scaler = StandardScaler().fit(X, sample_weight=weights)
    Y = 2.0 * (y[:, None] == LABELS) - 1
    theirs = Ridge(alpha=7).fit(scaler.transform(X), Y, sample_weight=weights)
    ours = RidgeProbe(alpha=7, temperature=1).fit(X, y, sample_weight=weights)
    expected = theirs.predict(scaler.transform(queries))
    np.testing.assert_allclose(ours.logits(queries), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_leaves_a_row_out_with_its_weight(shape):
    """As refits without the row; features are standardised over all rows, once."""
    X, y, weights, _, _ = weighted_rows(*shape)
    path = [1.0, 30.0]
    found = RidgeProbe(path).fit(X, y, sample_weight=weights)
    kept = weights > 0
    X, y, weights = X[kept], y[kept], weights[kept]
    Z = StandardScaler().fit(X, sample_weight=weights).transform(X)
    Y = 2.0 * (y[:, None] == LABELS) - 1
    for column, alpha in enumerate(path):
        scores = np.empty_like(Y)
        for row in range(len(X)):
            rest = np.arange(len(X)) != row
            refit = Ridge(alpha=alpha).fit(Z[rest], Y[rest], sample_weight=weights[rest])
            scores[row] = refit.predict(Z[[row]])[0]
        correct = scores.argmax(axis=1) == Y.argmax(axis=1)
        loss = np.square(scores - Y).sum(axis=1)
        shares = weights / weights.sum()
        assert found.cv_results_["accuracy"][column] == pytest.approx(shares @ correct)
        assert found.cv_results_["squared_loss"][column] == pytest.approx(shares @ loss, rel=1e-5)


@pytest.mark.parametrize("shrinkage", [0.01, 0.5])
def test_balanced_lda_equals_scikit_learn_with_equal_priors(shrinkage):
    X, y, _, _, queries = weighted_rows(n=130)
    y[::2] = "a"
    scaler = StandardScaler().fit(X, sample_weight=compute_sample_weight("balanced", y))
    theirs = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=shrinkage, priors=[1 / 3, 1 / 3, 1 / 3]
    ).fit(scaler.transform(X), y)
    ours = LDAProbe(shrinkage=shrinkage, temperature=1, class_weight="balanced").fit(X, y)
    expected = theirs.predict_proba(scaler.transform(queries))
    np.testing.assert_allclose(ours.predict_proba(queries), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("class_weight", [None, {"a": 3, "b": 0.5, "c": 2}])
def test_lda_grows_with_weights(shape, class_weight):
    X, y, weights, _, queries = weighted_rows(*shape)
    options = {"shrinkage": 0.1, "temperature": 2.0, "class_weight": class_weight}
    whole = LDAProbe(**options).fit(X, y, sample_weight=weights)
    first, rest = np.flatnonzero(y != "b"), np.flatnonzero(y == "b")
    grown = LDAProbe(**options).fit(X[first], y[first], sample_weight=weights[first])
    grown.partial_fit(X[rest], y[rest], sample_weight=weights[rest])
    np.testing.assert_allclose(
        grown.predict_proba(queries), whole.predict_proba(queries), atol=1e-5
    )


def test_lda_with_balanced_weights_does_not_grow():
    X, y, *_ = weighted_rows()
    with pytest.raises(HeadError, match="which all rows decide together"):
        LDAProbe(class_weight="balanced").fit(X, y).partial_fit(X, y)


def test_lda_is_not_surer_of_lone_rows_of_a_small_weight():
    """Only the weights' ratios count where the strength is given."""
    X, y, *_, queries = weighted_rows(n=3)
    lone = LDAProbe().fit(X, y)
    light = LDAProbe().fit(X, y, sample_weight=[0.1, 0.1, 0.1])
    np.testing.assert_allclose(light.predict_proba(queries), lone.predict_proba(queries), atol=1e-6)


@pytest.mark.parametrize("kind", PROBES)
def test_splits_of_scikit_learn(kind):
    X, y, _, folds, queries = weighted_rows()
    given = kind().fit(X, y, folds=folds).predict_proba(queries)
    groups = [f"g{fold}" for fold in folds]
    splits = list(LeaveOneGroupOut().split(X, y, groups))
    np.testing.assert_array_equal(kind(cv=splits).fit(X, y).predict_proba(queries), given)
    by_object = kind(cv=LeaveOneGroupOut()).fit(X, y, groups=groups)
    np.testing.assert_array_equal(by_object.predict_proba(queries), given)


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        (ShuffleSplit(3, test_size=0.5, random_state=0), "cv, split 1: row .* validates twice"),
        ([([0, 1], [2, 3])], "split 0: rows are left out"),
        ([(np.arange(90), np.arange(5))], "or train and validate"),
        ([(np.arange(5, 90), np.arange(5)), (np.arange(4), np.arange(4, 90))], "row 4 validates"),
        ("five", "gives no splits of rows"),
        ([([0], [900])], "gives no splits of rows"),
        (3.5, "gives no splits of rows"),
        (1, "at least 2 folds"),
    ],
)
def test_wrong_splits(cv, message):
    X, y, *_ = weighted_rows()
    with pytest.raises(HeadError, match=message):
        LDAProbe(cv=cv).fit(X, y)


def test_weights_of_the_temperature():
    rng = np.random.default_rng(0)
    scores, codes = 3 * rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    counts = rng.integers(1, 5, 200)
    repeated = fit_temperature(scores.repeat(counts, axis=0), codes.repeat(counts))
    assert fit_temperature(scores, codes, counts.astype(float)) == pytest.approx(repeated)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 3, "b": 0.5}])
@pytest.mark.parametrize("k", [1, 7, 60, 1000, "auto"])
def test_neighbours_of_integer_weights_are_repeated_rows(k, class_weight):
    X, y, weights, folds, queries = weighted_rows()
    weighted = KNNProbe(k, class_weight=class_weight).fit(X, y, folds=folds, sample_weight=weights)
    repeated = KNNProbe(k, class_weight=class_weight).fit(
        X.repeat(weights, axis=0), y.repeat(weights), folds=folds.repeat(weights)
    )
    assert weighted.k_ == repeated.k_
    np.testing.assert_allclose(
        weighted.predict_proba(queries), repeated.predict_proba(queries), atol=1e-7
    )


def test_half_a_row_takes_half_a_place():
    X, y, _, _, queries = weighted_rows()
    halves = KNNProbe(7).fit(
        X.repeat(2, axis=0), y.repeat(2), sample_weight=np.full(2 * len(y), 0.5)
    )
    np.testing.assert_allclose(
        halves.predict_proba(queries), KNNProbe(7).fit(X, y).predict_proba(queries), atol=1e-7
    )


def test_class_weights_multiply_votes():
    X, y, _, _, queries = weighted_rows()
    plain = KNNProbe(9).fit(X, y).predict_proba(queries)
    found = KNNProbe(9, class_weight={"b": 4}).fit(X, y).predict_proba(queries)
    expected = plain * [1, 4, 1]
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-12)


def test_weighted_neighbours_are_saved():
    X, y, weights, _, queries = weighted_rows()
    probe = KNNProbe(9, class_weight="balanced").fit(X, y, sample_weight=weights)
    config, arrays = to_state(probe)
    loaded = from_state(config, arrays)
    np.testing.assert_array_equal(loaded.predict_proba(queries), probe.predict_proba(queries))
    for name, values in (("sample_weight", arrays["sample_weight"][1:]), ("class_weight", -1.0)):
        wrong = {**arrays, name: values * np.ones(3) if name == "class_weight" else values}
        with pytest.raises(FormatError, match=name):
            from_state(config, wrong)


def test_linear_probe_of_one_batch_sees_repeated_rows():
    """The order within a batch is lost in its mean, up to rounding."""
    X, y, weights, _, queries = weighted_rows()
    options = {"batch_size": 1000, "epochs": 20, "lr": 0.01, "standardize": True}
    weighted = LinearProbe(**options).fit(X, y, sample_weight=weights)
    repeated = LinearProbe(**options).fit(X.repeat(weights, axis=0), y.repeat(weights))
    np.testing.assert_allclose(
        weighted.predict_proba(queries), repeated.predict_proba(queries), atol=1e-5
    )


def test_linear_probe_driven_from_outside_weighs_classes():
    X, y, *_ = weighted_rows()
    y[::2] = "a"
    probe = LinearProbe(class_weight="balanced", batch_size=len(X), epochs=2)
    training = probe.begin(X.shape[1], ["a", "b", "c"], labels=y.tolist())
    for _ in range(2):
        training.step(X, y.tolist())
        training.end_epoch()
    driven = training.finish().coef_.copy()
    np.testing.assert_allclose(driven, clone(probe).fit(X, y).coef_, atol=1e-6)
    with pytest.raises(ConfigurationError, match="got no labels"):
        probe.begin(X.shape[1], ["a", "b", "c"])
