"""Statistics and sizes: right by default, and never mixed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.checkpoints import save_vit

from dinoprobe.encoder import Encoder, EncoderSettings, open_encoder
from dinoprobe.errors import ConfigurationError, EncoderError

if TYPE_CHECKING:
    from pathlib import Path

SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def satellite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose file carries ImageNet's numbers, as the hub's do."""
    folder = tmp_path_factory.mktemp("hub") / "dinov3-vitl16-pretrain-sat493m"
    save_vit(folder)
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"][0] == 0.485
    return folder


def statistics(encoder: Encoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return encoder.preprocessing.mean, encoder.preprocessing.std


def test_satellite_weights_get_their_own_and_a_note_says_so(satellite: Path) -> None:
    encoder = open_encoder(EncoderSettings(name=str(satellite), device="cpu"))
    assert statistics(encoder) == SATELLITE
    (note,) = encoder.notes
    assert "SAT-493M statistics" in note
    assert "--normalize imagenet" in note


def test_normalize_overrides_and_says_what_it_was_trained_with(satellite: Path) -> None:
    encoder = open_encoder(EncoderSettings(name=str(satellite), device="cpu", normalize="imagenet"))
    assert statistics(encoder) == IMAGENET
    (note,) = encoder.notes
    assert "as asked; it was trained with those of SAT-493M" in note


def test_normalize_works_the_other_way_round(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "plain")
    encoder = open_encoder(EncoderSettings(name=str(folder), device="cpu", normalize="sat493m"))
    assert statistics(encoder) == SATELLITE
    assert encoder.notes == ()


def test_an_unknown_name_is_refused(satellite: Path) -> None:
    with pytest.raises(ConfigurationError, match="Use imagenet or sat493m"):
        open_encoder(EncoderSettings(name=str(satellite), normalize="satellite"))


def test_no_two_of_them_share_a_fingerprint(satellite: Path) -> None:
    name = str(satellite)
    options = [
        {},
        {"normalize": "imagenet"},
        {"size_px": 256},
        {"size_px": 512},
        {"size_px": 768},
        {"resize": "crop"},
        {"exact": True},
        {"dtype": "bfloat16"},
        {"pooling": "cls"},
        {"rope": "meta-bf16"},
    ]
    found = {
        open_encoder(EncoderSettings(name=name, device="cpu", **option)).fingerprint  # type: ignore[arg-type]
        for option in options
    }
    assert len(found) == len(options)


@pytest.mark.parametrize(("size", "nearest"), [(250, "248 or 256"), (257, "256 or 264")])
def test_a_size_that_patches_do_not_tile_names_the_nearest(
    satellite: Path, size: int, nearest: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"nearest that work: {nearest}"):
        open_encoder(EncoderSettings(name=str(satellite), size_px=size))


def timm_folder(folder: Path, **files: object) -> Path:
    from safetensors.torch import save_file
    from tests.layouts import ConvNeXt, timm_convnext

    folder.mkdir()
    save_file(timm_convnext(ConvNeXt((8, 16, 24, 32), (1, 1, 1, 1))), folder / "model.safetensors")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_timms_other_models_with_the_same_tensors_are_refused(tmp_path: Path) -> None:
    other = {"architecture": "convnext_tiny", "pretrained_cfg": {"tag": "clip_laion2b"}}
    folder = timm_folder(tmp_path / "w", config=other)
    with pytest.raises(EncoderError, match=r"timm's convnext_tiny\.clip_laion2b, expected one of"):
        Encoder.from_pretrained(str(folder), device="cpu")
    ours = {"architecture": "convnext_tiny", "pretrained_cfg": {"tag": "dinov3_lvd1689m"}}
    good = timm_folder(tmp_path / "good", config=ours)
    assert Encoder.from_pretrained(str(good), device="cpu").model_type == "dinov3_convnext"


def test_a_preprocessor_that_is_there_is_used_in_every_layout(tmp_path: Path) -> None:
    own = {"image_mean": [0.1, 0.2, 0.3], "size": {"height": 256, "width": 256}}
    folder = timm_folder(tmp_path / "w", preprocessor_config=own)
    encoder = Encoder.from_pretrained(str(folder), device="cpu")
    assert encoder.preprocessing.mean == (0.1, 0.2, 0.3)
    (note,) = encoder.notes
    assert "taken for DINOv3 by its tensors" in note


@pytest.mark.parametrize(("width", "heads", "unsure"), [(1024, 16, True), (384, 6, False)])
def test_weights_that_may_be_of_satellites_are_said_to_be(
    width: int, heads: int, unsure: bool, tmp_path: Path
) -> None:
    from safetensors.torch import save_file
    from tests.layouts import ViT, timm_vit

    save_file(timm_vit(ViT(width, 1, heads, 16)), tmp_path / "mine.safetensors")
    encoder = Encoder.from_pretrained(str(tmp_path / "mine.safetensors"), device="cpu")
    assert any("--normalize sat493m" in note for note in encoder.notes) is unsure


def test_a_renamed_folder_that_may_be_of_satellites_is_said_to_be(tmp_path: Path) -> None:
    """The hub's satellite files carry ImageNet's numbers: without the name nothing tells."""
    folder = save_vit(tmp_path / "encoder", width=1024)
    (note,) = Encoder.from_pretrained(str(folder), device="cpu").notes
    assert "--normalize sat493m" in note
    settings = EncoderSettings(name=str(folder), device="cpu", normalize="imagenet")
    assert open_encoder(settings).notes == ()


def test_timms_own_config_tells_satellite_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from tests.layouts import ViT, timm_vit

    save_file(timm_vit(ViT(192, 1, 3, 16)), tmp_path / "model.safetensors")
    cfg = {"architecture": "vit_large_patch16_dinov3", "pretrained_cfg": {"tag": "sat493m"}}
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    assert statistics(Encoder.from_pretrained(str(tmp_path), device="cpu")) == SATELLITE


def test_what_was_unsure_at_import_is_said_at_every_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from tests.layouts import ViT, meta_vit

    from dinoprobe.encoder.pth import import_pth

    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    torch.save(meta_vit(ViT(192, 1, 3, 48)), tmp_path / "dinov3-0a1b2c3d.pth")
    slug = import_pth(tmp_path / "dinov3-0a1b2c3d.pth").slug
    notes = Encoder.from_pretrained(f"imported:{slug}", device="cpu").notes
    assert any("its name says 0a1b2c3d" in note for note in notes)
    assert not any("bias of the keys" in note for note in notes)


def test_rope_is_a_matter_of_the_vits(tmp_path: Path) -> None:
    from tests.checkpoints import save_convnext

    folder = save_convnext(tmp_path)
    with pytest.raises(ConfigurationError, match="can not be used here"):
        open_encoder(EncoderSettings(name=str(folder), rope="meta-bf16"))
    with pytest.raises(ConfigurationError, match="Use float32 or meta-bf16"):
        open_encoder(EncoderSettings(name="builtin", rope="bf16"))
