"""Converted checkpoints against forward passes that read Meta's and timm's layouts directly.

The reference (tests/layouts.py) shares no code with the conversion nor with transformers.
Tolerance: 1e-5 of the largest token. Both sides sum in float32 in another order, measured 0.6 to 2
in 1e6; an exchanged or mis-split tensor changes tokens by more than 1e-2: see the last tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests import layouts
from tests.layouts import CONVNEXTS, VITS, ConvNeXt, Tensors, ViT

from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.encoder.families import FAMILIES
from dinoprobe.encoder.formats import Converted, convert
from dinoprobe.encoder.pth import import_pth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOLERANCE = 1e-5
SEEN = 1e-2
SIZES = [(224, 224), (256, 256), (128, 224)]
DEPTHS = {"vitl16": 2, "vith16plus": 2, "vit7b16": 1}  # what a test has memory and time for
SHALLOW = {
    "convnext-small": (1, 1, 4, 1),
    "convnext-base": (1, 1, 3, 1),
    "convnext-large": (1, 1, 2, 1),
}
SMALL_VIT = ViT(width=32, depth=2, heads=2, inner=48, patch=8)
SMALL_GATED = ViT(width=32, depth=2, heads=2, inner=48, patch=8, gated=True)
SMALL_CONVNEXT = ConvNeXt((8, 12, 16, 20), (1, 2, 1, 1))


def pixels(height: int, width: int, n: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def model_of(converted: Converted) -> Any:
    """transformers' model with these weights, every one of which must find its place."""
    family = FAMILIES[converted.config["model_type"]]
    settings = {key: value for key, value in converted.config.items() if key != "model_type"}
    model, info = family.model_class().from_pretrained(
        None,
        config=family.config_class()(**settings),
        state_dict=dict(converted.tensors),
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not any(info.values())
    return model.eval()


@torch.no_grad()
def difference(model: Any, expected: torch.Tensor, images: torch.Tensor) -> float:
    """Largest difference of any number of any token, over the largest token."""
    output = model(images)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    return float((output.last_hidden_state - expected).abs().max() / expected.abs().max())


def shape_of_vit(name: str) -> ViT:
    return VITS[name].shallow(DEPTHS.get(name, VITS[name].depth))


def check_config(name: str, converted: Converted, *, reduced: bool) -> None:
    """The settings that transformers' official configuration has, as far as the depth is whole."""
    expected = dict(CHECKPOINTS[name].config)
    for key in ("num_hidden_layers", "depths") if reduced else ():
        expected.pop(key, None)
    found = {key: converted.config.get(key) for key in expected}
    assert found == expected
    if not reduced:
        count = sum(tensor.numel() for tensor in converted.tensors.values())
        assert count == CHECKPOINTS[name].parameters


@pytest.mark.parametrize("name", VITS)
def test_vit_from_meta(name: str) -> None:
    shape = shape_of_vit(name)
    tensors = layouts.meta_vit(shape)
    converted = convert(tensors, place=name)
    check_config(name, converted, reduced=name in DEPTHS)
    model = model_of(converted)
    for size in SIZES:
        images = pixels(*size)
        expected = layouts.meta_vit_tokens(tensors, images, shape.heads)
        assert expected.shape[1] == 5 + size[0] * size[1] // 256
        assert difference(model, expected, images) < TOLERANCE


@pytest.mark.parametrize("name", VITS)
def test_vit_from_timm(name: str) -> None:
    """The small ones with biases as timm has them, the largest without."""
    shape = shape_of_vit(name)
    tensors = layouts.timm_vit(shape, biases="separate" if shape.biased else "none")
    converted = convert(tensors, place=name)
    check_config(name, converted, reduced=name in DEPTHS or not shape.biased)
    model = model_of(converted)
    for size in SIZES:
        images = pixels(*size)
        expected = layouts.timm_vit_tokens(tensors, images, shape.heads)
        assert difference(model, expected, images) < TOLERANCE


@pytest.mark.parametrize("layout", ["meta", "timm"])
@pytest.mark.parametrize("name", CONVNEXTS)
def test_convnext(name: str, layout: str) -> None:
    shape = CONVNEXTS[name].shallow(*SHALLOW.get(name, CONVNEXTS[name].depths))
    make = layouts.meta_convnext if layout == "meta" else layouts.timm_convnext
    forward = layouts.meta_convnext_tokens if layout == "meta" else layouts.timm_convnext_tokens
    tensors = make(shape)
    converted = convert(tensors, place=name)
    check_config(name, converted, reduced=name in SHALLOW)
    model = model_of(converted)
    for size in SIZES:
        images = pixels(*size)
        expected = forward(tensors, images, shape.depths)
        assert expected.shape[1] == 1 + size[0] * size[1] // 1024
        assert difference(model, expected, images) < TOLERANCE


@pytest.mark.parametrize("biases", ["none", "separate", "fused"])
def test_each_way_that_timm_holds_biases(biases: layouts.Biases) -> None:
    """A fused bias has a part for the keys, which is not zero here and must be kept."""
    vit = ViT(width=192, depth=2, heads=3, inner=96, patch=16)
    tensors = layouts.timm_vit(vit, biases=biases)
    converted = convert(tensors, place="timm")
    assert converted.config["key_bias"] is (biases == "fused")
    assert converted.config["query_bias"] is (biases != "none")
    images = pixels(64, 96, 2)
    expected = layouts.timm_vit_tokens(tensors, images, 3)
    assert difference(model_of(converted), expected, images) < TOLERANCE


def test_a_bias_of_the_keys_that_nothing_masks_counts() -> None:
    """Without the mask the same numbers give other tokens: positions turn the keys' bias."""
    tensors = layouts.meta_vit(SMALL_VIT)
    images = pixels(64, 64)
    masked = layouts.meta_vit_tokens(tensors, images, 2)
    for block in range(SMALL_VIT.depth):
        del tensors[f"blocks.{block}.attn.qkv.bias_mask"]
    converted = convert(tensors, place="meta")
    assert converted.config["key_bias"] is True
    expected = layouts.meta_vit_tokens(tensors, images, 2)
    assert difference(model_of(converted), expected, images) < TOLERANCE
    assert (expected - masked).abs().max() > SEEN


def test_pointwise_layers_as_convolutions() -> None:
    tensors = layouts.timm_convnext(SMALL_CONVNEXT, pointwise_dimensions=4)
    assert tensors["stages.0.blocks.0.mlp.fc1.weight"].ndim == 4
    images = pixels(64, 96, 2)
    expected = layouts.timm_convnext_tokens(tensors, images, SMALL_CONVNEXT.depths)
    assert difference(model_of(convert(tensors, place="timm")), expected, images) < TOLERANCE


@pytest.mark.parametrize("rounded", [False, True])
def test_periods_as_bfloat16_rounds_them(rounded: bool) -> None:
    """What transformers computes anew differs from Meta's rounded periods by up to one in 256, so
    tokens do by a few in a hundred here, where random weights exaggerate it. Exact periods agree.
    """
    tensors = layouts.meta_vit(VITS["vits16"].shallow(2))
    if rounded:
        tensors["rope_embed.periods"] = tensors["rope_embed.periods"].bfloat16()
    images = pixels(224, 224)
    expected = layouts.meta_vit_tokens(tensors, images, 6)
    found = difference(model_of(convert(tensors, place="meta")), expected, images)
    assert (TOLERANCE < found < 0.1) if rounded else (found < TOLERANCE)


# --- a .pth file, all the way ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "gated", "convnext"])
def test_a_pth_becomes_a_folder_with_the_same_tokens(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    images = pixels(64, 96, 2)
    if kind == "convnext":
        tensors = layouts.meta_convnext(SMALL_CONVNEXT)
        expected = layouts.meta_convnext_tokens(tensors, images, SMALL_CONVNEXT.depths)
        model_type = "dinov3_convnext"
    else:
        tensors = layouts.meta_vit(SMALL_VIT if kind == "vit" else SMALL_GATED)
        tensors |= layouts.Draw(9).norm("local_cls_norm", 32)
        expected = layouts.meta_vit_tokens(tensors, images, 2)
        model_type = "dinov3_vit"
    torch.save(tensors, tmp_path / "weights.pth")
    folder = import_pth(tmp_path / "weights.pth").folder
    model, info = (
        FAMILIES[model_type]
        .model_class()
        .from_pretrained(str(folder), use_safetensors=True, output_loading_info=True)
    )
    assert not any(info.values())
    assert difference(model.eval(), expected, images) < TOLERANCE


# --- that the reference would see a mistake -------------------------------------------------------


def _vit_tokens(tensors: Tensors) -> torch.Tensor:
    if "storage_tokens" in tensors:
        return layouts.meta_vit_tokens(tensors, pixels(32, 48), 2)
    return layouts.timm_vit_tokens(tensors, pixels(32, 48), 2)


def _convnext_tokens(tensors: Tensors) -> torch.Tensor:
    if "stem.0.weight" in tensors:
        return layouts.timm_convnext_tokens(tensors, pixels(64, 64), SMALL_CONVNEXT.depths)
    return layouts.meta_convnext_tokens(tensors, pixels(64, 64), SMALL_CONVNEXT.depths)


CASES: dict[str, tuple[Tensors, Callable[[Tensors], torch.Tensor]]] = {
    "meta": (layouts.meta_vit(SMALL_VIT), _vit_tokens),
    "meta gated": (layouts.meta_vit(SMALL_GATED), _vit_tokens),
    "timm": (layouts.timm_vit(SMALL_VIT), _vit_tokens),
    "timm gated": (layouts.timm_vit(SMALL_GATED), _vit_tokens),
    "meta convnext": (layouts.meta_convnext(SMALL_CONVNEXT), _convnext_tokens),
    "timm convnext": (layouts.timm_convnext(SMALL_CONVNEXT), _convnext_tokens),
}
UNREAD = ("mask_token", "norms.")


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_counts_in_the_reference(case: str) -> None:
    """Turned around, each tensor gives other tokens; what no forward pass reads is named above."""
    tensors, forward = CASES[case]
    before = forward(tensors)
    for name, tensor in tensors.items():
        flipped = tensor.flip(tuple(range(tensor.ndim)))
        changed = (forward({**tensors, name: flipped}) - before).abs().max()
        assert (changed > 0) is not name.startswith(UNREAD), name


@pytest.mark.parametrize(
    ("case", "one", "other"),
    [
        ("meta", "blocks.0.norm1.weight", "blocks.0.norm2.weight"),
        ("meta", "blocks.0.ls1.gamma", "blocks.0.ls2.gamma"),
        ("meta", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"),
        ("meta gated", "blocks.0.mlp.w1.weight", "blocks.0.mlp.w2.weight"),
        ("timm", "blocks.0.attn.q_bias", "blocks.0.attn.v_bias"),
        ("timm gated", "blocks.1.mlp.fc1_g.weight", "blocks.1.mlp.fc1_x.weight"),
        ("meta convnext", "stages.1.0.dwconv.weight", "stages.1.1.dwconv.weight"),
        ("timm convnext", "stem.1.weight", "stem.0.bias"),
    ],
)
def test_an_exchange_is_far_outside_the_tolerance(case: str, one: str, other: str) -> None:
    tensors, forward = CASES[case]
    changed = forward({**tensors, one: tensors[other], other: tensors[one]}) - forward(tensors)
    assert changed.abs().max() / forward(tensors).abs().max() > SEEN
