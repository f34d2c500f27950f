"""Figures of the built-in encoder: linear probe and k-NN on frozen features, and baselines.

Scenes are rendered afresh from seeds that training never uses; one scene per digit. A probe learns
on scenes of the training writers and is scored on scenes of the test writers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinoprobe.demo.render import digit_parts, render_scenes

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Floats = NDArray[np.float32]


def normalise(pixels: Tensor) -> Tensor:
    """Return pixels `(n, 3, h, w)` in [0, 1] less ImageNet's mean, over its deviation."""
    mean = pixels.new_tensor(MEAN).view(1, 3, 1, 1)
    return (pixels - mean) / pixels.new_tensor(STD).view(1, 3, 1, 1)


def features(encoder: nn.Module, scenes: NDArray[np.uint8], size_px: int) -> Floats:
    """Return CLS features `(n, d)` of uint8 scenes `(n, h, w, 3)`, resized to size_px if needed."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(scenes), 100):
            pixels = torch.from_numpy(scenes[start : start + 100]).permute(0, 3, 1, 2) / 255
            if pixels.shape[-1] != size_px:
                pixels = interpolate(pixels, size=size_px, mode="bilinear", antialias=True)
            rows.append(encoder(pixel_values=normalise(pixels)).pooler_output)
    return np.asarray(torch.cat(rows).float().numpy())


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of hits out of n (Wilson 1927)."""
    z = 1.959964
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return middle - half, middle + half


def figure(correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Return accuracy, n and interval of an array of right and wrong answers."""
    low, high = wilson(int(correct.sum()), len(correct))
    accuracy = round(float(correct.mean()), 4)
    return {"accuracy": accuracy, "n": len(correct), "ci95": [round(low, 4), round(high, 4)]}


def linear(train_x: Floats, train_y: Any, test_x: Floats, test_y: Any, c: float = 0.03) -> Any:
    """Return right or wrong per test row, for logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression

    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    model = LogisticRegression(C=c, max_iter=2000).fit((train_x - mean) / std, train_y)
    return model.predict((test_x - mean) / std) == test_y


def nearest(train_x: Floats, train_y: Any, test_x: Floats, test_y: Any) -> Any:
    """Return right or wrong per test row, for 10 nearest neighbours by cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(10, metric="cosine").fit(train_x, train_y)
    return model.predict(test_x) == test_y


def evaluate(
    encoder: nn.Module, untrained: nn.Module, size_px: int, seed: int = 1000
) -> dict[str, Any]:
    """Return linear, k-NN, raw-pixel and random-encoder figures on fresh scenes of this seed."""
    train_digits, train_y, test_digits, test_y = digit_parts()
    train, test = render_scenes(train_digits, seed), render_scenes(test_digits, seed + 1)
    raw = [(x.reshape(len(x), -1) / 255).astype(np.float32) for x in (train, test)]
    trained = [features(encoder.eval(), x, size_px) for x in (train, test)]
    blank = [features(untrained.eval(), x, size_px) for x in (train, test)]
    return {
        "linear": figure(linear(trained[0], train_y, trained[1], test_y)),
        "knn": figure(nearest(trained[0], train_y, trained[1], test_y)),
        "raw_pixels": figure(linear(raw[0], train_y, raw[1], test_y, c=1e-4)),
        "random_encoder": figure(linear(blank[0], train_y, blank[1], test_y)),
        "n_train": len(train),
        "n_test": len(test),
        "seed": seed,
    }
