"""The five lines of the README, and what a notebook holds in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.model_selection import cross_val_score
from tests.checkpoints import save_vit

import dinoprobe as dp

if TYPE_CHECKING:
    from pathlib import Path


def pictures(n: int = 30) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(0)
    names = ["dark", "light", "middle"] * (n // 3)
    level = {"dark": 40, "light": 210, "middle": 128}
    noise = rng.normal(0, 20, (n, 36, 36, 3))
    return [
        np.clip(level[k] + e, 0, 255).astype(np.uint8) for k, e in zip(names, noise, strict=True)
    ], names


def test_embed_fit_save_load_predict(tmp_path: Path) -> None:
    encoder = dp.Encoder.from_pretrained(str(save_vit(tmp_path / "vit")), device="cpu")
    images, labels = pictures()
    train = dp.embed((images, labels), encoder, store=str(tmp_path / "store"))
    assert train.X.shape == (30, encoder.dimension)
    assert train.X.dtype == np.float32
    assert train.y.tolist() == labels
    assert train.classes == ("dark", "light", "middle")
    head = dp.LogisticProbe().fit(train.X, train.y)
    dp.ImageClassifier(encoder, head).save(tmp_path / "pets")
    loaded = dp.ImageClassifier.load(tmp_path / "pets", device="cpu")
    assert [p.label for p in loaded.predict(images[:3])] == labels[:3]


def test_heads_are_scikit_learn_estimators_on_features(tmp_path: Path) -> None:
    encoder = dp.Encoder.from_pretrained(str(save_vit(tmp_path / "vit")), device="cpu")
    train = dp.embed(pictures(), encoder, store=str(tmp_path / "store"))
    scores = cross_val_score(dp.LogisticProbe(C=1.0), train.X, train.y, cv=3)
    assert scores.mean() > 0.9


def test_every_public_name_is_there() -> None:
    for name in dp.__all__:
        assert getattr(dp, name) is not None
    assert set(dp.__all__) <= set(dir(dp))
