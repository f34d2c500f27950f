"""A head trained with the encoder in the loop: augmentation, failures, repeatability."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit

from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import encode
from dinoprobe.errors import HeadError
from dinoprobe.heads import LinearGridProbe, LinearProbe
from dinoprobe.online import fit_online
from dinoprobe.preprocess import Augmentation, prepare
from dinoprobe.types import Features

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.types import Sample


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.from_pretrained(str(save_vit(tmp_path_factory.mktemp("vit"))), device="cpu")


def samples(n: int = 24, *, broken: int = 0) -> list[Sample]:
    rng = np.random.default_rng(0)
    images: list[bytes] = []
    for i in range(n):
        level = 60 if i % 2 else 200
        file = io.BytesIO()
        pixels = np.clip(rng.normal(level, 20, (40, 56, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        images.append(b"broken" if i < broken else file.getvalue())
    labels = ["dark" if i % 2 else "light" for i in range(n)]
    return list(open_dataset((images, labels)).samples)


def fit(encoder: Encoder, chosen: list[Sample], augmentation: Augmentation) -> LinearProbe:
    probe = LinearProbe(lr=0.02, epochs=4, batch_size=8)
    losses: list[float] = []
    fitted, _ = fit_online(
        chosen, encoder, probe, augmentation, on_epoch=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    return fitted


def test_it_learns_and_a_seed_repeats_it(encoder: Encoder) -> None:
    first = fit(encoder, samples(), Augmentation())
    again = fit(encoder, samples(), Augmentation())
    np.testing.assert_array_equal(first.coef_, again.coef_)
    rows = [item.row for item in encode(samples(), encoder)]  # type: ignore[union-attr]
    assert (first.predict(np.stack(rows)) == ["light", "dark"] * 12).mean() > 0.9


def test_a_grid_trains_on_augmented_images_and_is_chosen_on_others(encoder: Encoder) -> None:
    held = samples(8)
    rows = np.stack([item.row for item in encode(held, encoder)])  # type: ignore[union-attr]
    validation = Features(
        keys=tuple(sample.key for sample in held),
        X=rows,
        y=np.array([sample.label for sample in held], dtype=object),
        classes=("dark", "light"),
        fingerprint="f",
        hashes=("",) * 8,
        splits=(None,) * 8,
        groups=(None,) * 8,
    )
    probe = LinearGridProbe(lrs=[1e-6, 0.05], epochs=4, batch_size=8)
    losses: list[float] = []
    fitted, _ = fit_online(
        samples(), encoder, probe, Augmentation(),
        on_epoch=lambda _, loss: losses.append(loss), validation=validation,
    )  # fmt: skip
    assert losses[-1] < losses[0]
    assert isinstance(fitted, LinearGridProbe)
    assert fitted.lr_ == 0.05
    assert fitted.selection_.startswith("1 given fold")
    assert (fitted.predict(rows) == validation.y).all()


def test_augmentation_changes_what_is_learnt(encoder: Encoder) -> None:
    whole = fit(encoder, samples(), Augmentation(scale=(1.0, 1.0), flip=0.0))
    cropped = fit(encoder, samples(), Augmentation())
    assert np.abs(whole.coef_ - cropped.coef_).max() > 1e-4


def test_without_crop_and_flip_it_is_the_plain_image(encoder: Encoder) -> None:
    for sample in samples(4):
        image, rng = sample.source.read(), np.random.default_rng(0)
        still = Augmentation(scale=(1.0, 1.0), flip=0.0)
        mirrored = Augmentation(scale=(1.0, 1.0), flip=1.0)
        plain = prepare(image, encoder.preprocessing)
        assert prepare(image, encoder.preprocessing, augment=still, rng=rng).equal(plain)
        turned = prepare(image, encoder.preprocessing, augment=mirrored, rng=rng)
        assert turned.equal(plain.flip(-1))


def test_broken_images_are_listed_once_and_the_rest_is_learnt(encoder: Encoder) -> None:
    probe = LinearProbe(epochs=2, batch_size=4)
    _, failures = fit_online(
        samples(broken=3), encoder, probe, Augmentation(), on_epoch=lambda *_: None
    )
    assert [failure.key for failure in sorted(failures)] == ["000000", "000001", "000002"]
    assert all(failure.reason for failure in failures)


def test_only_broken_images_are_an_error(encoder: Encoder) -> None:
    with pytest.raises(HeadError, match="none of 4 images can be used"):
        fit_online(
            samples(4, broken=4), encoder, LinearProbe(), Augmentation(), on_epoch=lambda *_: None
        )


def test_nothing_of_the_encoder_moves(encoder: Encoder, tmp_path: Path) -> None:
    before = encoder.parameters_digest()
    fit(encoder, samples(), Augmentation())
    assert encoder.parameters_digest() == before
