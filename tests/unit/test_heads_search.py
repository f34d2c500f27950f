"""One head among several, by predictions of the same rows."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.errors import HeadError
from dinoprobe.heads import (
    Candidate,
    Judged,
    LDAProbe,
    LogisticProbe,
    OutOfFold,
    RidgeProbe,
    search,
)
from dinoprobe.heads.search import _compared, chosen


def judged(right: list[int], probability: float, name: str = "a") -> Judged:
    """Two classes, all of the first; `right` says which rows were told so, and how surely."""
    told = np.where(np.array(right) == 1, probability, 1 - probability)
    rows = np.arange(len(right))
    predictions = OutOfFold(
        np.array(["x", "y"]), rows, np.zeros(len(right), int), np.column_stack([told, 1 - told])
    )
    accuracy, loss = float(np.mean(right)), float(-np.log(told).mean())
    return Judged(Candidate(name, LDAProbe(), "cls"), LDAProbe(), predictions, accuracy, loss)


def test_a_clear_lead_decides() -> None:
    first, second = judged([1] * 90 + [0] * 10, 0.6), judged([1] * 60 + [0] * 40, 0.9)
    assert chosen(_compared([second, first])) == 1


def test_within_chance_the_log_loss_decides() -> None:
    """They differ on three rows of 100, two of them for the first."""
    first = judged([1] * 90 + [0] * 10, 0.6)
    second = judged([1] * 88 + [0] * 11 + [1], 0.7)
    compared = _compared([first, second])
    assert compared[1].behind == pytest.approx(0.01)
    assert compared[1].error == pytest.approx(np.sqrt(0.03 - 0.01**2) / 10)
    assert second.log_loss < first.log_loss
    assert chosen(compared) == 1


def test_equal_ones_keep_their_order() -> None:
    same = [judged([1, 1, 0, 1], 0.8, name) for name in "ab"]
    assert chosen(_compared(same)) == 0


def rows(seed: int = 0, n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    X = rng.normal(size=(3, 8))[codes] + rng.normal(size=(n, 8))
    return X.astype(np.float32), np.array(["a", "b", "c"], dtype=object)[codes]


def test_the_pooling_with_the_signal_wins() -> None:
    X, y = rows()
    noise = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    candidates = [
        Candidate(name, head, pooling)
        for pooling in ("noise", "signal")
        for name, head in (("lda", LDAProbe()), ("logistic", LogisticProbe()))
    ]
    folds = np.arange(len(y)) // 3 % 5
    seen: list[Judged] = []
    best, found = search(
        candidates,
        {"noise": noise, "signal": X},
        y,
        folds,
        fit=lambda head, view: head.fit(view, y, folds=folds),
        done=seen.append,
    )
    assert best.candidate.pooling == "signal"
    assert [j.candidate for j in found] == [j.candidate for j in seen] == candidates
    again = LDAProbe(shrinkage=found[2].head.shrinkage_, temperature=1)
    correct = [
        (again.fit(X[folds != f], y[folds != f]).predict(X[folds == f]) == y[folds == f]).sum()
        for f in range(5)
    ]
    assert found[2].accuracy == pytest.approx(np.sum(correct) / len(y))


def test_the_log_loss_is_that_of_calibrated_probabilities() -> None:
    """A head that is ten times too sure does not lose for that."""
    X, y = rows()
    folds = np.arange(len(y)) // 3 % 5
    heads = [LDAProbe(shrinkage=0.1, temperature=t) for t in (1.0, 0.1)]
    candidates = [Candidate("lda", head, "x") for head in heads]
    _, found = search(
        candidates, {"x": X}, y, folds, fit=lambda head, view: head.fit(view, y, folds=folds)
    )
    assert found[0].log_loss == pytest.approx(found[1].log_loss, rel=1e-3)


def test_without_folds_there_is_nothing_to_compare() -> None:
    X, y = rows(n=6)
    with pytest.raises(HeadError, match="can not be compared"):
        search(
            [Candidate("ridge", RidgeProbe(), "x")],
            {"x": X},
            y,
            np.full(6, -1),
            fit=lambda head, view: head.fit(view, y),
        )


def test_rows_count_by_the_class_weights_of_the_heads() -> None:
    """A head that never says the rare class is the most accurate on rows as they come."""
    rng = np.random.default_rng(0)
    rare = np.arange(300) % 10 == 0
    X = (rng.normal(size=(300, 4)) + 1.2 * rare[:, None] * [1, 0, 0, 0]).astype(np.float32)
    y = np.where(rare, "rare", "usual").astype(object)
    folds = np.arange(300) // 10 % 5
    candidates = [
        Candidate("plain", LDAProbe(), "x"),
        Candidate("weighted", LDAProbe(class_weight="balanced"), "x"),
    ]
    best, found = search(
        candidates, {"x": X}, y, folds, fit=lambda head, view: head.fit(view, y, folds=folds)
    )
    right = [j.out_of_fold.probabilities.argmax(axis=1) == j.out_of_fold.codes for j in found]
    assert right[0].mean() > right[1].mean()
    assert best.candidate.name == "weighted"
    for judged_one, correct in zip(found, right, strict=True):
        recalls = [correct[judged_one.out_of_fold.codes == code].mean() for code in (0, 1)]
        assert judged_one.accuracy == pytest.approx(np.mean(recalls))
    assert found[0].error > 0.02  # 30 rows of the rare class, not 300, tell them apart
