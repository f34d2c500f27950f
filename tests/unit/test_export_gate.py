"""What passes the gate of an export, and what it says of what does not."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.errors import MismatchError
from dinoprobe.export.gate import Answers, compare, require, tolerance_for, widened

EXPECTED = np.array([[0.7, 0.2, 0.1], [0.1, 0.45, 0.45], [0.2, 0.2, 0.6]])
KEYS = ("a.jpg", "b.jpg", "c.jpg")


def test_the_same_answers_pass() -> None:
    (found,) = compare(KEYS, EXPECTED, {"a way": Answers(EXPECTED.copy(), 1e-4)})
    assert found.passes
    assert found.to_dict() == {
        "way": "a way",
        "max_probability_difference": 0.0,
        "top1_agreement": 1.0,
        "tolerance": 1e-4,
        "accuracy": None,
        "passes": True,
    }
    require("onnx", [found], 3)


def test_a_probability_that_is_off_is_named_with_its_tolerance() -> None:
    off = EXPECTED + np.array([[0.003, -0.003, 0], [0, 0, 0], [0, 0, 0]])
    (found,) = compare(KEYS, EXPECTED, {"images resized in the graph": Answers(off, 0.002)})
    with pytest.raises(MismatchError, match=r"in the graph, .*by up to 0.003 on 3 .*allowed 0.002"):
        require("onnx", [found], 3)


def test_an_answer_may_differ_only_where_the_best_two_are_near() -> None:
    tie = EXPECTED + np.array([[0, 0, 0], [0, -0.001, 0.001], [0, 0, 0]])
    (found,) = compare(KEYS, EXPECTED, {"way": Answers(tie, 0.01)})
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert found.passes
    wrong = np.array([[0.7, 0.2, 0.1], [0.1, 0.45, 0.45], [0.2, 0.6, 0.2]])
    (found,) = compare(KEYS, EXPECTED, {"way": Answers(wrong, 0.3)})
    assert not found.passes
    with pytest.raises(MismatchError, match=r"66.7 % of them, first of c.jpg"):
        require("onnx", [found], 3)


def test_what_is_no_number_is_refused() -> None:
    broken = EXPECTED.copy()
    broken[1, 1] = np.nan
    for found in (broken, EXPECTED[:2]):
        with pytest.raises(MismatchError, match="Nothing was written"):
            compare(KEYS, EXPECTED, {"way": Answers(found, 1.0)})


def test_a_classifier_in_half_precision_may_be_farther_off() -> None:
    assert tolerance_for("float32", same_input=True) < tolerance_for("float32", same_input=False)
    assert tolerance_for("bfloat16", same_input=True) > tolerance_for("float32", same_input=False)


def test_float16_weights_may_be_farther_off() -> None:
    ways = {"near": Answers(EXPECTED, 1e-4), "far": Answers(EXPECTED, 0.5)}
    allowed = {way: found.tolerance for way, found in widened(ways, "float16").items()}
    assert allowed == {"near": tolerance_for("bfloat16", same_input=True), "far": 0.5}
    assert {way: found.tolerance for way, found in widened(ways, "float32").items()} == {
        "near": 1e-4,
        "far": 0.5,
    }
