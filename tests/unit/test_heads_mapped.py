"""Features in a file: the same heads as from memory, and no more memory than blocks take."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dinoprobe import mapped as module
from dinoprobe.heads import (
    LDAProbe,
    LinearProbe,
    LogisticProbe,
    PrototypeProbe,
    RidgeProbe,
    fit_novelty,
    left_out_scores,
    linear,
    out_of_fold,
    problem,
)
from dinoprobe.mapped import folder_of, mapped

if TYPE_CHECKING:
    from pathlib import Path

CLOSED = 2e-6
"""Largest difference of probabilities: Gram matrices add float32 products in another order."""
DESCENT = 2e-5


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any, Any]:
    """Rows in memory and in a file that is read in 40 blocks, their labels, sorted, and folds."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 40_000)
    monkeypatch.setattr(linear, "BUFFER_ROWS", 2048)
    monkeypatch.setattr(problem, "SMALL_WORK", 0)
    random = np.random.default_rng(0)
    codes = np.sort(random.integers(0, 5, 8000))
    means = random.normal(size=(5, 50)) * 0.35
    X = (means[codes] + random.normal(size=(8000, 50)) @ np.diag(np.linspace(0.2, 2, 50))).astype(
        np.float32
    )
    in_file = mapped(X.shape, np.float32, tmp_path)
    in_file[:] = X
    return X, in_file, np.array([f"class {code}" for code in codes]), random.integers(-1, 4, 8000)


@pytest.mark.parametrize(
    ("head", "tolerance"),
    [
        (LDAProbe(), CLOSED),
        (LDAProbe(class_weight="balanced"), CLOSED),
        (RidgeProbe(), CLOSED),
        (RidgeProbe(class_weight={"class 1": 3.0}), CLOSED),
        (PrototypeProbe(), CLOSED),
        (LogisticProbe(Cs=(1e-3, 1e-2, 1e-1)), DESCENT),
        (LogisticProbe(C=1.0, class_weight="balanced"), DESCENT),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_heads_are_those_of_memory(rows: Any, head: Any, tolerance: float, weighted: bool) -> None:
    X, in_file, y, folds = rows
    options: dict[str, Any] = {"folds": folds} if head.selects else {}
    if weighted:
        options["sample_weight"] = np.random.default_rng(3).uniform(0.5, 2, len(y))
    wanted = type(head)(**head.get_params()).fit(X, y, **options)
    found = type(head)(**head.get_params()).fit(in_file, y, **options)
    for name in head.selects:
        assert getattr(found, f"{name}_") == pytest.approx(getattr(wanted, f"{name}_"), rel=1e-4)
    assert found.selection_ == wanted.selection_
    difference = np.abs(found.predict_proba(in_file) - wanted.predict_proba(X)).max()
    assert difference <= tolerance


def test_out_of_fold_predictions_are_those_of_memory(rows: Any) -> None:
    X, in_file, y, folds = rows
    wanted, found = (
        out_of_fold(LDAProbe(shrinkage=0.1, temperature=1), Z, y, folds) for Z in (X, in_file)
    )
    assert np.array_equal(found.rows, wanted.rows)
    assert np.abs(found.probabilities - wanted.probabilities).max() <= CLOSED


@pytest.mark.parametrize("method", ["mahalanobis", "knn"])
def test_novelty_is_that_of_memory(rows: Any, method: str) -> None:
    X, in_file, y, folds = rows
    wanted, found = (left_out_scores(Z, y, folds, method) for Z in (X, in_file))
    assert np.array_equal(found, wanted, equal_nan=True)
    thresholds = [fit_novelty(Z, y, found, method=method).threshold for Z in (X, in_file)]
    assert thresholds[0] == thresholds[1]


def test_batches_of_a_file_see_each_row_once_an_epoch_in_a_new_order(rows: Any) -> None:
    X, in_file, y, _ = rows
    training = LinearProbe().begin(X.shape[1], sorted(set(y)))
    seen = []
    for _ in range(2):
        order = []
        for numbers, features in training.buffers(in_file):
            assert numbers is not None
            assert len(features) <= 2048
            assert np.array_equal(features.numpy(), X[numbers.numpy()])
            order.append(numbers.numpy())
        assert len(set(y[order[0]])) == 5  # sorted rows are mixed
        seen.append(np.concatenate(order))
        assert np.array_equal(np.sort(seen[-1]), np.arange(len(X)))
    assert not np.array_equal(*seen)


def test_batches_of_a_file_train_as_well(rows: Any) -> None:
    X, in_file, y, _ = rows
    train, test = np.arange(len(y)) % 4 > 0, np.arange(len(y)) % 4 == 0
    del X
    part = module.take(in_file, np.flatnonzero(train))
    weights = np.ones(len(part))
    heads = [
        LinearProbe(standardize=True).fit(Z, y[train], sample_weight=weights)
        for Z in (part, np.array(part))
    ]
    accuracies = [float((head.predict(in_file[test]) == y[test]).mean()) for head in heads]
    assert min(accuracies) > 0.7
    assert abs(accuracies[0] - accuracies[1]) <= 0.015  # of 2,000 rows: 30
    assert folder_of(part) is not None


PEAK = """
import json, sys, threading
import numpy as np
from pathlib import Path
from dinoprobe.heads import LDAProbe, LogisticProbe, RidgeProbe
from dinoprobe.mapped import mapped

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

n, d, k = 120_000, 256, 8
X = mapped((n, d), np.float32, Path(sys.argv[1]))
random = np.random.default_rng(0)
means = random.normal(size=(k, d)).astype(np.float32) / 4
y = random.integers(0, k, n)
for start in range(0, n, 5000):
    X[start : start + 5000] = means[y[start : start + 5000]] + random.normal(size=(5000, d))
folds = np.where(np.arange(n) % 5, -1, 0)
kept, done = [anonymous()], threading.Event()

def watch():
    while not done.wait(0.002):
        kept.append(anonymous())

small = X[:3000].copy()
for head in (LDAProbe(), RidgeProbe(), LogisticProbe(Cs=(1e-3, 1e-2))):
    head.fit(small, y[:3000], folds=folds[:3000])  # whatever a first call takes
watcher = threading.Thread(target=watch)
base = anonymous()
kept[:] = [base]
watcher.start()
if sys.argv[2] == "memory":
    X = np.array(X)
for head in (LDAProbe(), RidgeProbe(), LogisticProbe(C=1e-3)):
    head.fit(X, y, folds=folds)
    head.predict(X[:1000])
done.set()
watcher.join()
print(json.dumps({"more": max(kept) - base, "features": 4 * n * d}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_below_the_features(tmp_path: Path) -> None:
    """Of three heads: blocks, d x d numbers, and what malloc keeps of them."""

    def more(where: str) -> float:
        command = [sys.executable, "-c", PEAK, str(tmp_path), where]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, int] = json.loads(done.stdout)
        return found["more"] / found["features"]

    assert more("file") < 0.5
    assert more("memory") > 1.3
