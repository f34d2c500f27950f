"""Features against plain transformers and a pooling written by hand, for every architecture.

Tolerance 1e-6 on 1 - cosine and 2e-5 of the features' scale: both sides run the same kernels in
float32 on the same pixels, so only the order of sums in the mean may differ. One register taken for
a patch moves the mean by 1e-2 and more.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.checkpoints import (
    save_convnext,
    save_dinov2,
    save_vit,
    save_vit_of_google,
)

from dinoprobe.encoder import Encoder, EncoderSettings, open_encoder
from dinoprobe.errors import ConfigurationError, EncoderError
from dinoprobe.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

# family -> (writer, position of the first patch, pixels that a patch covers)
FAMILIES: dict[str, tuple[Any, int, int]] = {
    "dinov3_vit": (save_vit, 5, 8),
    "dinov3_convnext": (save_convnext, 1, 32),
    "dinov2": (save_dinov2, 1, 14),
    "dinov2_with_registers": (lambda folder: save_dinov2(folder, registers=True), 4, 14),
    "vit": (save_vit_of_google, 1, 8),
}
POOLINGS = ("cls", "mean", "cls+mean", "blocks2", "blocks2+mean")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save(root / name) for name, (save, _, _) in FAMILIES.items()}


def by_hand(folder: Path, family: str, pixels: torch.Tensor, pooling: str) -> np.ndarray:
    """AutoModel on normalised pixels, CLS at 0, the patches from their position on."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    options = {"interpolate_pos_encoding": True} if family == "vit" else {}
    with torch.no_grad():
        output = model(pixel_values=pixels, output_hidden_states=True, **options)
        tokens = output.last_hidden_state.double()
        cls, mean = tokens[:, 0], tokens[:, FAMILIES[family][1] :].mean(dim=1)
        parts = {"cls": [cls], "mean": [mean], "cls+mean": [cls, mean]}.get(pooling, [])
        if not parts:  # of two blocks, so the first one's output
            norm = model.norm if family == "dinov3_vit" else model.layernorm
            parts = [norm(output.hidden_states[1])[:, 0].double(), cls, mean]
            parts = parts if pooling == "blocks2+mean" else parts[:2]
    return torch.cat(parts, dim=1).numpy()


def normalised(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cells", [(4, 4), (7, 7), (3, 6)], ids=lambda c: f"{c[0]}x{c[1]} patches")
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_plain_transformers(
    folders: dict[str, Path], family: str, cells: tuple[int, int], pooling: str
) -> None:
    if pooling.startswith("blocks") and family == "dinov3_convnext":
        with pytest.raises(ConfigurationError, match="blocks of a ConvNeXt have no CLS"):
            Encoder.from_pretrained(str(folders[family]), pooling=pooling, device="cpu")
        return
    patch = FAMILIES[family][2]
    size = (cells[0] * patch, cells[1] * patch)
    preprocessing = Preprocessing(size=size)
    encoder = Encoder.from_pretrained(
        str(folders[family]), pooling=pooling, device="cpu", preprocessing=preprocessing
    )
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=generator)
    expected = by_hand(folders[family], family, normalised(images, preprocessing), pooling)
    features = encoder.encode(images)
    assert features.shape == (3, encoder.dimension)
    np.testing.assert_allclose(features, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patches_start_where_the_architecture_has_them(
    folders: dict[str, Path], family: str
) -> None:
    encoder = Encoder.from_pretrained(str(folders[family]), device="cpu")
    assert encoder.model_type == family
    assert encoder.tokens_before_patches == FAMILIES[family][1]


def test_registers_come_from_the_configuration_and_not_from_the_name(tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path / "plainly-named", registers=True)
    assert Encoder.from_pretrained(str(folder), device="cpu").tokens_before_patches == 4


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_a_stray_count_of_registers_is_not_believed(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(folders[family], tmp_path / family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_register_tokens": 4}))
    assert Encoder.from_pretrained(str(folder), device="cpu").tokens_before_patches == 1


def test_dinov2_is_cropped_and_bicubic_as_its_file_says(folders: dict[str, Path]) -> None:
    own = Encoder.from_pretrained(str(folders["dinov2"]), device="cpu").preprocessing
    assert (own.size, own.resize, own.shortest_edge) == ((28, 28), "crop", 32)
    assert own.interpolation == "bicubic"


def test_without_its_file_dinov2_has_defaults_and_another_model_none(tmp_path: Path) -> None:
    for save in (save_dinov2, save_vit_of_google):
        (save(tmp_path / save.__name__) / "preprocessor_config.json").unlink()
    encoder = Encoder.from_pretrained(str(tmp_path / "save_dinov2"), device="cpu")
    assert (encoder.preprocessing.size, encoder.preprocessing.shortest_edge) == ((224, 224), 256)
    assert "DINOv2's defaults" in encoder.notes[0]
    with pytest.raises(EncoderError, match="nothing says what images the model expects"):
        Encoder.from_pretrained(str(tmp_path / "save_vit_of_google"), device="cpu")
    own = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    told = Encoder.from_pretrained(
        str(tmp_path / "save_vit_of_google"), device="cpu", preprocessing=own
    )
    assert told.preprocessing == own


@pytest.mark.parametrize("registers", [False, True])
def test_a_classifier_of_dinov2_gives_its_encoder(tmp_path: Path, registers: bool) -> None:
    """Published with a head, keys begin with the model's name: the head is left out."""
    from transformers import AutoModelForImageClassification

    folder = save_dinov2(tmp_path / "encoder", registers=registers)
    whole = AutoModelForImageClassification.from_pretrained(folder)
    whole.save_pretrained(tmp_path / "classifier")
    settings = (folder / "preprocessor_config.json").read_text()
    (tmp_path / "classifier" / "preprocessor_config.json").write_text(settings)
    plain = Encoder.from_pretrained(str(folder), device="cpu")
    headed = Encoder.from_pretrained(str(tmp_path / "classifier"), device="cpu")
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    np.testing.assert_array_equal(plain.encode(images), headed.encode(images))
    assert plain.weights_digest == headed.weights_digest


def test_a_size_between_patches_is_refused_with_the_nearest(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"nearest that work: 28 or 42"):
        open_encoder(EncoderSettings(name=str(folders["dinov2"]), size_px=32))


# --- shards, old names, precision, several devices ------------------------------------------------


def test_shards_and_one_file_are_the_same_encoder(tmp_path: Path) -> None:
    from transformers.models.dinov3_vit import DINOv3ViTModel

    folder = save_vit(tmp_path / "one")
    DINOv3ViTModel.from_pretrained(folder).save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    settings = (folder / "preprocessor_config.json").read_text()
    (tmp_path / "many" / "preprocessor_config.json").write_text(settings)
    one, many = (Encoder.from_pretrained(str(tmp_path / n), device="cpu") for n in ("one", "many"))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(one.encode(images), many.encode(images))
    assert one.fingerprint == many.fingerprint


@pytest.mark.parametrize("save", [save_vit, save_convnext])
def test_both_generations_of_key_names_are_the_same_encoder(save: Any, tmp_path: Path) -> None:
    """transformers before 5 wrote `layer.0.` and `stages.0.`, later ones put `model.` before."""
    from safetensors.torch import load_file, save_file

    first = Encoder.from_pretrained(str(save(tmp_path)), device="cpu")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before = first.encode(images)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    flipped = {
        (name.removeprefix("model.") if name.startswith("model.") else _with_model(name)): tensor
        for name, tensor in stored.items()
    }
    assert flipped.keys() != stored.keys()
    save_file(flipped, path, metadata={"format": "pt"})
    second = Encoder.from_pretrained(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(second.encode(images), before)
    assert second.fingerprint == first.fingerprint


def _with_model(name: str) -> str:
    return f"model.{name}" if name.startswith(("layer.", "stages.")) else name


@pytest.mark.parametrize("memory", ["cpu=60KB", "cpu=1KB", None])
def test_a_model_that_is_spread_gives_the_same_features(tmp_path: Path, memory: str | None) -> None:
    """60 kB hold part of it: the rest is read from disk while it runs. On one device the map is
    moot.
    """
    folder = save_vit(tmp_path)
    settings = EncoderSettings(name=str(folder), device_map="auto", max_memory=memory)
    spread = open_encoder(settings)
    whole = Encoder.from_pretrained(str(folder), device="cpu")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert spread.is_spread is (memory is not None)
    expected = whole.encode(images)
    np.testing.assert_allclose(spread.encode(images), expected, atol=2e-5 * np.abs(expected).max())
    assert spread.fingerprint == whole.fingerprint


def test_a_word_spreads_a_model_in_python(tmp_path: Path) -> None:
    folder = str(save_vit(tmp_path))
    whole = Encoder.from_pretrained(folder, device="cpu")
    assert Encoder.from_pretrained(folder, spread="auto").fingerprint == whole.fingerprint
    with pytest.raises(ConfigurationError, match="Use one of auto"):
        Encoder.from_pretrained(folder, spread="everywhere")


def test_a_spread_model_is_asked_one_batch_at_a_time(tmp_path: Path) -> None:
    import dinoprobe as dp

    settings = EncoderSettings(
        name=str(save_vit(tmp_path)), device_map="auto", max_memory="cpu=60KB"
    )
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(40)]
    spread = dp.embed(pictures, open_encoder(settings), store=str(tmp_path / "a"))
    whole = Encoder.from_pretrained(settings.name, device="cpu")
    expected = dp.embed(pictures, whole, store=str(tmp_path / "b"))
    np.testing.assert_allclose(spread.X, expected.X, atol=1e-5 * np.abs(expected.X).max())


def test_rounded_rope_changes_features_a_little_and_the_fingerprint(tmp_path: Path) -> None:
    """Against periods rounded by hand: 100 ** (0, 1/4, ...) to bfloat16 and back."""
    folder = save_vit(tmp_path)
    plain = open_encoder(EncoderSettings(name=str(folder), device="cpu"))
    rounded = open_encoder(EncoderSettings(name=str(folder), device="cpu", rope="meta-bf16"))
    periods = 100.0 ** torch.arange(0, 1, 4 / 16)
    expected = 1 / periods.bfloat16().float()
    torch.testing.assert_close(rounded.model.rope_embeddings.inv_freq, expected, rtol=1e-6, atol=0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    difference = np.abs(plain.encode(images) - rounded.encode(images)).max()
    assert 0 < difference < 0.1
    assert plain.fingerprint != rounded.fingerprint
