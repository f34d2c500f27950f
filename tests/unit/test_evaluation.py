from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from dinoprobe.errors import (
    ConfigurationError,
    DatasetError,
    FormatError,
    HeadError,
    NonFiniteError,
)
from dinoprobe.evaluation import (
    KEPT_SHARES,
    Confusion,
    Evaluation,
    evaluate,
    expected_calibration_error,
    reliability_bins,
    risk_coverage,
    wilson,
)

CLASSES = ["cat", "dog", "żaba"]
Y = ["cat", "cat", "dog", "dog"]
P = [[0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.8, 0], [0.4, 0.6, 0]]


def test_figures_by_hand():
    result = evaluate(Y, P, CLASSES)
    assert (result.n, result.accuracy, result.balanced_accuracy) == (4, 0.75, 0.75)
    assert result.top5_accuracy is None
    assert result.confusion == ((1, 1, 0), (0, 2, 0), (0, 0, 0))
    assert result.n_per_class == {"cat": 2, "dog": 2, "żaba": 0}
    assert result.macro_precision == pytest.approx((1 + 2 / 3) / 2)
    assert result.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert result.log_loss == pytest.approx(-np.log([0.9, 0.3, 0.8, 0.6]).mean())
    assert result.worst_confusions == (Confusion("cat", "dog", 1),)
    assert result.accuracy_interval == wilson(3, 4)


def test_undefined_figures_are_none():
    absent = evaluate(Y, P, CLASSES).per_class[2]
    assert (absent.support, absent.predicted) == (0, 0)
    assert (absent.precision, absent.recall, absent.recall_interval, absent.f1) == (None,) * 4


def test_never_predicted_class_counts_as_zero_in_macro_precision():
    result = evaluate(["a", "b"], [[1, 0], [1, 0]], ["a", "b"])
    assert result.per_class[1].precision is None
    assert result.per_class[1].f1 == 0
    assert result.macro_precision == 0.25


def test_calibration_error_by_hand():
    """Two of 15 bins: (0.6, 0.667] with 0.62, 0.66 right once; (0.933, 1] with 0.95 right."""
    bins = reliability_bins(np.array([0.62, 0.66, 0.95]), np.array([True, False, True]))
    assert [b.count for b in bins if b.count] == [2, 1]
    assert expected_calibration_error(bins) == pytest.approx(2 / 3 * 0.14 + 1 / 3 * 0.05)


def test_bins_are_closed_above():
    bins = reliability_bins(np.array([1.0, 0.5, 0.0]), np.array([True, True, True]), 2)
    assert [b.count for b in bins] == [2, 1]


def test_top5_counts_ties_for_earlier_classes():
    classes = list("abcdefg")
    assert evaluate(["a", "g"], np.full((2, 7), 1 / 7), classes).top5_accuracy == 0.5


def test_worst_confusions_are_ordered():
    y = ["a"] * 3 + ["b"] * 2
    P = np.eye(3)[[1, 1, 2, 0, 0]]
    assert evaluate(y, P, ["a", "b", "c"]).worst_confusions == (
        Confusion("a", "b", 2),
        Confusion("b", "a", 2),
        Confusion("a", "c", 1),
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_wilson_equals_scipy(data):
    n = data.draw(st.integers(1, 5000))
    successes = data.draw(st.integers(0, n))
    level = data.draw(st.sampled_from([0.5, 0.9, 0.95, 0.999]))
    low, high = wilson(successes, n, level)
    expected = binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (0, 0), (1, 5, 1.0)])
def test_wilson_refuses(arguments):
    with pytest.raises(ConfigurationError, match="expected 0 <= successes <= n"):
        wilson(*arguments)


@st.composite
def answers(draw):
    k, n = draw(st.integers(2, 8)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    sharpness = draw(st.sampled_from([0.1, 1, 30]))
    logits = sharpness * rng.normal(size=(n, k))
    P = np.exp(logits - logits.max(axis=1, keepdims=True))
    classes = [f"класс {i}" for i in range(k)]
    return [classes[i] for i in rng.integers(0, k, n)], P / P.sum(axis=1, keepdims=True), classes


@settings(max_examples=100, deadline=None)
@given(answers())
def test_properties(case):
    y, P, classes = case
    result = evaluate(y, P, classes)
    assert np.sum(result.confusion) == sum(b.count for b in result.reliability) == result.n
    assert result.accuracy_interval[0] <= result.accuracy <= result.accuracy_interval[1]
    assert 0 <= result.expected_calibration_error <= 1
    assert (result.top5_accuracy is None) == (len(classes) <= 5)
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = evaluate([y[i] for i in order], P[order], classes)
    assert shuffled.confusion == result.confusion
    assert shuffled.log_loss == pytest.approx(result.log_loss)


@pytest.mark.parametrize(
    ("y", "probabilities", "classes", "error", "message"),
    [
        ([], np.zeros((0, 3)), CLASSES, DatasetError, "no labelled images"),
        (["cow", "cat", "ox"], np.eye(3), CLASSES, DatasetError, "'cow', 'ox'; expected some of"),
        (list("abcdefg"), np.eye(7, 3), CLASSES, HeadError, "Row 3 .* sums to 0"),
        ([None], [[1, 0, 0]], CLASSES, DatasetError, "'None'"),
        (Y, P[:3], CLASSES, HeadError, r"shape \(3, 3\); expected \(4, 3\)"),
        (Y, P, CLASSES[:2], HeadError, r"expected \(4, 2\)"),
        (["cat"], [[np.nan, 0, 1]], CLASSES, NonFiniteError, "first in row 0"),
        (["cat"], [[2.0, -1, 0]], CLASSES, HeadError, "smallest value of -1"),
        (["cat"], [[3.0, 1, 0]], CLASSES, HeadError, "sums to 4"),
        (["a"], [[1, 0]], ["a", "a"], HeadError, "only 1 differ"),
    ],
)
def test_wrong_input(y, probabilities, classes, error, message):
    with pytest.raises(error, match=message):
        evaluate(y, probabilities, classes)


def test_many_unknown_labels_are_counted():
    y = [str(i) for i in range(9)]
    with pytest.raises(DatasetError, match="'4' and 4 more"):
        evaluate(y, np.full((9, 2), 0.5), ["a", "b"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("accuracy"),
        lambda values: values.update(extra=1),
        lambda values: values["per_class"][0].pop("support"),
        lambda values: values.update(accuracy_interval=[0.1]),
        lambda values: values.update(confusion=3),
    ],
)
def test_damaged_dict(damage):
    values = evaluate(Y, P, CLASSES).to_dict()
    damage(values)
    with pytest.raises(FormatError, match="expected what to_dict writes"):
        Evaluation.from_dict(values)


def test_import_is_light():
    code = "import sys, dinoprobe.evaluation; print({'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_curve_of_risk_over_coverage_by_hand():
    confidence = np.array([0.9, 0.6, 0.8, 0.7, 0.5])
    correct = np.array([True, False, True, False, True])
    points, area = risk_coverage(confidence, correct)
    assert [(p.coverage, p.threshold) for p in points] == [
        (0.2, 0.9),
        (0.4, 0.8),
        (0.6, 0.7),
        (0.8, 0.6),
        (1.0, 0.5),
    ]
    assert [p.risk for p in points] == pytest.approx([0, 0, 1 / 3, 2 / 4, 2 / 5])
    assert area == pytest.approx(np.mean([0, 0, 1 / 3, 2 / 4, 2 / 5]))


def test_equally_sure_images_are_answered_together_in_any_order():
    confidence = np.array([1.0] * 8 + [0.4] * 2)
    correct = np.array([False, False] + [True] * 7 + [False])
    found = risk_coverage(confidence, correct)
    assert [(p.coverage, p.risk) for p in found[0]] == [(0.8, 0.25), (1.0, pytest.approx(0.3))]
    order = np.random.default_rng(0).permutation(10)
    assert risk_coverage(confidence[order], correct[order]) == found
    assert found[1] == pytest.approx(np.mean([0.25] * 8 + [2.5 / 9, 3 / 10]))


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=40))
def test_a_point_is_what_its_threshold_does(rows):
    confidence = np.array([level / 6 for level, _ in rows])
    correct = np.array([right for _, right in rows])
    points, area = risk_coverage(confidence, correct)
    for point in points:
        answered = confidence >= point.threshold
        assert point.coverage == pytest.approx(answered.mean())
        assert point.risk == pytest.approx((~correct[answered]).mean())
    assert points[-1].coverage == 1
    assert all(any(p.coverage >= share - 1e-9 for p in points) for share in KEPT_SHARES)
    assert 0 <= area <= 1


def test_the_share_that_is_answered():
    y, rows = ["a"] * 20, [[0.5 + i / 50, 0.5 - i / 50] for i in range(20)]
    result = evaluate(y, rows, ["a", "b"])
    point = result.answering(0.9)
    assert point is not None
    assert (point.coverage, point.threshold) == (0.9, pytest.approx(0.54))
    assert evaluate(["a"], [[0.6, 0.4]], ["a", "b"]).answering(0.9) is None
    assert Evaluation.from_dict(result.to_dict()) == result


def test_an_evaluation_from_before_there_was_a_curve_is_read():
    values = evaluate(Y, P, CLASSES).to_dict()
    del values["risk_coverage"], values["risk_coverage_area"]
    read = Evaluation.from_dict(values)
    assert (read.risk_coverage, read.risk_coverage_area) == ((), None)
