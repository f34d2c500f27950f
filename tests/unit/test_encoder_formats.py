"""Key maps: which layout, which settings, and that nothing is mapped or left out in silence."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest
import torch
from tests import layouts
from tests.layouts import ConvNeXt, Tensors, ViT

from dinoprobe.encoder.formats import canonical_name, convert, detect
from dinoprobe.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = ViT(width=32, depth=2, heads=2, inner=48, patch=8)
GATED = ViT(width=32, depth=2, heads=2, inner=48, patch=8, gated=True)
TIMM = ViT(width=192, depth=2, heads=3, inner=64, patch=8)
TIMM_GATED = ViT(width=192, depth=2, heads=3, inner=64, patch=8, gated=True)
CONVNEXT = ConvNeXt((8, 12, 16, 20), (1, 2, 1, 1))
LAYOUTS: dict[str, Callable[[], Tensors]] = {
    "meta": lambda: layouts.meta_vit(SHAPE),
    "meta gated": lambda: layouts.meta_vit(GATED),
    "timm": lambda: layouts.timm_vit(TIMM),
    "timm gated": lambda: layouts.timm_vit(TIMM_GATED, biases="fused"),
    "meta convnext": lambda: layouts.meta_convnext(CONVNEXT),
    "timm convnext": lambda: layouts.timm_convnext(CONVNEXT),
}


def meta() -> Tensors:
    return layouts.meta_vit(SHAPE)


# --- which layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_told_by_its_names(name: str) -> None:
    assert detect(LAYOUTS[name]().keys()) == name.partition(" ")[0]


@pytest.mark.parametrize(
    "names",
    [
        ["embeddings.patch_embeddings.weight", "layer.0.norm1.weight"],
        ["embeddings.patch_embeddings.weight", "model.layer.0.norm1.weight"],
        ["stages.0.downsample_layers.0.weight"],
        ["model.stages.0.downsample_layers.0.weight"],
    ],
)
def test_both_generations_of_transformers_are_told(names: list[str]) -> None:
    assert detect(names) == "transformers"


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma"],  # DINOv2
        ["cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"],  # a ViT
        ["embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"],
        ["conv1.weight", "layer1.0.conv1.weight"],
    ],
)
def test_other_models_are_none_of_them(names: list[str]) -> None:
    assert detect(names) is None
    with pytest.raises(FormatError, match=r"^here: .*Fetch the file again"):
        convert({name: torch.zeros(1) for name in names}, place="here")


def test_names_of_transformers_get_another_hint() -> None:
    tensors = {"embeddings.patch_embeddings.weight": torch.zeros(1)}
    with pytest.raises(FormatError, match=r"Save them as model\.safetensors beside a config\.json"):
        convert(tensors, place="here")


def test_what_a_layout_lacks_is_named() -> None:
    tensors = meta()
    del tensors["storage_tokens"]
    with pytest.raises(FormatError, match="no tensor storage_tokens, expected in DINOv3 as meta"):
        convert(tensors, place="here")


@pytest.mark.parametrize(
    ("name", "model_type", "canonical"),
    [
        ("layer.3.norm1.weight", "dinov3_vit", "model.layer.3.norm1.weight"),
        ("model.layer.3.norm1.weight", "dinov3_vit", "model.layer.3.norm1.weight"),
        ("norm.weight", "dinov3_vit", "norm.weight"),
        ("stages.0.layers.0.gamma", "dinov3_convnext", "model.stages.0.layers.0.gamma"),
        ("model.stages.0.layers.0.gamma", "dinov3_convnext", "model.stages.0.layers.0.gamma"),
        ("layer_norm.weight", "dinov3_convnext", "layer_norm.weight"),
        ("encoder.layer.0.norm1.weight", "dinov2", "encoder.layer.0.norm1.weight"),
        ("layer.0.norm1.weight", "vit", "layer.0.norm1.weight"),
    ],
)
def test_canonical_names(name: str, model_type: str, canonical: str) -> None:
    assert canonical_name(name, model_type) == canonical


# --- settings -------------------------------------------------------------------------------------


def test_settings_of_a_vit_come_from_its_tensors() -> None:
    shape = ViT(width=48, depth=3, heads=3, inner=80, registers=2, patch=4)
    assert convert(layouts.meta_vit(shape), place="x").config == {
        "model_type": "dinov3_vit",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_register_tokens": 2,
        "patch_size": 4,
        "num_channels": 3,
        "use_gated_mlp": False,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
    }


def test_a_gated_mlp_is_silu() -> None:
    config = convert(layouts.meta_vit(GATED), place="x").config
    assert (config["use_gated_mlp"], config["hidden_act"]) == (True, "silu")
    assert config["intermediate_size"] == 48


def test_settings_of_a_convnext_come_from_its_tensors() -> None:
    assert convert(layouts.meta_convnext(CONVNEXT), place="x").config == {
        "model_type": "dinov3_convnext",
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 2, 1, 1],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def test_biases_that_are_not_there_are_switched_off() -> None:
    tensors = {
        name: tensor
        for name, tensor in meta().items()
        if not (name.endswith(("proj.bias", "fc1.bias", "fc2.bias")) and "blocks" in name)
        and "qkv.bias" not in name
    }
    config = convert(tensors, place="x").config
    assert not any(
        config[key] for key in ("query_bias", "value_bias", "key_bias", "proj_bias", "mlp_bias")
    )


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6)])
def test_heads_come_from_the_width_where_no_periods_are(width: int, heads: int) -> None:
    shape = ViT(width=width, depth=1, heads=heads, inner=32, patch=8)
    assert convert(layouts.timm_vit(shape), place="x").config["num_attention_heads"] == heads


def test_a_width_that_tells_no_heads_is_refused() -> None:
    with pytest.raises(FormatError, match=r"width 32 with heads of unknown width; expected one of"):
        convert(layouts.timm_vit(SHAPE), place="x")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_periods_of_base_100_tell_the_heads_and_go(kind: torch.dtype) -> None:
    tensors = meta()
    tensors["rope_embed.periods"] = tensors["rope_embed.periods"].to(kind)
    converted = convert(tensors, place="x")
    assert converted.config["num_attention_heads"] == 2
    assert not any("periods" in name for name in converted.tensors)
    assert any("rope_embed.periods" in note for note in converted.notes)


@pytest.mark.parametrize(
    "periods",
    [
        layouts.periods(16, base=10_000.0),
        layouts.periods(16) * 1.001,  # within bfloat16's error, and not rounded to it
        torch.zeros(0),
        torch.full((4,), float("nan")),
    ],
)
def test_other_periods_are_refused(periods: torch.Tensor) -> None:
    with pytest.raises(FormatError, match=r"rope_embed\.periods is \[.*powers of 100"):
        convert({**meta(), "rope_embed.periods": periods}, place="x")


def test_periods_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(FormatError, match="width 32 with heads of 12"):
        convert({**meta(), "rope_embed.periods": layouts.periods(12)}, place="x")


def test_images_of_more_bands_are_refused() -> None:
    tensors = {**meta(), "patch_embed.proj.weight": torch.zeros(32, 4, 8, 8)}
    with pytest.raises(
        FormatError, match=r"patch_embed\.proj\.weight takes 4 channels, expected 3"
    ):
        convert(tensors, place="x")


# --- queries, keys, values ------------------------------------------------------------------------


def biases_of(tensors: Tensors, block: int = 0) -> tuple[torch.Tensor | None, ...]:
    converted = convert(tensors, place="x").tensors
    start = f"model.layer.{block}.attention"
    return tuple(converted.get(f"{start}.{part}_proj.bias") for part in "qkv")


def test_fused_weights_are_split_in_the_order_q_k_v() -> None:
    tensors = meta()
    fused = tensors["blocks.1.attn.qkv.weight"]
    converted = convert(tensors, place="x").tensors
    for number, part in enumerate("qkv"):
        expected = fused[32 * number : 32 * (number + 1)]
        assert torch.equal(converted[f"model.layer.1.attention.{part}_proj.weight"], expected)


@pytest.mark.parametrize("hidden", [0.0, 7.0, float("nan"), float("inf")])
def test_what_the_mask_hides_is_absent(hidden: float) -> None:
    tensors = meta()
    for block in range(2):
        tensors[f"blocks.{block}.attn.qkv.bias"][32:64] = hidden
    q, k, v = biases_of(tensors)
    assert k is None
    assert torch.equal(q, tensors["blocks.0.attn.qkv.bias"][:32])
    assert torch.equal(v, tensors["blocks.0.attn.qkv.bias"][64:])
    assert any("bias of the keys" in note for note in convert(tensors, place="x").notes)


def test_a_mask_that_was_never_filled_means_the_keys() -> None:
    tensors = meta()
    for block in range(2):
        tensors[f"blocks.{block}.attn.qkv.bias_mask"].fill_(float("nan"))
    q, k, _ = biases_of(tensors)
    assert k is None
    assert torch.equal(q, tensors["blocks.0.attn.qkv.bias"][:32])


def test_a_zero_bias_of_the_keys_is_absent_without_a_mask() -> None:
    tensors = meta()
    for block in range(2):
        del tensors[f"blocks.{block}.attn.qkv.bias_mask"]
        tensors[f"blocks.{block}.attn.qkv.bias"][32:64] = 0.0
    assert biases_of(tensors)[1] is None


def test_one_block_with_a_bias_of_the_keys_gives_all_one() -> None:
    tensors = meta()
    del tensors["blocks.1.attn.qkv.bias_mask"]
    assert convert(tensors, place="x").config["key_bias"] is True
    assert torch.equal(biases_of(tensors, 0)[1], torch.zeros(32))
    assert torch.equal(biases_of(tensors, 1)[1], tensors["blocks.1.attn.qkv.bias"][32:64])


def test_a_mask_over_queries_is_applied() -> None:
    tensors = meta()
    tensors["blocks.0.attn.qkv.bias_mask"][:16] = 0.0
    q, _, _ = biases_of(tensors)
    assert torch.equal(q[:16], torch.zeros(16))
    assert torch.equal(q[16:], tensors["blocks.0.attn.qkv.bias"][16:32])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.qkv.bias_mask": torch.full((96,), 0.5)}, "other values than 0 and 1"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(32)}, r"has shape \(32,\), expected \(96,\)"),
        ({"blocks.1.attn.qkv.weight": torch.zeros(95, 32)}, r"has shape \(95, 32\), expected"),
        ({"blocks.1.attn.qkv.weight": torch.zeros(90, 32)}, r"has shape \(90, 32\), expected"),
        ({"blocks.1.attn.qkv.weight": torch.zeros(96)}, r"has shape \(96,\), expected"),
        ({"blocks.1.attn.qkv.bias": torch.zeros(95), "blocks.1.attn.qkv.bias_mask": torch.ones(95)},
         r"qkv\.bias has shape \(95,\), expected"),
        ({"blocks.1.attn.q_bias": torch.zeros(32)}, r"qkv\.bias beside blocks\.1\.attn\.q_bias"),
    ],
)  # fmt: skip
def test_what_can_not_be_split_is_named(change: Tensors, message: str) -> None:
    with pytest.raises(FormatError, match=rf"^file: blocks\.1\..*{message}"):
        convert({**meta(), **change}, place="file")


def test_a_mask_without_a_bias_is_refused() -> None:
    tensors = meta()
    del tensors["blocks.1.attn.qkv.bias"]
    with pytest.raises(FormatError, match=r"blocks\.1\.attn\.qkv\.bias_mask without"):
        convert(tensors, place="x")


# --- what is left out -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "extra", "reason"),
    [
        ("meta", "local_cls_norm.weight", "a norm for local crops in training"),
        ("meta", "dino_head.mlp.0.weight", "a head for training"),
        ("meta", "ibot_head.last_layer.weight", "a head for training"),
        ("meta convnext", "dino_head.mlp.0.weight", "a head for training"),
        ("timm", "head.weight", "a classifier"),
        ("timm convnext", "head.fc.bias", "a classifier"),
    ],
)
def test_what_no_pass_reads_is_left_out_and_said(layout: str, extra: str, reason: str) -> None:
    tensors = LAYOUTS[layout]()
    converted = convert({**tensors, extra: torch.ones(3)}, place="file")
    assert f"file: left out 1 tensors: {reason}." in converted.notes
    assert converted.tensors.keys() == convert(tensors, place="file").tensors.keys()


def test_mask_tokens_get_transformers_shape_or_zeros() -> None:
    tensors = meta()
    found = convert(tensors, place="x").tensors["embeddings.mask_token"]
    assert torch.equal(found, tensors["mask_token"][None])
    blank = convert(layouts.timm_vit(TIMM), place="x").tensors["embeddings.mask_token"]
    assert torch.equal(blank, torch.zeros(1, 1, 192))


def test_the_second_norm_of_convnext_must_be_the_first() -> None:
    tensors = layouts.meta_convnext(CONVNEXT)
    with pytest.raises(FormatError, match=r"norms\.3\.bias differs from norm\.bias"):
        convert({**tensors, "norms.3.bias": torch.zeros(20)}, place="x")
    with pytest.raises(FormatError, match=r"tensor norms\.2\.bias \(16,\) is not part of DINOv3"):
        convert({**tensors, "norms.2.bias": torch.zeros(16)}, place="x")


def test_the_second_norm_stands_in_for_the_first() -> None:
    """safetensors keeps one name only of tensors that share their memory."""
    tensors = layouts.meta_convnext(CONVNEXT)
    whole = convert(tensors, place="x").tensors["layer_norm.weight"]
    del tensors["norm.weight"], tensors["norm.bias"]
    assert torch.equal(convert(tensors, place="x").tensors["layer_norm.weight"], whole)


# --- strict ---------------------------------------------------------------------------------------

# Without these a checkpoint is whole, or another one that is: each has a test of its own above.
OPTIONAL = ("mask_token", "bias_mask", "norms.")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tensor_that_is_missing_is_named(layout: str) -> None:
    tensors = LAYOUTS[layout]()
    for name in tensors:
        if any(part in name for part in OPTIONAL):
            continue
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        rest = {key: tensor for key, tensor in rest.items() if not key.startswith("norms.")}
        with pytest.raises(FormatError) as caught:
            convert(rest, place="file")
        wanted = "width 32 with heads of unknown" if "periods" in name else name
        assert wanted in str(caught.value), f"{name}: {caught.value}"


# The settings are read off these, so that a neighbour is found to be wrong.
SIZES = ("blocks.0.mlp.fc1.weight", ".0.mlp.w2.weight", ".0.mlp.fc1_x.weight", ".0.dwconv.bias",
         ".0.conv_dw.bias")  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tensor_of_another_shape_is_named(layout: str) -> None:
    """One number too many along the first axis."""
    tensors = LAYOUTS[layout]()
    for name, tensor in tensors.items():
        if "periods" in name or name.startswith("norms."):
            continue
        wrong = torch.cat([tensor, tensor[:1]])
        others = {key: value for key, value in tensors.items() if not key.startswith("norms.")}
        with pytest.raises(FormatError, match=r"^file: .*expected") as caught:
            convert({**others, name: wrong}, place="file")
        assert name in str(caught.value) or name.endswith(SIZES), f"{name}: {caught.value}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_that_is_not_known_is_named_with_its_shape(layout: str) -> None:
    tensors = {**LAYOUTS[layout](), "decode_head.weight": torch.zeros(2, 5)}
    with pytest.raises(
        FormatError, match=r"^file: tensor decode_head\.weight \(2, 5\) is not part"
    ):
        convert(tensors, place="file")


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        ("meta", "blocks.0.norm3.weight"),
        ("meta", "blocks.0.attn.gate.weight"),
        ("meta", "blocks.00.norm1.weight"),
        ("meta", "pos_embed"),
        ("timm", "fc_norm.weight"),
        ("timm", "blocks.1.attn.q_norm.weight"),
        ("timm convnext", "norm_pre.weight"),
        ("timm convnext", "stages.0.blocks.0.mlp.grn.weight"),
    ],
)
def test_parts_of_related_models_are_not_passed_over(layout: str, extra: str) -> None:
    with pytest.raises(FormatError, match=f"tensor {extra} .*is not part of DINOv3"):
        convert({**LAYOUTS[layout](), extra: torch.zeros(3)}, place="x")


def test_two_tensors_for_one_place_are_refused() -> None:
    tensors = {**layouts.meta_vit(GATED), "blocks.0.mlp.fc1.weight": torch.zeros(48, 32)}
    with pytest.raises(FormatError, match=r"is a second tensor for model\.layer\.0\.mlp\.up_proj"):
        convert(tensors, place="x")


def test_a_gap_between_blocks_is_refused_before_a_model_is_made() -> None:
    tensors = {**meta(), "blocks.1000000.norm1.weight": torch.zeros(32)}
    with pytest.raises(
        FormatError, match=r"becomes model\.layer\.1000000, expected number 2 before"
    ):
        convert(tensors, place="x")


def test_numbers_that_are_no_floats_are_refused() -> None:
    tensors = {**meta(), "norm.weight": torch.ones(32, dtype=torch.int32)}
    with pytest.raises(FormatError, match=r"norm\.weight is \(32,\) of torch\.int32"):
        convert(tensors, place="x")


def test_errors_pickle() -> None:
    with pytest.raises(FormatError) as caught:
        convert({}, place="x")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- cost -----------------------------------------------------------------------------------------


class Counting(Mapping[str, torch.Tensor]):
    """Reads from a file would be as often as this counts."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.reads: Counter[str] = Counter()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.reads[name] += 1
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tensor_is_read_once(layout: str) -> None:
    tensors = Counting(LAYOUTS[layout]())
    convert(tensors, place="x")
    assert set(tensors.reads) == set(tensors)
    assert set(tensors.reads.values()) == {1}


def test_weights_are_views_and_not_copies() -> None:
    tensors = meta()
    converted = convert(tensors, place="x").tensors
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    copied = {
        name
        for name, tensor in converted.items()
        if tensor.untyped_storage().data_ptr() not in memory
    }
    assert all(name.endswith(("q_proj.bias", "v_proj.bias")) for name in copied)
