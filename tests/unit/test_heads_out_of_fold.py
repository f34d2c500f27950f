from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.errors import HeadError
from dinoprobe.heads import KNNProbe, LDAProbe, LogisticProbe, RidgeProbe, out_of_fold


def noisy(n=60, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = rng.normal(size=(k, 4))[codes] + rng.normal(size=(n, 4))
    return X.astype(np.float32), np.array([f"class {code}" for code in codes], dtype=object)


def test_each_row_is_judged_by_a_head_that_never_saw_its_fold():
    X, y = noisy()
    folds = np.arange(60) // 12
    judged = out_of_fold(LogisticProbe(C=0.1), X, y, folds)
    assert sorted(judged.rows.tolist()) == list(range(60))
    assert judged.labels == y[judged.rows].tolist()
    for fold in range(5):
        head = LogisticProbe(C=0.1).fit(X[folds != fold], y[folds != fold])
        mine = np.flatnonzero(folds[judged.rows] == fold)
        np.testing.assert_array_equal(
            judged.probabilities[mine], head.predict_proba(X[judged.rows[mine]])
        )


def test_rows_that_always_train_are_left_out():
    X, y = noisy()
    folds = np.where(np.arange(60) < 20, 0, -1)
    judged = out_of_fold(LogisticProbe(C=0.1), X, y, folds)
    assert judged.rows.tolist() == list(range(20))
    assert len(out_of_fold(LogisticProbe(C=0.1), X, y, np.full(60, -1))) == 0


def test_zero_is_a_class_that_a_fold_lacks_and_nothing_else():
    X, y = noisy()
    folds = np.where(y == "class 2", 0, np.arange(60) % 2)
    judged = out_of_fold(KNNProbe(k=1), X, y, folds)
    fold = folds[judged.rows]
    assert "class 2" not in judged.labels
    assert (judged.probabilities[fold == 0][:, 2] == 0).all()
    assert (judged.probabilities[fold == 0][:, :2] > 0).all()
    assert (judged.probabilities[fold == 1] > 0).all()
    np.testing.assert_allclose(judged.probabilities.sum(axis=1), 1)


def test_folds_of_another_length_are_refused():
    X, y = noisy()
    with pytest.raises(HeadError, match="expected 60 integers"):
        out_of_fold(LogisticProbe(C=0.1), X, y, np.zeros(59, dtype=int))


@pytest.mark.parametrize("kind", [LDAProbe, RidgeProbe, LogisticProbe, KNNProbe])
def test_weights_of_a_class_that_a_fold_takes_away(kind):
    """All rows of class 2 belong to one fold, as those of one group do: the others are judged."""
    X, y = noisy()
    kept = np.flatnonzero((y != "class 2") | (np.arange(60) < 12))
    X, y = X[kept], y[kept]
    folds = np.where(y == "class 2", 0, np.arange(len(y)) % 3)
    judged = out_of_fold(kind(class_weight={"class 2": 3.0, "class 0": 2.0}), X, y, folds)
    assert sorted(judged.rows.tolist()) == np.flatnonzero(y != "class 2").tolist()
    assert judged.class_weights.tolist() == [2, 1, 3]
    alone = kind(class_weight={"class 0": 2.0}).fit(X[folds != 0], y[folds != 0])
    mine = np.flatnonzero(folds[judged.rows] == 0)
    expected = alone.predict_proba(X[judged.rows[mine]])
    np.testing.assert_allclose(judged.probabilities[mine][:, :2], np.maximum(expected, 1e-300))
