"""Patch tokens of many images: which they are, where they go, and a classifier on them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from tests.checkpoints import save_vit

import dinoprobe as dp
from dinoprobe.engine import embed_tokens
from dinoprobe.errors import ConfigurationError
from dinoprobe.preprocess import prepare, to_pixel_values

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dp.Encoder:
    folder = save_vit(tmp_path_factory.mktemp("vit"))
    return dp.Encoder.from_pretrained(str(folder), device="cpu")


def images(n: int = 24, *, broken: int = 0) -> tuple[list[bytes], list[str]]:
    rng = np.random.default_rng(0)
    files = []
    for number in range(n):
        file = io.BytesIO()
        level = 60 if number % 2 else 200
        pixels = np.clip(rng.normal(level, 20, (40, 56, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        files.append(b"broken" if number < broken else file.getvalue())
    return files, ["dark" if number % 2 else "light" for number in range(n)]


def test_they_are_the_encoders_without_cls_and_registers(encoder: dp.Encoder) -> None:
    files, labels = images(6, broken=2)
    found = dp.embed_tokens((files, labels), encoder)
    assert found.X.dtype == np.float16
    assert found.y.tolist() == labels[2:]
    assert [failure.key for failure in found.failures] == ["000000", "000001"]
    image = prepare(files[3], encoder.preprocessing)[None]
    pixels = to_pixel_values(image, encoder.preprocessing, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        tokens = encoder.tokens(pixels)[0, encoder.tokens_before_patches :]
    np.testing.assert_allclose(found.X[1], tokens.numpy(), atol=5e-3)


def test_they_go_to_a_file_where_memory_is_short(encoder: dp.Encoder, tmp_path: Path) -> None:
    dataset = dp.open_dataset(images(6))
    with pytest.raises(ConfigurationError, match=r"6 images take 0 MiB .*Give file="):
        embed_tokens(dataset, encoder, memory_bytes=100)
    mapped = embed_tokens(dataset, encoder, memory_bytes=100, file=tmp_path / "tokens.npy")
    assert np.array_equal(np.load(tmp_path / "tokens.npy"), embed_tokens(dataset, encoder).X)
    assert isinstance(mapped.X, np.memmap)


def test_a_classifier_on_them_predicts_from_images(encoder: dp.Encoder, tmp_path: Path) -> None:
    files, labels = images(40)
    found = dp.embed_tokens((files, labels), encoder)
    head = dp.AttentiveProbe(heads=2, epochs=20, batch_size=8).fit(found.X, found.y)
    classifier = dp.ImageClassifier(encoder, head)
    answers = classifier.predict(files)
    assert (
        np.mean([answer.label == label for answer, label in zip(answers, labels, strict=True)])
        > 0.9
    )
    classifier.save(tmp_path / "saved")
    again = dp.ImageClassifier.load(tmp_path / "saved", device="cpu").predict(files)
    assert [answer.top for answer in again] == [answer.top for answer in answers]
