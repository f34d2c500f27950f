"""Rows of one group never stand on both sides of a fold, whatever deals the folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_partition import features

from dinoprobe.heads import (
    KNNProbe,
    LDAProbe,
    LinearGridProbe,
    LogisticProbe,
    PrototypeProbe,
    RidgeProbe,
)
from dinoprobe.heads.folds import deal_folds
from dinoprobe.heads.names import HEADS
from dinoprobe.partition import dealt_folds

SELECTING = {
    "lda": LDAProbe(),
    "logistic": LogisticProbe(),
    "prototype": PrototypeProbe(),
    "ridge": RidgeProbe(),
    "knn": KNNProbe("auto"),
    "linear-grid": LinearGridProbe(),
}
NAMES = st.one_of(st.none(), st.sampled_from("pqrstuvw"))
ROWS = st.lists(st.tuples(st.sampled_from("ab"), NAMES, NAMES, NAMES), min_size=8, max_size=60)


def test_every_head_that_selects_is_here() -> None:
    assert set(SELECTING) == {name for name, kind in HEADS.items() if kind.selects}


@given(ROWS, st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_folds_of_heads_keep_groups_together(
    rows: list[tuple[str, str | None, str | None, str | None]], count: int, seed: int
) -> None:
    codes = np.array([label == "b" for label, *_ in rows], dtype=np.intp)
    groups = [group for _, group, _, _ in rows]
    folds = deal_folds(codes, groups, count, seed)
    named = {(group, fold) for group, fold in zip(groups, folds.tolist(), strict=True) if group}
    assert len(named) == len({group for group, _ in named})


@given(ROWS, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_folds_of_the_recipe_keep_groups_and_near_duplicates_together(
    rows: list[tuple[str, str | None, str | None, str | None]], seed: int
) -> None:
    labels, groups, hashes, near = (list(column) for column in zip(*rows, strict=True))
    contents = [name or f"own {row}" for row, name in enumerate(hashes)]
    data = features(labels, groups=groups, hashes=contents)
    folds = dealt_folds(data, seed=seed, near=near).tolist()
    for column in (groups, contents, near):
        named = {(name, fold) for name, fold in zip(column, folds, strict=True) if name}
        assert len(named) == len({name for name, _ in named})


def copies(count: int = 40, times: int = 4) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Groups of near copies whose labels are chance: only a row's own group can tell its label."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.arange(count) % 2)
    X = np.repeat(rng.normal(size=(count, 200)), times, axis=0)
    X += 0.01 * rng.normal(size=X.shape)
    groups = [f"g{row // times}" for row in range(count * times)]
    return X, np.array(["a", "b"], dtype=object)[np.repeat(codes, times)], groups


@pytest.mark.parametrize("name", sorted(set(SELECTING) - {"knn"}))
@pytest.mark.parametrize("how", ["groups", "folds"])
def test_no_head_judges_a_row_by_its_own_group(name: str, how: str) -> None:
    X, y, groups = copies()
    dealt = np.array([int(group[1:]) % 5 for group in groups])
    options = {"groups": groups} if how == "groups" else {"folds": dealt}
    head = SELECTING[name].__class__()
    parted = head.fit(X, y, folds=np.arange(len(y)) % 4).cv_results_["accuracy"].max()
    together = head.fit(X, y, **options).cv_results_["accuracy"].max()
    assert parted > 0.9
    assert together < 0.75


def test_knn_lets_no_row_of_a_group_vote_for_another() -> None:
    """Nine of ten neighbours are of a row's own group, and right; the others say the opposite."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(30, 50)), 12, axis=0) + 0.01 * rng.normal(size=(360, 50))
    y = np.array(["a", "b"], dtype=object)[np.repeat(np.arange(30) % 2, 12)]
    units = np.repeat(np.arange(30), 12)
    head = KNNProbe("auto").fit(X, y, groups=units.tolist())
    rows = np.arange(360)
    alone = head._count_correct(rows[:64], rows, [10])[0]
    grouped = head._count_correct(rows[:64], units, [10])[0]
    assert alone == 64
    assert grouped < 56
