"""int8: calibrated on the user's images, judged before it is used, and kept with the classifier."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_convnext, save_vit

from dinoprobe import quantize
from dinoprobe.classifier import ImageClassifier
from dinoprobe.datasets import DataSettings, open_dataset
from dinoprobe.encoder import EncoderSettings, open_encoder
from dinoprobe.errors import (
    ConfigurationError,
    DatasetError,
    EncoderError,
    FormatError,
    MismatchError,
)
from dinoprobe.quantize import int8_for
from dinoprobe.train import TrainConfig, train

pytestmark = pytest.mark.skipif(
    find_spec("nncf") is None or find_spec("openvino") is None, reason="extra int8"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 210)):
        (root / name).mkdir()
        for i in range(45):
            pixels = np.clip(rng.normal(level, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def settings_of(folder: Path) -> EncoderSettings:
    return EncoderSettings(name=str(folder), device="cpu", precision="int8")


@pytest.mark.parametrize("save", [save_vit, save_convnext])
def test_a_graph_is_judged_and_kept(
    save: Any, photos: Path, tmp_path: Path, own_cache: Path
) -> None:
    settings, said = settings_of(save(tmp_path)), []
    made = int8_for(open_dataset(str(photos)), settings, say=said.append)
    assert made is not None
    assert "same answer as in float32 for 100.0 % of" in said[-1]
    record = json.loads((made.folder / "graph.json").read_text())
    assert record["agreement"] == 1
    assert record["calibration_images"] == 30
    assert 0.9 < record["cosine_min"] <= record["cosine_mean"] < 1
    assert made.folder.parent == own_cache / "graphs"
    said.clear()
    again = int8_for(open_dataset(str(photos)), settings, say=said.append)
    assert (again, said) == (made, [])
    encoder = open_encoder(settings, int8=made)
    assert (encoder.backend, encoder.precision) == ("openvino", "int8")
    assert encoder.description["int8_digest"] == made.digest


def test_a_part_of_what_a_graph_computes_is_saved_and_loaded(photos: Path, tmp_path: Path) -> None:
    """The graph computes CLS and mean, the classifier takes the CLS of it."""
    from dinoprobe.engine import embed
    from dinoprobe.heads import LogisticProbe

    settings = settings_of(save_vit(tmp_path / "weights"))
    dataset = open_dataset(str(photos))
    whole = open_encoder(settings, int8=int8_for(dataset, settings))
    with pytest.raises(ConfigurationError, match="'blocks2' is not within 'cls\\+mean'"):
        whole.with_pooling("blocks2")
    encoder = whole.with_pooling("cls")
    features = embed(dataset, whole).features.pooled("cls")
    assert features.fingerprint == encoder.fingerprint != whole.fingerprint
    head = LogisticProbe().fit(features.X, features.y)
    ImageClassifier(encoder, head).save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved")
    assert (loaded.encoder.pooling, loaded.encoder.dimension) == ("cls", 32)
    assert loaded.encoder.fingerprint == encoder.fingerprint
    paths = [str(photos / name / "0.png") for name in ("dark", "light")]
    assert [found.label for found in loaded.predict(paths)] == ["dark", "light"]


def test_other_precisions_need_none(photos: Path, tmp_path: Path) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)), device="cpu")
    assert int8_for(open_dataset(str(photos)), settings) is None


def test_a_head_that_disagrees_refuses_it(
    photos: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(*_: object) -> tuple[str, np.ndarray]:
        return "logistic", np.arange(200) >= 2

    monkeypatch.setattr(quantize, "agreement", shuffled)
    with pytest.raises(EncoderError, match=r"99\.0 % of 200 images .* expected 99\.5 % or more"):
        int8_for(open_dataset(str(photos)), settings_of(save_vit(tmp_path)))
    assert not list((own_cache / "graphs").glob("int8-*"))


def test_without_labels_there_is_nothing_to_judge_by(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 labelled training images"):
        int8_for(open_dataset(str(photos / "dark")), settings_of(save_vit(tmp_path)))


def test_the_test_part_is_not_looked_at(tmp_path: Path, photos: Path) -> None:
    for part, first, last in (("train", 0, 40), ("test", 40, 45)):
        for name in ("dark", "light"):
            target = tmp_path / "parts" / part / name
            target.mkdir(parents=True)
            for i in range(first, last):
                shutil.copy(photos / name / f"{i}.png", target)
    calibration, test = quantize._chosen(open_dataset(str(tmp_path / "parts")), seed=0)
    keys = {sample.key for sample in (*calibration, *test)}
    assert len(keys) == len(calibration) + len(test) == 80
    assert {Path(key).parts[0] for key in keys} == {"train"}


def test_without_a_graph_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="int8 is calibrated on images of yours"):
        open_encoder(settings_of(save_vit(tmp_path)))


def test_a_classifier_takes_its_graph_along(photos: Path, tmp_path: Path, own_cache: Path) -> None:
    config = TrainConfig(
        data=DataSettings(source=str(photos)),
        encoder=settings_of(save_vit(tmp_path / "weights")),
        out=str(tmp_path / "run"),
    )
    trained = train(config)
    assert trained.outcome.evaluation.accuracy == 1
    paths = [str(photos / name / "0.png") for name in ("dark", "light")]
    first = trained.classifier.predict(paths)
    shutil.rmtree(own_cache)
    classifier = ImageClassifier.load(tmp_path / "run")
    assert classifier.encoder.precision == "int8"
    assert classifier.encoder.fingerprint == trained.classifier.encoder.fingerprint
    second = classifier.predict(paths)
    assert [p.label for p in second] == ["dark", "light"]
    assert [p.probability for p in first] == pytest.approx([p.probability for p in second])
    classifier.save(tmp_path / "copy")
    assert ImageClassifier.load(tmp_path / "copy").encoder.int8 is not None
    graph = tmp_path / "copy" / "int8" / "model.bin"
    graph.write_bytes(graph.read_bytes() + b"1")
    with pytest.raises(MismatchError, match="SHA-256 of the int8 graph"):
        ImageClassifier.load(tmp_path / "copy")
    graph.unlink()
    with pytest.raises(FormatError, match="the int8 graph is missing"):
        ImageClassifier.load(tmp_path / "copy")
