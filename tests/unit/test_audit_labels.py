"""Doubtful labels by confident learning: as cleanlab has them, and planted ones are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.unit.test_audit import blobs

import dinoprobe as dp
from dinoprobe import audit
from dinoprobe.audit.labels import confident_labels, doubtful, judge_labels
from dinoprobe.demo.render import digit_parts, render_scenes
from dinoprobe.heads.out_of_fold import OutOfFold
from dinoprobe.partition import dealt_folds

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.types import Features


@pytest.fixture(scope="module")
def encoder() -> dp.Encoder:
    return dp.Encoder.from_pretrained("builtin", device="cpu")


def noisy(seed: int, n: int = 400, k: int = 5) -> OutOfFold:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    scores = rng.normal(size=(n, k)) + 3 * np.eye(k)[truth]
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    codes = np.where(rng.random(n) < 0.1, rng.integers(0, k, n), truth)
    return OutOfFold(np.array(list("abcde"))[:k], np.arange(n), codes, p)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore")
def test_confident_learning_is_that_of_cleanlab(seed: int) -> None:
    """Where several classes are confident cleanlab takes the most probable of all classes."""
    pytest.importorskip("cleanlab")
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues

    judged = noisy(seed)
    confident = confident_labels(judged)
    joint = np.zeros((5, 5), dtype=int)
    known = confident >= 0
    np.add.at(joint, (judged.codes[known], confident[known]), 1)
    expected = compute_confident_joint(judged.codes, judged.probabilities, calibrate=False)
    np.testing.assert_array_equal(joint, expected)
    best = judged.probabilities.argmax(axis=1)
    ours = known & (confident != judged.codes) & (best != judged.codes)
    theirs = find_label_issues(
        judged.codes, judged.probabilities, filter_by="confident_learning", n_jobs=1
    )
    np.testing.assert_array_equal(ours, theirs)
    assert ours.sum() > 10
    assert set(np.flatnonzero(ours)) <= set(doubtful(judged).places.tolist())


def test_the_most_doubtful_comes_first_with_what_fits_better() -> None:
    p = np.array([[0.9, 0.1, 0], [0.8, 0.15, 0.05], [0.05, 0.9, 0.05], [0.02, 0.97, 0.01]])
    judged = OutOfFold(np.array(["a", "b", "c"]), np.arange(4), np.array([0, 0, 1, 0]), p)
    assert doubtful(judged).places.tolist() == [3]
    assert doubtful(judged).suggested.tolist() == [1]


def recall(features: Features, seed: int = 0) -> tuple[float, float]:
    """Clean accuracy out of fold, and the share of 5 % flips in the first 8 % of the list."""
    folds = dealt_folds(features, seed=0)
    clean, _ = judge_labels(features, folds)
    accuracy = float((clean.probabilities.argmax(axis=1) == clean.codes).mean())
    rng = np.random.default_rng(seed)
    flipped = rng.choice(len(features), round(0.05 * len(features)), replace=False)
    for row in flipped:
        others = [label for label in features.classes if label != features.y[row]]
        features.y[row] = rng.choice(others)
    found = audit.check(features)
    first = [finding.key for finding in found.of("label")][: round(0.08 * len(features))]
    planted = {features.keys[row] for row in flipped}
    return accuracy, len(planted & set(first)) / len(planted)


def test_flipped_labels_of_rendered_digits_are_found(encoder: dp.Encoder) -> None:
    digits, labels, _, _ = digit_parts()
    scenes = render_scenes(digits[:600], 0)
    features = dp.embed((list(scenes), labels[:600].tolist()), encoder)
    accuracy, found = recall(features)
    assert accuracy >= 0.9
    assert found >= 0.8


def test_flipped_labels_of_photographs_are_found(encoder: dp.Encoder, shared_data: Path) -> None:
    """Of those classes of hand signs that the built-in encoder tells apart."""
    features = dp.embed(shared_data / "sign-digits", encoder)
    kept = np.flatnonzero(np.isin(features.y.astype(str), ["0", "1", "5", "7", "9"]))
    chosen = features.select(kept)
    accuracy, found = recall(chosen)
    assert accuracy >= 0.9
    assert found >= 0.8


def test_a_trial_and_the_accuracy_are_told() -> None:
    data = blobs()
    data.y[[0, 30]] = "b"
    found = audit.check(data)
    assert {finding.key for finding in found.of("label")[:2]} == {"0", "30"}
    assert all(finding.suggestion == "a" for finding in found.of("label")[:2])
    figures = found.figures["labels"]
    assert figures["accuracy"] == pytest.approx(118 / 120)
    assert figures["trial"] == {"planted": 6, "found": 6, "looked_at": 10}
    assert figures["interval"][0] < 118 / 120 < figures["interval"][1]
