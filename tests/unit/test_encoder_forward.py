"""Which models are folded, and that a folded one follows the images that it is given."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.checkpoints import save_convnext, save_dinov2, save_vit

from dinoprobe.encoder import Encoder, forward, placement
from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from pathlib import Path


def images(size: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def plainly(encoder: Encoder, batch: torch.Tensor) -> np.ndarray:
    """The same by transformers' own forward."""
    encoder._forward.is_folded = False
    rows = encoder.encode(batch)
    encoder._forward.is_folded = True
    return rows


@pytest.mark.parametrize(
    ("save", "folded"), [(save_vit, True), (save_convnext, True), (save_dinov2, False)]
)
def test_dinov3_is_folded_on_a_cpu(save: Any, folded: bool, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save(tmp_path)), device="cpu")
    assert encoder._forward.is_folded is folded


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "relu"), ("patch_size", [8, 8])])
def test_settings_that_it_is_not_written_for_are_left_to_transformers(
    name: str, value: object, tmp_path: Path
) -> None:
    folder = save_vit(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    encoder = Encoder.from_pretrained(str(folder), device="cpu")
    assert not encoder._forward.is_folded
    assert np.isfinite(encoder.encode(images(32))).all()


def test_large_models_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_FOLDED_BYTES", 1000)
    assert not Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")._forward.is_folded


def test_two_copies_are_counted_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_vit(tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(placement, "free_bytes", lambda _: int(1.5 * size))
    with pytest.raises(EncoderError, match="in float32 for two copies of its weights"):
        Encoder.from_pretrained(str(folder), device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_the_packed_product_it_works_too(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a processor without AVX-512, for which bfloat16 weights can not be packed."""
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu", dtype=dtype)
    packed = encoder.encode(images(32))
    monkeypatch.setattr("dinoprobe.encoder.optimized.can_pack", lambda *_: False)
    encoder._forward._made.clear()
    tolerance = 2e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(encoder.encode(images(32)), packed, atol=tolerance)


def test_an_encoder_travels_to_another_process(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    rows = encoder.encode(images(32))
    copy = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(copy.encode(images(32)), rows)


def test_it_follows_size_statistics_and_type(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    for size in (32, 64, 32):
        np.testing.assert_allclose(
            encoder.encode(images(size)), plainly(encoder, images(size)), atol=2e-5
        )
    before = encoder.encode(images(32))
    encoder.preprocessing = replace(encoder.preprocessing, mean=(0.43, 0.41, 0.3))
    after = encoder.encode(images(32))
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, plainly(encoder, images(32)), atol=2e-5)
    floats = images(32).float() / 255
    np.testing.assert_allclose(encoder.encode(floats), plainly(encoder, floats), atol=2e-5)
    np.testing.assert_allclose(encoder.encode(floats), after, atol=2e-5)


def test_threads_share_one_and_get_the_same_bits(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encoder.encode, [images(32)] * 8))
    assert len(encoder._forward._made) == 1
    assert all(np.array_equal(rows, found[0]) for rows in found)


def test_the_weights_stay_frozen_and_whole(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    before = encoder.parameters_digest()
    encoder.encode(images(32))
    assert encoder.parameters_digest() == before


def test_what_a_large_model_needs_is_said_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = str(save_vit(tmp_path))
    Encoder.from_pretrained(folder, device="cpu", say=said.append)
    assert said == []
    monkeypatch.setattr("dinoprobe.encoder.opening._SAID_BYTES", 1)
    Encoder.from_pretrained(folder, device="cpu", say=said.append)
    (sentence,) = said
    assert "million parameters" in sentence
    assert sentence.endswith("in float32 for two copies, on cpu")
