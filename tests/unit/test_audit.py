"""Doubtful labels: planted ones come first, sound ones are left alone."""

from __future__ import annotations

import numpy as np

from dinoprobe.audit import Suspect, suspicious_labels
from dinoprobe.heads import LogisticProbe, out_of_fold
from dinoprobe.types import Features


def blobs(n: int = 120) -> Features:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"] * (n // 3), dtype=object)
    centres = {"a": (4, 0), "b": (0, 4), "c": (-4, -4)}
    X = np.array([centres[label] for label in labels]) + rng.normal(size=(n, 2))
    return Features(
        keys=tuple(f"{i}" for i in range(n)),
        X=X.astype(np.float32),
        y=labels,
        classes=("a", "b", "c"),
        fingerprint="f",
        hashes=tuple(f"h{i}" for i in range(n)),
        splits=(None,) * n,
        groups=(None,) * n,
    )


def suspects_of(data: Features, folds: np.ndarray, C: float = 1.0, **options: int) -> list[Suspect]:
    judged = out_of_fold(LogisticProbe(C=C), data.X, data.y, folds)
    return suspicious_labels(judged, data.keys, **options)


def test_planted_wrong_labels_come_first() -> None:
    data = blobs()
    data.y[[0, 30]] = "b"
    suspects = suspects_of(data, np.arange(120) % 5)
    assert {suspect.key for suspect in suspects[:2]} == {"0", "30"}
    assert all(s.label == "b" and s.predicted == "a" for s in suspects[:2])
    assert suspects[0].probability > suspects[0].label_probability + 0.5


def test_sound_labels_are_left_alone() -> None:
    assert suspects_of(blobs(), np.arange(120) % 5) == []


def test_rows_without_a_fold_are_never_judged() -> None:
    data = blobs()
    data.y[0] = "b"
    assert suspects_of(data, np.full(120, -1)) == []


def test_the_limit_holds() -> None:
    data = blobs()
    data.y[:30] = np.roll(data.y[:30], 1)
    assert len(suspects_of(data, np.arange(120) % 5, 0.1, limit=3)) == 3
