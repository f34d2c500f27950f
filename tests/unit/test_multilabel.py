from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from dinoprobe.errors import DatasetError, HeadError, NonFiniteError
from dinoprobe.multilabel import average_precision, evaluate_labels

CLASSES = ["cat", "dog", "fox"]


def drawn(n=400, seed=0):
    """Truths, and coarse probabilities with ties."""
    rng = np.random.default_rng(seed)
    P = np.round(rng.beta(0.6, 1.2, size=(n, 3)), 2)
    return (rng.random((n, 3)) < P).astype(int), P


def test_equals_scikit_learn():
    Y, P = drawn()
    cuts = [0.3, 0.5, 0.9]
    found = evaluate_labels(Y, P, cuts, CLASSES)
    given = (cuts <= P).astype(int)
    assert found.mean_average_precision == pytest.approx(average_precision_score(Y, P))
    assert found.micro_f1 == pytest.approx(f1_score(Y, given, average="micro"))
    assert found.macro_f1 == pytest.approx(f1_score(Y, given, average="macro"))
    assert found.exact == (given == Y).all(axis=1).mean()
    each = average_precision_score(Y, P, average=None)
    assert [figures.average_precision for figures in found.per_class] == pytest.approx(list(each))
    assert [figures.support for figures in found.per_class] == Y.sum(axis=0).tolist()
    assert found.per_class[2].f1 == pytest.approx(f1_score(Y[:, 2], given[:, 2]))


def test_weights_are_repeated_rows():
    Y, P = drawn()
    weights = np.random.default_rng(0).integers(0, 4, (5, 400)).astype(float)
    found = average_precision(Y[:, 0] > 0, P[:, 0], weights)
    expected = [average_precision_score(Y[:, 0], P[:, 0], sample_weight=w) for w in weights]
    np.testing.assert_allclose(found, expected)


def test_intervals_hold_what_many_draws_give():
    """Of 60 draws of images, about 95 % of the intervals hold the figure of a very large one."""
    truth = evaluate_labels(*drawn(60_000, seed=999), [0.5] * 3, CLASSES)
    held = np.zeros(3)
    for seed in range(60):
        found = evaluate_labels(*drawn(300, seed=seed), [0.5] * 3, CLASSES)
        for column, name in enumerate(("mean_average_precision", "micro_f1", "macro_f1")):
            low, high = getattr(found, f"{name}_interval")
            assert low < getattr(found, name) < high
            held[column] += low <= getattr(truth, name) <= high
    assert (held / 60 >= 0.85).all()


def test_chunks_do_not_show(monkeypatch):
    Y, P = drawn()
    whole = evaluate_labels(Y, P, [0.5] * 3, CLASSES)
    monkeypatch.setattr("dinoprobe.multilabel.CHUNK_VALUES", 4000)
    assert evaluate_labels(Y, P, [0.5] * 3, CLASSES) == whole


def test_what_is_not_defined_is_none():
    Y, P = drawn()
    Y[:, 1] = 0
    found = evaluate_labels(Y, P, [0.5, 2.0, 2.0], CLASSES)
    dog, fox = found.per_class[1:]
    assert (dog.average_precision, dog.precision, dog.recall, dog.f1) == (None, None, None, None)
    assert (fox.precision, fox.recall, fox.f1) == (None, 0.0, 0.0)
    assert found.mean_average_precision == pytest.approx(
        average_precision_score(Y[:, [0, 2]], P[:, [0, 2]])
    )
    none = evaluate_labels(np.zeros((5, 3)), P[:5], [2.0] * 3, CLASSES)
    assert (none.mean_average_precision, none.micro_f1, none.macro_f1_interval) == (None,) * 3
    assert none.exact == 1
    assert json.loads(json.dumps(found.to_dict()))["per_class"][1]["recall"] is None


@pytest.mark.parametrize(
    ("truths", "probabilities", "thresholds", "error", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), [0.5] * 3, DatasetError, "no labelled images"),
        (np.zeros((4, 3)), np.zeros((4, 2)), [0.5] * 3, HeadError, r"probabilities \(4, 2\)"),
        (np.zeros((4, 3)), np.zeros((4, 3)), [0.5], HeadError, r"thresholds \(1,\)"),
        (np.full((4, 3), 2), np.zeros((4, 3)), [0.5] * 3, HeadError, "other values than 0 and 1"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), [0.5] * 3, NonFiniteError, "first in row 0"),
    ],
)
def test_wrong_values(truths, probabilities, thresholds, error, message):
    with pytest.raises(error, match=message):
        evaluate_labels(truths, probabilities, thresholds, CLASSES)
