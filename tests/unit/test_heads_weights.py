from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from dinoprobe.errors import HeadError
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
