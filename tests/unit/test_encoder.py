"""Loading, placing, pooling and the fingerprint, on random checkpoints in the official layout."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import PREPROCESSOR, save_convnext, save_dinov2, save_vit

from dinoprobe.encoder import Encoder, EncoderSettings, open_encoder
from dinoprobe.encoder.placement import choose_device, choose_dtype
from dinoprobe.encoder.pooling import choose_pooling, pool
from dinoprobe.errors import ConfigurationError, EncoderError, EncoderNotFoundError, FormatError
from dinoprobe.pooling import columns_of, sub_poolings
from dinoprobe.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_convnext(tmp_path_factory.mktemp("convnext"))


def images(n: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def reference_tokens(encoder: Encoder, batch: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """CLS and patch tokens by transformers itself, normalised here by the book."""
    mean = torch.tensor(PREPROCESSOR["image_mean"]).view(3, 1, 1)
    std = torch.tensor(PREPROCESSOR["image_std"]).view(3, 1, 1)
    with torch.no_grad():
        out = encoder.model(pixel_values=(batch.float() / 255 - mean) / std)
    return out.pooler_output.numpy(), out.last_hidden_state.numpy()


def test_vit_pooling_leaves_cls_and_registers_out_of_the_mean(vit: Path) -> None:
    encoder = Encoder.from_pretrained(str(vit), device="cpu")
    batch = images(3)
    cls, tokens = reference_tokens(encoder, batch)
    assert tokens.shape[1] == 1 + 4 + 16
    expected = np.concatenate([cls, tokens[:, 5:].mean(axis=1)], axis=1)
    assert encoder.pooling == "cls+mean"
    assert encoder.dimension == expected.shape[1]
    np.testing.assert_allclose(encoder.encode(batch), expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "first"), [("cls", None), ("mean", 1)])
def test_convnext_pooling(convnext: Path, pooling: str, first: int | None) -> None:
    encoder = Encoder.from_pretrained(str(convnext), device="cpu", pooling=pooling)
    batch = images(2, 64)
    cls, tokens = reference_tokens(encoder, batch)
    expected = cls if first is None else tokens[:, first:].mean(axis=1)
    np.testing.assert_allclose(encoder.encode(batch), expected, atol=1e-5)


def test_convnext_pools_cls_by_default(convnext: Path) -> None:
    assert Encoder.from_pretrained(str(convnext), device="cpu").pooling == "cls"


def test_pool_counts_registers() -> None:
    tokens = torch.arange(12.0).view(1, 6, 2)
    row = pool(tokens, skip=4, pooling="cls+mean")
    assert row.tolist() == [[0.0, 1.0, 9.0, 10.0]]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("deep"), depth=5)


@pytest.mark.parametrize("pooling", ["blocks2", "blocks4+mean", "blocks5"])
def test_blocks_are_the_last_ones_with_the_oldest_first(deep: Path, pooling: str) -> None:
    """Against hooks on the layers, as get_intermediate_layers takes the last n of them."""
    encoder = Encoder.from_pretrained(str(deep), device="cpu", pooling=pooling)
    batch, seen = images(3), []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, output: seen.append(output))
        for layer in encoder.model.model.layer
    ]
    cls, tokens = reference_tokens(encoder, batch)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        parts = [encoder.model.norm(tokens)[:, 0].numpy() for tokens in seen]
    parts = parts[-int(pooling[6]) :]
    np.testing.assert_allclose(parts[-1], cls, atol=1e-6)
    parts += [tokens[:, 5:].mean(axis=1)] if pooling.endswith("mean") else []
    assert encoder.dimension == 32 * len(parts)
    np.testing.assert_allclose(encoder.encode(batch), np.concatenate(parts, axis=1), atol=1e-5)


def test_more_blocks_than_there_are_are_refused(deep: Path) -> None:
    with pytest.raises(ConfigurationError, match="this model has 5 blocks"):
        Encoder.from_pretrained(str(deep), device="cpu", pooling="blocks6")


def test_another_pooling_of_one_model(deep: Path) -> None:
    """The same features and fingerprints as of an encoder that was opened with that pooling, and
    the same columns bit for bit where the first one computes them.
    """
    batch = images(3)
    whole = Encoder.from_pretrained(str(deep), device="cpu", pooling="blocks3+mean")
    rows, prints = whole.encode(batch), {whole.fingerprint}
    for pooling in sub_poolings(whole.pooling):
        other = whole.with_pooling(pooling)
        opened = Encoder.from_pretrained(str(deep), device="cpu", pooling=pooling)
        assert other.model is whole.model
        assert other.fingerprint == opened.fingerprint
        assert other.base_fingerprint == opened.base_fingerprint == whole.base_fingerprint
        assert other.description == opened.description
        prints.add(other.fingerprint)
        found = other.encode(batch)
        assert found.shape == (3, other.dimension) == (3, opened.dimension)
        columns = columns_of(whole.pooling, pooling, whole.dimension)
        np.testing.assert_array_equal(found, rows[:, columns])
        np.testing.assert_allclose(found, opened.encode(batch), atol=1e-5)
    assert len(prints) == len(sub_poolings(whole.pooling))
    np.testing.assert_array_equal(whole.encode(batch), rows)


def test_a_pooling_with_more_parts_gets_its_own_forward(deep: Path) -> None:
    batch = images(3)
    first = Encoder.from_pretrained(str(deep), device="cpu", pooling="cls")
    before = first.encode(batch)
    for pooling in ("auto", "mean", "blocks4+mean"):
        other = first.with_pooling(pooling)
        opened = Encoder.from_pretrained(str(deep), device="cpu", pooling=pooling)
        assert other.fingerprint == opened.fingerprint
        np.testing.assert_array_equal(other.encode(batch), opened.encode(batch))
        back = other.with_pooling("cls")
        assert back.fingerprint == first.fingerprint
        np.testing.assert_allclose(back.encode(batch), before, atol=1e-5)
    np.testing.assert_array_equal(first.encode(batch), before)
    with pytest.raises(ConfigurationError, match="this model has 5 blocks"):
        first.with_pooling("blocks9")


def test_threads_keep_their_own_blocks(tmp_path: Path) -> None:
    """Transformers' own forward, on a model that threads share."""
    encoder = Encoder.from_pretrained(
        str(save_dinov2(tmp_path)), device="cpu", pooling="blocks2+mean"
    )
    batches = [images(n, 28) for n in (1, 2, 3, 4)] * 3
    expected = [encoder.encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, rows in zip(pool.map(encoder.encode, batches), expected, strict=True):
            np.testing.assert_allclose(found, rows, atol=1e-5)
    copied = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(copied.encode(batches[3]), expected[3])


def test_blocks_that_can_not_be_read_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks that come after torch has compiled a block are not run."""
    monkeypatch.setattr("dinoprobe.encoder.blocks._watch", lambda _: None)
    encoder = Encoder.from_pretrained(str(save_dinov2(tmp_path)), device="cpu", pooling="blocks2")
    with pytest.raises(EncoderError, match="0 blocks gave their CLS"):
        encoder.encode(images(1, 28))


def test_the_plain_features_are_those_of_the_pooling(deep: Path) -> None:
    whole = Encoder.from_pretrained(str(deep), device="cpu", pooling="blocks3+mean")
    pixels = (images(2).float() / 255 - 0.5) / 0.2
    with torch.no_grad():
        rows = whole.plain(pixels)
        part = whole.with_pooling("blocks2").plain(pixels)
        tokens = whole.tokens(pixels)
    assert torch.equal(part, rows[:, 32:96])
    torch.testing.assert_close(part[:, 32:], tokens[:, 0])


def test_unknown_pooling_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"'max' is not known\. Use cls, mean"):
        choose_pooling("max", "dinov3_vit", 12)


def test_the_encoder_is_frozen(vit: Path) -> None:
    encoder = Encoder.from_pretrained(str(vit), device="cpu")
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    before = encoder.parameters_digest()
    features = encoder.encode(images(2))
    assert features.dtype == np.float32
    assert encoder.parameters_digest() == before


def test_parameters_digest_sees_one_changed_value(vit: Path) -> None:
    encoder = Encoder.from_pretrained(str(vit), device="cpu")
    before = encoder.parameters_digest()
    with torch.no_grad():
        next(encoder.model.parameters()).view(-1)[0] += 1
    assert encoder.parameters_digest() != before


def test_features_do_not_depend_on_the_batch(vit: Path) -> None:
    """Tolerance 1e-5 of the features' scale: kernels differ by shape in the last bits only."""
    encoder = Encoder.from_pretrained(str(vit), device="cpu")
    batch = images(8)
    whole = encoder.encode(batch)
    alone = np.concatenate([encoder.encode(batch[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(alone, whole, atol=1e-5 * np.abs(whole).max())


def test_fingerprint_follows_what_changes_the_numbers(vit: Path) -> None:
    base = Encoder.from_pretrained(str(vit), device="cpu")
    again = Encoder.from_pretrained(str(vit), device="cpu")
    others = [
        EncoderSettings(name=str(vit), device="cpu", pooling="cls"),
        EncoderSettings(name=str(vit), device="cpu", dtype="bfloat16"),
        EncoderSettings(name=str(vit), device="cpu", size_px=64),
        EncoderSettings(name=str(vit), device="cpu", exact=True),
        EncoderSettings(name=str(vit), device="cpu", resize="crop"),
    ]
    prints = [open_encoder(settings).fingerprint for settings in others]
    assert base.fingerprint == again.fingerprint
    assert len({base.fingerprint, *prints}) == 6


def test_fingerprint_follows_the_weights(vit: Path, tmp_path: Path) -> None:
    other = save_vit(tmp_path, seed=1)
    first = Encoder.from_pretrained(str(vit), device="cpu")
    assert Encoder.from_pretrained(str(other), device="cpu").fingerprint != first.fingerprint


def test_fingerprint_follows_the_configuration(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    first = Encoder.from_pretrained(str(folder), device="cpu").fingerprint
    config = json.loads((folder / "config.json").read_text())
    for name, value in (("layer_norm_eps", 0.1), ("hidden_act", "relu"), ("rope_theta", 10.0)):
        (folder / "config.json").write_text(json.dumps({**config, name: value}))
        assert Encoder.from_pretrained(str(folder), device="cpu").fingerprint != first, name


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_weights_say_so(tmp_path: Path, content: bytes) -> None:
    folder = save_vit(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EncoderError, match=r"can not be loaded .*Fetch the checkpoint again"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_bfloat16_stays_close(vit: Path) -> None:
    exact = Encoder.from_pretrained(str(vit), device="cpu").encode(images(4))
    half = Encoder.from_pretrained(str(vit), device="cpu", dtype="bfloat16").encode(images(4))
    cosine = (exact * half).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.999
    assert half.dtype == np.float32


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_weights_that_can_run_code_are_not_opened(tmp_path: Path, suffix: str) -> None:
    folder = save_vit(tmp_path)
    (folder / "model.safetensors").rename(folder / f"pytorch_model{suffix}")
    with pytest.raises(EncoderError, match=rf"no \.safetensors file.*pytorch_model\{suffix}"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_a_missing_tensor_is_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["embeddings.register_tokens"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 missing keys, first embeddings\.register_tokens"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_a_superfluous_tensor_is_an_error(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"unexpected keys, first classifier\.weight"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 mismatched keys, first .*norm\.weight.*7.*32"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EncoderError, match="Merge it into the weights first"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_a_size_that_patches_do_not_tile_is_refused_from_python_too(vit: Path) -> None:
    with pytest.raises(ConfigurationError, match="nearest that work: 96 or 104"):
        Encoder.from_pretrained(str(vit), preprocessing=Preprocessing(size=(100, 100)))


@pytest.mark.parametrize("model_type", ["bert", None])
def test_other_model_types_are_refused(tmp_path: Path, model_type: str | None) -> None:
    folder = save_vit(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(EncoderError, match="expected one of dinov3_vit, dinov3_convnext"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_remote_code_never_runs(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    proof = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    Encoder.from_pretrained(str(folder), device="cpu")
    assert not proof.exists()


def test_a_damaged_config_says_where(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json: not a JSON document"):
        Encoder.from_pretrained(str(folder), device="cpu")


def test_a_folder_without_config_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no \.safetensors file\. A folder in the transformers"):
        Encoder.from_pretrained(str(tmp_path), device="cpu")


def test_without_preprocessor_config_the_defaults_are_said(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    encoder = Encoder.from_pretrained(str(folder), device="cpu")
    assert encoder.preprocessing.size == (224, 224)
    assert "no preprocessor_config.json" in encoder.notes[0]


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(EncoderNotFoundError, match=r"Did you mean vits16"):
        Encoder.from_pretrained("vit-s16")


def test_a_file_is_not_an_encoder(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    with pytest.raises(EncoderNotFoundError, match="a file, where a folder"):
        Encoder.from_pretrained(str(path))


def test_a_size_that_the_patches_do_not_divide_is_refused(vit: Path) -> None:
    with pytest.raises(ConfigurationError, match="multiple"):
        open_encoder(EncoderSettings(name=str(vit), size_px=33))


def test_devices_and_dtypes() -> None:
    cpu = choose_device("cpu")
    assert choose_dtype("auto", cpu) is torch.float32
    assert choose_dtype("bfloat16", cpu) is torch.bfloat16
    with pytest.raises(ConfigurationError, match="slower than float32 on a CPU"):
        choose_dtype("float16", cpu)
    with pytest.raises(ConfigurationError, match="Use one of auto, float32"):
        choose_dtype("int8", cpu)
    with pytest.raises(ConfigurationError, match="is not known"):
        choose_device("gpu")
    with pytest.raises(ConfigurationError, match="asked for and"):
        choose_device("cuda:99")


def test_settings_survive_json() -> None:
    settings = EncoderSettings(name="vits16", bands=(3, 2, 1), size_px=64)
    assert EncoderSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    "change",
    [{"max_memory": 5}, {"normalize": ["a"]}, {"device": None}, {"device_map": 7}, {"exact": "no"}],
)
def test_a_runs_configuration_is_checked_by_type(change: dict[str, object]) -> None:
    from dinoprobe.train import DataSettings, TrainConfig

    config = TrainConfig(data=DataSettings(source="x"), encoder=EncoderSettings(name="builtin"))
    values = config.to_dict()
    assert TrainConfig.from_dict(json.loads(json.dumps(values))) == config
    values["encoder"] = {**values["encoder"], **change}
    with pytest.raises(ConfigurationError, match=f"{next(iter(change))} is .*, expected"):
        TrainConfig.from_dict(values)
