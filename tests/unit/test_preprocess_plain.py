"""The resize without torch, and the one in ONNX, beside the package's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from dinoprobe.export.onnx_prepare import prepare_model
from dinoprobe.preprocess import Preprocessing, prepare, prepare_plain

SIZES = [(100, 100), (31, 77), (300, 40), (64, 48), (7, 900), (201, 133), (333, 500), (1, 1)]
WAYS: list[dict[str, Any]] = [
    {"resize": "squash"},
    {"resize": "crop"},
    {"resize": "crop", "shortest_edge": 80},
    {"resize": "pad"},
]
LEVELS = {"uint8": 2, "exact": 0.01}  # grey levels of 255


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth.astype(int) + rng.integers(-20, 20, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def levels(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    scale = 1 if expected.dtype == np.uint8 else 255
    return np.abs(found.astype(np.float64) - expected) * scale


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arithmetic", ["uint8", "exact"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_both_are_within_two_grey_levels(
    way: dict[str, Any], arithmetic: Any, interpolation: Any
) -> None:
    preprocessing = Preprocessing(
        size=(64, 48), arithmetic=arithmetic, interpolation=interpolation, **way
    )
    session = onnxruntime.InferenceSession(prepare_model(preprocessing).SerializeToString())
    for height, width in SIZES:
        image = picture(height, width)
        expected = prepare(image, preprocessing).numpy()
        (in_graph,) = session.run(None, {"images": image.transpose(2, 0, 1)[None]})
        both = (prepare_plain(image, preprocessing), in_graph[0])
        for found in both[: 1 if (height, width) == (64, 48) else 2]:  # it passes unchanged
            off = levels(found, expected)
            assert off.max() <= LEVELS[arithmetic], (height, width)
            assert off.mean() <= 0.3, (height, width)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_prepared_passes_the_graph_unchanged(way: dict[str, Any]) -> None:
    preprocessing = Preprocessing(size=(64, 48), **way)
    session = onnxruntime.InferenceSession(prepare_model(preprocessing).SerializeToString())
    image = picture(64, 48).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(session.run(None, {"images": image})[0], image)


def test_a_batch_of_one_size_is_resized_alike() -> None:
    preprocessing = Preprocessing(size=(32, 32), resize="crop")
    session = onnxruntime.InferenceSession(prepare_model(preprocessing).SerializeToString())
    images = np.stack([picture(90, 61), picture(90, 61)[::-1]]).transpose(0, 3, 1, 2)
    (both,) = session.run(None, {"images": images})
    for image, found in zip(images, both, strict=True):
        np.testing.assert_array_equal(session.run(None, {"images": image[None]})[0][0], found)
