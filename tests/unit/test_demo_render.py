"""The renderer of the demo task: same seed, same scenes; test digits stay out of training."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dinoprobe.demo.render import digit_parts, render_scenes


def test_parts_have_the_stated_sizes_and_ranges() -> None:
    train_x, train_y, test_x, test_y = digit_parts()
    assert train_x.shape == (1200, 8, 8)
    assert test_x.shape == (597, 8, 8)
    assert len(train_y) == 1200
    assert len(test_y) == 597
    assert train_x.dtype == test_x.dtype == np.float32
    assert train_x.min() >= 0.0
    assert train_x.max() <= 1.0
    assert sorted(set(train_y)) == sorted(set(test_y)) == list("0123456789")


def test_no_test_digit_is_in_the_training_part() -> None:
    train_x, _, test_x, _ = digit_parts()
    seen = {image.tobytes() for image in train_x}
    assert not [image for image in test_x if image.tobytes() in seen]


def test_the_cut_follows_the_order_of_the_file() -> None:
    from sklearn.datasets import load_digits

    train_x, _, test_x, _ = digit_parts()
    rejoined = np.concatenate([train_x, test_x]) * 16
    np.testing.assert_array_equal(rejoined, load_digits().images)


def test_same_seed_same_scenes() -> None:
    digits = digit_parts()[0][:20]
    first, again, other = (render_scenes(digits, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("size_px", [48, 64, 96])
def test_scenes_are_uint8_of_the_asked_size(size_px: int) -> None:
    scenes = render_scenes(digit_parts()[2][:5], 0, size_px)
    assert scenes.shape == (5, size_px, size_px, 3)
    assert scenes.dtype == np.uint8


def test_no_digits_give_no_scenes() -> None:
    scenes = render_scenes(np.zeros((0, 8, 8), np.float32), 0)
    assert scenes.shape == (0, 64, 64, 3)


def test_more_digits_than_one_chunk_all_get_a_scene() -> None:
    scenes = render_scenes(digit_parts()[0][:205], 0)
    assert (scenes.reshape(205, -1).std(axis=1) > 5).all()


def test_the_digit_shows_in_its_scene() -> None:
    """With the same seed, only the pixels near the digit differ from an empty glyph's scene."""
    digits = digit_parts()[0][:30]
    with_digit = render_scenes(digits, 0).astype(int)
    without = render_scenes(np.zeros_like(digits), 0).astype(int)
    changed = np.abs(with_digit - without).max(axis=3) > 40
    assert (changed.mean(axis=(1, 2)) > 0.02).all()
    assert (changed.mean(axis=(1, 2)) < 0.6).all()


def test_import_loads_neither_torch_nor_sklearn() -> None:
    code = "import sys, dinoprobe.demo.render; print({'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
