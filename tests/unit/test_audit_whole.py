"""The whole check: classes, shift, outliers, and its plain values."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.test_audit import blobs
from tests.unit.test_partition import features as rows_of

from dinoprobe import audit
from dinoprobe.audit.classes import overlapping, split_classes, tiny_classes
from dinoprobe.audit.finding import COLUMNS, KINDS, Check, Finding
from dinoprobe.audit.neighbourhood import neighbourhood
from dinoprobe.audit.outliers import outliers
from dinoprobe.audit.shift import shift
from dinoprobe.heads.out_of_fold import OutOfFold
from dinoprobe.types import Failure, Features


def data(n: int, k: int = 4, d: int = 12, seed: int = 0) -> Features:
    """Classes around means, with what all features share."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = 3 + 2 * rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d))
    made = rows_of([f"class {code}" for code in codes])
    return replace(made, X=X.astype(np.float32))


def with_parts(made: Features, tested: np.ndarray) -> Features:
    return replace(made, splits=tuple("test" if is_test else "train" for is_test in tested))


def test_foreign_images_are_told_and_few_others() -> None:
    made = data(400)
    rng = np.random.default_rng(1)
    made.X[[5, 50]] = rng.normal(size=(2, 12)) * 3 - 3
    around = neighbourhood(made)
    assert around is not None
    found, figures = outliers(made, around)
    assert {"005.png", "050.png"} == {finding.key for finding in found[:2]}
    assert figures is not None
    assert figures["expected_by_chance"] == pytest.approx(400 * 0.00135, rel=0.01)
    assert len(found) <= 2 + 5 * figures["expected_by_chance"]


def test_outliers_among_a_few_images_can_not_be_told() -> None:
    made = data(20)
    around = neighbourhood(made)
    assert around is not None
    assert outliers(made, around) == ([], None)
    assert "Outliers were not looked for: fewer than 30 pictures." in audit.check(made).notes


def test_too_many_images_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoprobe.duplicates.MOST_PRODUCTS", 10)
    found = audit.check(data(60), pictures=audit.Pictures(read=lambda _: None))
    assert any("60 images are too many" in note for note in found.notes)
    assert any("Outliers were not looked for: too many" in note for note in found.notes)
    assert found.figures["copies"]["pixels_compared"] is False


def test_tiny_classes() -> None:
    found = tiny_classes({"a": 1, "b": 9, "c": 10})
    assert [(f.label, f.severity) for f in found] == [("a", "high"), ("b", "medium")]


def confused(share: float, n: int = 300) -> OutOfFold:
    """Three classes; a share of b is taken for a, and 2 % of all for any."""
    rng = np.random.default_rng(0)
    codes = np.arange(n) % 3
    said = np.where((codes == 1) & (rng.random(n) < share), 0, codes)
    said = np.where(rng.random(n) < 0.02, rng.integers(0, 3, n), said)
    return OutOfFold(np.array(["a", "b", "c"]), np.arange(n), codes, np.eye(3)[said])


def test_a_pair_that_is_confused_beyond_chance_is_told() -> None:
    (found,) = overlapping(confused(0.4))
    assert (found.label, found.related) == ("a", "b")
    assert found.score == pytest.approx(0.2, abs=0.05)
    assert "95 % interval" in found.reason
    assert overlapping(confused(0.0)) == []


def test_a_class_in_two_clusters_is_told() -> None:
    made = data(240, k=3)
    assert split_classes(made) == []
    made.X[made.y == "class 1"] += np.where(np.arange(80) < 60, 0, 12)[:, None]
    (found,) = split_classes(made)
    assert found.label == "class 1"
    assert found.reason.startswith("20 of 80 images stand apart")
    assert int((found.related or "")[:3]) >= 180


def test_a_split_by_chance_is_no_shift() -> None:
    for seed in range(3):
        made = data(400, seed=seed)
        tested = np.random.default_rng(seed).random(400) < 0.25
        found, figures = shift(with_parts(made, tested), [None] * 400, 0)
        assert [f for f in found if f.severity != "low"] == []
        assert figures is not None
        assert figures["interval"][0] < 0.55


def test_a_test_part_from_elsewhere_is_told() -> None:
    made = data(400)
    tested = np.arange(400) % 5 == 0
    made.X[tested] += 1.5
    (found,), figures = shift(with_parts(made, tested), [None] * 400, 0)
    assert (found.kind, found.severity) == ("shift", "high")
    assert figures is not None
    assert figures["auc"] > 0.9
    assert figures["interval"][0] > 0.85


def test_other_class_frequencies_are_told_and_are_no_shift() -> None:
    made = data(400)
    rare = made.y == "class 0"
    tested = np.where(rare, np.arange(400) % 80 == 0, np.arange(400) % 3 == 0)
    found, figures = shift(with_parts(made, tested), [None] * 400, 0)
    assert [f.kind for f in found if f.severity != "low"] == ["label-shift"]
    assert figures is not None
    assert figures["label_p_value"] < 1e-3


def test_few_test_images_are_not_compared() -> None:
    made = data(100)
    assert shift(with_parts(made, np.arange(100) < 5), [None] * 100, 0) == ([], None)
    assert shift(made, [None] * 100, 0) == ([], None)


def test_without_labels_the_rest_is_told() -> None:
    made = data(100)
    made.y[:] = None
    made = replace(made, classes=(), failures=(Failure("x.png", "empty", "an empty file"),))
    found = audit.check(made)
    assert (found.n, found.n_labelled, found.failed) == (100, 0, 1)
    assert found.figures["labels"] is None
    assert found.figures["outliers"]["n"] == 100
    assert [f.key for f in found.of("unusable")] == ["x.png"]
    assert any("No image has a label" in note for note in found.notes)


def test_one_class_and_lone_images_are_no_error() -> None:
    alone = audit.check(rows_of(["a"] * 40))
    assert any("All labels are the same" in note for note in alone.notes)
    lone = audit.check(rows_of(["a", "b"]))
    assert [f.kind for f in lone.findings] == ["tiny-class", "tiny-class"]
    assert any("Too few images" in note for note in lone.notes)
    assert audit.check(rows_of([])).findings == ()


def test_it_is_plain_values_and_repeats_itself() -> None:
    made = blobs()
    made.y[[0, 30]] = "b"
    first, second = audit.check(made), audit.check(made)
    assert first == second
    values = json.loads(json.dumps(first.to_dict()))
    assert values["counts"]["label"] == len(first.of("label")) >= 2
    assert values["findings"][0]["action"] == KINDS[values["findings"][0]["kind"]].action
    rows = first.rows()
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[0][COLUMNS.index("suggestion")] == "a"


def test_the_worst_comes_first() -> None:
    kinds = [("outlier", "low", 9.0), ("label", "high", 0.9), ("leak", "high", None)]
    made = [Finding(kind=k, severity=s, reason="r", score=v) for k, s, v in kinds]
    from dinoprobe.audit.finding import in_order

    assert [f.kind for f in in_order(made)] == ["leak", "label", "outlier"]
    empty = Check(n=0, n_labelled=0, failed=0, classes={}, parts={}, findings=())
    assert empty.counts == {}
