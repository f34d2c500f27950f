"""The folder for timm: its names and settings, read back, and by a forward of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import layouts
from tests.checkpoints import save_convnext, save_dinov2, save_vit
from tests.layouts import ConvNeXt, Tensors, ViT

from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.classifier import ImageClassifier
from dinoprobe.encoder import Encoder
from dinoprobe.encoder.families import FAMILIES
from dinoprobe.encoder.formats import convert, to_timm
from dinoprobe.errors import ConfigurationError, MismatchError
from dinoprobe.export import export, pictures, timm_folder
from dinoprobe.heads import LogisticProbe, MultiLabelProbe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONVNEXT = ConvNeXt((8, 12, 16, 20), (1, 2, 1, 1))
TIMM = ViT(width=192, depth=2, heads=3, inner=64, patch=8)
SOURCES: dict[str, Callable[[], Tensors]] = {
    "biased": lambda: layouts.timm_vit(TIMM),
    "plain": lambda: layouts.timm_vit(TIMM, biases="none"),
    "gated": lambda: layouts.timm_vit(replace(TIMM, gated=True)),
    "convnext": lambda: layouts.timm_convnext(CONVNEXT),
}


# --- names and architectures ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_the_way_there_and_back_changes_nothing(name: str) -> None:
    tensors = SOURCES[name]()
    converted = convert(tensors, place="here")
    found = to_timm(converted.tensors, converted.config)
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[key], tensors[key]) for key in tensors)
    assert (
        found.architecture
        == {
            "biased": "vit_small_patch16_dinov3_qkvb",
            "plain": "vit_small_patch16_dinov3",
            "gated": "vit_small_plus_patch16_dinov3_qkvb",
            "convnext": "convnext_tiny",
        }[name]
    )


def test_another_shape_is_told_by_arguments() -> None:
    converted = convert(SOURCES["gated"](), place="here")
    assert to_timm(converted.tensors, converted.config).arguments == {
        "embed_dim": 192,
        "depth": 2,
        "num_heads": 3,
        "mlp_ratio": 64 / 192,
        "num_reg_tokens": 4,
        "patch_size": 8,
        "swiglu_align_to": 1,
    }
    converted = convert(SOURCES["convnext"](), place="here")
    arguments = to_timm(converted.tensors, converted.config).arguments
    assert arguments == {"depths": [1, 2, 1, 1], "dims": [8, 12, 16, 20]}


@pytest.mark.parametrize("name", [n for n, c in CHECKPOINTS.items() if c.timm])
def test_a_published_shape_has_timms_name_and_no_arguments(name: str) -> None:
    entry = CHECKPOINTS[name]
    family = FAMILIES[entry.model_type]
    config = family.config_class()(**entry.config).to_dict()
    found = to_timm({}, config)
    assert found.architecture in {timm.partition(".")[0] for timm in entry.timm}
    assert found.arguments == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 50.0}, "rope_theta is 50.0, expected 100.0"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, expected 1e-05"),
        ({"hidden_act": "silu"}, "hidden_act is silu, expected gelu"),
        ({"num_register_tokens": 0}, "has no register tokens"),
        ({"model_type": "dinov2"}, "the encoder is a dinov2; expected a DINOv3"),
    ],
)
def test_what_timm_has_otherwise_is_refused(changes: dict[str, Any], expected: str) -> None:
    converted = convert(SOURCES["biased"](), place="here")
    with pytest.raises(ConfigurationError, match=expected):
        to_timm(converted.tensors, {**converted.config, **changes})


def test_a_bias_of_the_keys_is_refused_unless_it_is_zero() -> None:
    converted = convert(SOURCES["biased"](), place="here")
    name = "model.layer.1.attention.k_proj.bias"
    found = to_timm({**converted.tensors, name: torch.zeros(192)}, converted.config)
    assert found.tensors.keys() == SOURCES["biased"]().keys()
    with pytest.raises(ConfigurationError, match="has a bias of the keys"):
        to_timm({**converted.tensors, name: torch.ones(192)}, converted.config)


# --- the folder -----------------------------------------------------------------------------------

RENDERED = cache(pictures._rendered)


@pytest.fixture(autouse=True)
def _rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's photographs are drawn once for all tests, which takes seconds."""
    monkeypatch.setattr(pictures, "_rendered", RENDERED)


def fitted(encoder: Encoder, folder: Path) -> ImageClassifier:
    """A classifier of random features, saved in `folder`."""
    X = np.random.default_rng(0).normal(size=(60, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=0.1).fit(X, np.array(["cat", "dog", "猫"] * 20, dtype=object))
    classifier = ImageClassifier(encoder, head)
    classifier.save(folder)
    return classifier


def timm_source(folder: Path, name: str = "biased") -> Encoder:
    """An encoder of random tensors that none has in common with another."""
    folder.mkdir()
    save_file(SOURCES[name](), folder / "model.safetensors")
    preprocessing = {"size": (64, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    from dinoprobe.preprocess import Preprocessing

    return Encoder.from_pretrained(
        str(folder), device="cpu", pooling="cls", preprocessing=Preprocessing(**preprocessing)
    )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", ["biased", "gated"])
def test_a_forward_by_timms_names_gives_the_probabilities(
    name: str, pooling: str, tmp_path: Path
) -> None:
    encoder = timm_source(tmp_path / "e", name).with_pooling(pooling)
    classifier = fitted(encoder, tmp_path / "c")
    folder = export(tmp_path / "c", "timm", out=str(tmp_path / "out")).path
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config["pretrained_cfg"]
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 64, 32), dtype=np.uint8)
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    pixels = (torch.from_numpy(images) / 255 - mean) / std
    tokens = layouts.timm_vit_tokens(tensors, pixels, config["model_args"]["num_heads"])
    pooled = tokens[:, 0] if config["global_pool"] == "token" else tokens[:, 5:].mean(dim=1)
    logits = pooled @ tensors["head.weight"].T + tensors["head.bias"]
    expected = classifier.predict_features(encoder.encode(torch.from_numpy(images)))
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=2e-5)
    assert config["model_args"]["global_pool"] == {"cls": "token", "mean": "avg"}[pooling]


def test_a_convnext_has_its_classifier_in_the_head(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_convnext(tmp_path / "e")), device="cpu")
    classifier = fitted(encoder, tmp_path / "c")
    folder = export(tmp_path / "c", "timm", out=str(tmp_path / "out")).path
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "convnext_tiny"
    assert "global_pool" not in config["model_args"]
    assert config["pretrained_cfg"]["classifier"] == "head.fc"
    tensors = load_file(folder / "model.safetensors")
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    settings = config["pretrained_cfg"]
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    pixels = (torch.from_numpy(images) / 255 - mean) / std
    tokens = layouts.timm_convnext_tokens(tensors, pixels, (1, 1, 1, 1))
    logits = tokens[:, 0] @ tensors["head.fc.weight"].T + tensors["head.fc.bias"]
    expected = classifier.predict_features(encoder.encode(torch.from_numpy(images)))
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=2e-5)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = save_vit(tmp_path_factory.mktemp("vit"))
    return Encoder.from_pretrained(str(folder), device="cpu", pooling="cls")


def test_the_folder_is_whole_and_says_what_timm_asks(vit: Encoder, tmp_path: Path) -> None:
    fitted(vit, tmp_path / "c")
    done = export(tmp_path / "c", "timm", out=str(tmp_path / "e"))
    assert {path.name for path in done.path.iterdir()} == {
        "NOTICE.txt",
        "README.md",
        "config.json",
        "dinoprobe.json",
        "gate.json",
        "model.safetensors",
    }
    assert {way["way"] for way in done.report["ways"]} == {
        "images resized as timm's transform does",
        "images resized by prepare",
    }
    config = json.loads((done.path / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == ["cat", "dog", "猫"]
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 3
    assert config["pretrained_cfg"] | {"tag": ""} == {
        "tag": "",
        "custom_load": False,
        "fixed_input_size": True,
        "num_classes": 3,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert (done.path / "model.safetensors").stat().st_mode & 0o077


def test_the_features_are_those_of_the_encoder_that_it_was_made_from(
    vit: Encoder, tmp_path: Path
) -> None:
    fitted(vit, tmp_path / "c")
    folder = export(tmp_path / "c", "timm", out=str(tmp_path / "e")).path
    again = Encoder.from_pretrained(
        str(folder), device="cpu", pooling="cls", preprocessing=vit.preprocessing
    )
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8))
    np.testing.assert_allclose(again.encode(images), vit.encode(images), atol=1e-4)


@pytest.mark.parametrize(("edge", "size"), [(None, 32), (37, 32), (49, 32), (256, 224)])
def test_a_crop_is_timms_share_of_the_shorter_side(
    vit: Encoder, edge: int | None, size: int, tmp_path: Path
) -> None:
    changed = replace(vit.preprocessing, size=(size, size), resize="crop", shortest_edge=edge)
    encoder = Encoder.from_pretrained(
        vit.reference, device="cpu", pooling="cls", preprocessing=changed
    )
    fitted(encoder, tmp_path / "c")
    folder = export(tmp_path / "c", "timm", out=str(tmp_path / "e")).path
    settings = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert settings["crop_mode"] == "center"
    assert int(size / settings["crop_pct"]) == (edge or size)  # timm's own arithmetic


def test_every_share_gives_its_edge_again() -> None:
    for size in range(16, 530, 16):
        for edge in range(size, 2 * size):
            assert int(size / timm_folder._share(size, edge)) == edge, (size, edge)


def test_several_labels_an_image(vit: Encoder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 32)).astype(np.float32), rng.integers(0, 2, (60, 3))
    head = MultiLabelProbe(C=1.0).fit(X, y, classes=["a", "c", "b"])
    ImageClassifier(vit, head).save(tmp_path / "c")
    done = export(tmp_path / "c", "timm", out=str(tmp_path / "e"))
    about = json.loads((done.path / "dinoprobe.json").read_text())
    assert about["multilabel"]
    assert done.report["max_probability_difference"] < 0.02


def test_what_has_no_place_is_refused(vit: Encoder, tmp_path: Path) -> None:
    def refused(encoder: Encoder, match: str) -> None:
        fitted(encoder, tmp_path / "c")
        with pytest.raises(ConfigurationError, match=match):
            export(tmp_path / "c", "timm", out=str(tmp_path / "e"))
        assert not (tmp_path / "e").exists()

    def prepared(**changes: Any) -> Encoder:
        preprocessing = replace(vit.preprocessing, **changes)
        return Encoder.from_pretrained(
            vit.reference, device="cpu", pooling="cls", preprocessing=preprocessing
        )

    both = Encoder.from_pretrained(vit.reference, device="cpu", pooling="cls+mean")
    refused(both, r"pooling 'cls\+mean' has no place in timm's models.*expected cls or mean")
    refused(prepared(resize="pad"), r"resize 'pad' to 32x32 is no transform of timm's")
    refused(prepared(resize="crop", size=(32, 64)), r"resize 'crop' to 32x64 is no transform")
    refused(prepared(rescale=1.0), r"pixels are scaled by 1.0, and timm's by 1/255")
    rounded = Encoder.from_pretrained(vit.reference, device="cpu", pooling="cls", rope="meta-bf16")
    refused(rounded, r"the encoder's rope is meta-bf16")
    other = Encoder.from_pretrained(str(save_dinov2(tmp_path / "d")), device="cpu", pooling="cls")
    refused(other, r"the encoder is a dinov2; expected a DINOv3")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mean", [0.1, 0.9, 0.5]), ("std", [0.9, 0.1, 0.5]), ("crop_pct", 0.5)],
)
def test_a_wrong_setting_does_not_pass(
    vit: Encoder, setting: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = timm_folder._preparation
    monkeypatch.setattr(timm_folder, "_preparation", lambda p: {**true(p), setting: value})
    shown = pictures.Pictures(("",) * 64, tuple(RENDERED(64)), (None,) * 64, 0, vit.preprocessing)
    X = shown.features(vit)
    labels = np.where(np.arange(64) % 2, "a", "b").astype(object)
    ImageClassifier(vit, LogisticProbe(C=1e4).fit(X, labels)).save(tmp_path / "c")
    with pytest.raises(MismatchError, match=r"the timm export does not answer"):
        export(tmp_path / "c", "timm", out=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists()
