"""Which images a learning curve's heads are fitted on, choose on, and are judged on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit import test_partition

from dinoprobe.errors import DatasetError
from dinoprobe.heads import head_from_name
from dinoprobe.heads.base import ProbeBase
from dinoprobe.partition import dealt_folds
from dinoprobe.train.curve import drawn, learning_curve, series

if TYPE_CHECKING:
    from dinoprobe.types import Features


def features(n: int = 240, *, spread: float = 0.6, groups: int | None = None) -> Features:
    rng = np.random.default_rng(0)
    codes = np.arange(n) % 3
    X = spread * rng.normal(size=(3, 20))[codes] + rng.normal(size=(n, 20))
    names = [f"g{row // groups}" for row in range(n)] if groups else None
    if groups:
        codes = np.arange(n) // groups % 3
    data = test_partition.features(["abc"[code] for code in codes], groups=names)
    return replace(data, X=X.astype(np.float32))


def test_sizes_are_a_geometric_series() -> None:
    sizes = series(30, 960)
    assert (sizes[0], sizes[-1], len(sizes)) == (30, 960, 8)
    ratios = np.array(sizes[1:]) / sizes[:-1]
    assert ratios == pytest.approx(32 ** (1 / 7), rel=0.03)
    assert series(30, 60) == [30, 42, 60]
    assert series(30, 30) == [30]
    assert series(30, 0) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=2, max_size=60),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_smaller_draws_lie_within_larger_ones_and_keep_units_whole(
    rows: list[tuple[str, int]], seed: int
) -> None:
    labels = np.array([label for label, _ in rows], dtype=object)
    units = np.array([unit for _, unit in rows])
    before: set[int] = set()
    for size in range(1, len(rows) + 1):
        found = drawn(labels, units, size, np.random.default_rng(seed))
        now = set(found.tolist())
        assert before <= now
        assert len(now) >= size
        assert not set(units[found]) & set(np.delete(units, found))
        before = now
    assert before == set(range(len(rows)))


def test_draws_have_the_classes_in_proportion() -> None:
    labels = np.array(["a"] * 90 + ["b"] * 30 + ["c"] * 10, dtype=object)
    found = drawn(labels, np.arange(130), 26, np.random.default_rng(0))
    counts = [int((labels[found] == name).sum()) for name in "abc"]
    assert np.abs(np.array(counts) - [18, 6, 2]).max() <= 1
    other = drawn(labels, np.arange(130), 26, np.random.default_rng(1))
    assert found.tolist() != other.tolist()


class Recorder(ProbeBase):
    """Remembers the first feature of the rows that it saw: their number."""

    selects = ("k",)
    seen: ClassVar[list[tuple[set[int], set[int], set[int]]]] = []

    def __init__(self, k: int | None = None) -> None:
        self.k = k

    def fit(self, X: Any, y: Any, groups: Any = None, folds: Any = None) -> Recorder:
        self.classes_ = np.unique(y)
        self.k_ = 1 if self.k is None else self.k
        self.rows_ = {int(value) for value in X[:, 0]}
        self.judging_ = set() if self.k else {int(v) for v in X[np.asarray(folds) >= 0, 0]}
        return self

    def predict(self, X: Any) -> Any:
        self.seen.append((self.rows_, self.judging_, {int(value) for value in X[:, 0]}))
        return np.full(len(X), self.classes_[0], dtype=object)


@pytest.mark.parametrize("groups", [None, 4])
def test_no_head_sees_or_chooses_on_what_it_is_judged_on(groups: int | None) -> None:
    data = features(groups=groups)
    X = data.X.copy()
    X[:, 0] = np.arange(240)
    Recorder.seen.clear()
    found = learning_curve(Recorder(), replace(data, X=X))
    units = np.arange(240) // (groups or 1)
    judged: dict[int, int] = {}
    for rows, judging, validation in Recorder.seen:
        assert not set(units[sorted(rows)]) & set(units[sorted(validation)])
        assert judging <= rows
        for row in validation:
            judged[row] = judged.get(row, 0) + 1
    assert len(judged) == 240
    assert set(judged.values()) == {len(found.points) * 3 - 2}  # all images are one draw
    choosing = [rows for rows, judging, _ in Recorder.seen if judging]
    able = len(found.points) - (groups is not None)  # not with one group a class
    assert len(choosing) == 5 * able  # once for each size and fold
    assert found.points[0].n == 9 if groups is None else 12


def test_more_images_are_better_and_the_curve_repeats() -> None:
    data = features(600)
    head = head_from_name("lda")
    found = learning_curve(head, data, seed=1)
    accuracies = [point.accuracy for point in found.points]
    assert accuracies[-1] > accuracies[0] + 0.05
    assert found == learning_curve(head, data, seed=1)
    assert not hasattr(head, "classes_")


def test_the_last_point_is_what_cross_validation_says() -> None:
    data = features(240)
    found = learning_curve(head_from_name("prototype"), data)
    folds = dealt_folds(data, seed=0)
    right = 0
    for fold in range(5):
        rest = data.select(np.flatnonzero(folds != fold))
        head = head_from_name("prototype").fit(rest.X, rest.y)
        right += int((head.predict(data.X[folds == fold]) == data.y[folds == fold]).sum())
    assert found.points[-1].n == 192
    assert found.points[-1].accuracy == pytest.approx(right / 240)


def test_weights_of_a_class_that_a_draw_lacks() -> None:
    """Its images are one group, so that small draws and one fold are without it."""
    labels = ["a", "b"] * 60 + ["c"] * 8
    groups = [f"g{row}" for row in range(120)] + ["all"] * 8
    rng = np.random.default_rng(0)
    data = test_partition.features(labels, groups=groups)
    data = replace(data, X=rng.normal(size=(128, 6)).astype(np.float32))
    head = head_from_name("lda", class_weight={"c": 3.0})
    assert learning_curve(head, data).points[-1].n > 90
    assert head.get_params()["class_weight"] == {"c": 3.0}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DatasetError, match="needs at least 6 a class"):
        learning_curve(head_from_name("lda"), features(9))
