"""The head alone: kilobytes of safetensors and JSON, that ten lines of NumPy use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.files import load_tensors, save_tensors, write_json

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier

FILE, ABOUT = "head.safetensors", "head.json"


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """FILE and ABOUT in `folder`; returns the folder's FILE."""
    head: Any = classifier.head
    save_tensors(folder / FILE, {"weight": head.coef_, "bias": head.intercept_})
    write_json(folder / ABOUT, document)
    return folder / FILE


def probabilities(
    path: Path, X: npt.NDArray[np.float32], *, multilabel: bool
) -> npt.NDArray[np.float32]:
    """What the lines of its card give for features `(n, dimension)`."""
    head = load_tensors(path)
    return from_logits(X @ head["weight"].T + head["bias"], multilabel=multilabel)


def from_logits(logits: npt.NDArray[np.float32], *, multilabel: bool) -> npt.NDArray[np.float32]:
    """Probabilities `(n, classes)`: one by one, or of all that sum to 1."""
    if multilabel:
        return np.asarray(1 / (1 + np.exp(-logits)))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
