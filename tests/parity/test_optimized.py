"""The folded forward against transformers' own, for every shape, pooling and size.

Tolerance in float32: 1 - cosine <= 1e-9. Constants are multiplied out in float64 and rounded once,
so what is left is the order of sums: measured up to 1.3e-12. In bfloat16, 1e-4 and not worse than
transformers' own bfloat16 on the same weights. The weights imitate trained ones: gains and scales
spread log-normally, biases and tokens are not zero.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.encoder.families import FAMILIES, Family
from dinoprobe.encoder.optimized import can_pack, fold
from dinoprobe.preprocess import Preprocessing, to_pixel_values

SIZES = ((224, 224), (256, 256), (160, 256))
SHAPES: dict[str, dict[str, Any]] = {
    "vits16": {},
    "vits16plus": {},
    "vitb16": {},
    "vitl16": {"num_hidden_layers": 2},
    "vith16plus": {"num_hidden_layers": 1},
    "convnext-tiny": {},
    "convnext-small": {"depths": [1, 1, 2, 1]},
    "convnext-base": {"depths": [1, 1, 2, 1]},
    "convnext-large": {"depths": [1, 1, 2, 1]},
}
CPU = torch.device("cpu")
PACKED = [False, True] if can_pack(CPU, torch.float32) else [False]


@cache
def model_of(name: str) -> tuple[Any, Family]:
    """Random weights that are spread as trained ones are."""
    entry = CHECKPOINTS[name]
    family = FAMILIES[entry.model_type]
    torch.manual_seed(0)
    config = family.config_class()(**{**entry.config, **SHAPES[name]})
    model = family.model_class()(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in key and key.endswith("weight"):
            parameter.copy_((0.3 * noise).exp())
        elif "lambda" in key or "gamma" in key:
            parameter.copy_(0.5 * (0.3 * noise).exp())
        elif key.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif "token" in key:
            parameter.copy_(0.5 * noise)
        else:
            parameter.mul_(1.5)
    return model, family


def pooled(
    tokens: torch.Tensor, first: int, pooling: str, earlier: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """`earlier` holds the normed CLS of the blocks before the last one, the oldest first."""
    cls, mean = tokens[:, 0].double(), tokens[:, first:].double().mean(dim=1)
    if "blocks" not in pooling:
        parts = {"cls": [cls], "mean": [mean], "cls+mean": [cls, mean]}[pooling]
    else:
        assert earlier is not None
        parts = [row.double() for row in [*earlier, cls]]
        parts += [mean] if pooling.endswith("+mean") else []
    return torch.cat(parts, dim=1)


def worst_part(first: torch.Tensor, second: torch.Tensor, width: int) -> float:
    return max(
        distance(a, b) for a, b in zip(first.split(width, 1), second.split(width, 1), strict=True)
    )


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest 1 - cosine over rows."""
    cosines = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=1)
    return float((1 - cosines).abs().max())


def images(size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("size", "packed"),
    [(size, packed) for size in SIZES for packed in PACKED if packed or size == SIZES[0]],
)
@pytest.mark.parametrize("name", SHAPES)
def test_float32_equals_transformers(name: str, size: tuple[int, int], packed: bool) -> None:
    model, family = model_of(name)
    preprocessing = Preprocessing(size=size)
    batch = images(size)
    with torch.inference_mode():
        pixels = to_pixel_values(batch, preprocessing, dtype=torch.float32, device="cpu")
        tokens = model(pixel_values=pixels).last_hidden_state
        for pooling in ("cls+mean", "cls") if size == SIZES[0] else ("cls+mean",):
            folded = fold(
                model, family.model_type, preprocessing,
                pooling=pooling, dtype=torch.float32, packed=packed,
            )  # fmt: skip
            expected = pooled(tokens, family.tokens_before_patches(model.config), pooling)
            assert distance(folded(batch), expected) <= 1e-9


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("name", "poolings"), [
    ("vits16", ("blocks2", "blocks4", "blocks4+mean", "blocks12+mean", "mean")),
    ("vits16plus", ("blocks4", "blocks4+mean")),
])  # fmt: skip
def test_earlier_blocks_equal_transformers(
    name: str, poolings: tuple[str, ...], packed: bool
) -> None:
    """Hidden states of transformers, and its final norm on their CLS: each part by itself."""
    model, family = model_of(name)
    batch, preprocessing = images((224, 224)), Preprocessing()
    with torch.inference_mode():
        pixels = to_pixel_values(batch, preprocessing, dtype=torch.float32, device="cpu")
        output = model(pixel_values=pixels, output_hidden_states=True)
        assert len(output.hidden_states) == 13
        normed = [model.norm(state)[:, 0] for state in output.hidden_states[1:-1]]
        for pooling in poolings:
            folded = fold(
                model, family.model_type, preprocessing,
                pooling=pooling, dtype=torch.float32, packed=packed,
            )  # fmt: skip
            blocks = int(pooling.removeprefix("blocks").partition("+")[0]) if "b" in pooling else 0
            earlier = normed[len(normed) - blocks + 1 :]
            expected = pooled(output.last_hidden_state, 5, pooling, earlier)
            assert worst_part(folded(batch), expected, 384) <= 1e-9


@pytest.mark.parametrize("name", ["vits16", "vits16plus", "convnext-tiny"])
def test_bfloat16_is_nearer_to_float32_than_transformers_own(name: str) -> None:
    model, family = model_of(name)
    preprocessing = Preprocessing()
    batch, first = images((224, 224)), family.tokens_before_patches(model.config)
    with torch.inference_mode():
        pixels = to_pixel_values(batch, preprocessing, dtype=torch.float32, device="cpu")
        exact = pooled(model(pixel_values=pixels).last_hidden_state, first, "cls")
        half = copy.deepcopy(model).bfloat16()
        theirs = pooled(half(pixel_values=pixels.bfloat16()).last_hidden_state, first, "cls")
        ours = fold(
            model, family.model_type, preprocessing,
            pooling="cls", dtype=torch.bfloat16, packed=can_pack(CPU, torch.bfloat16),
        )(batch)  # fmt: skip
    assert distance(ours, exact) < min(1e-4, distance(theirs, exact))


@pytest.mark.parametrize("name", ["vits16", "convnext-tiny"])
def test_the_exact_mode_takes_floats(name: str) -> None:
    model, family = model_of(name)
    preprocessing = Preprocessing(arithmetic="exact", mean=(0.43, 0.41, 0.3), std=(0.2, 0.16, 0.14))
    batch = images((224, 224)).float() / 255
    with torch.inference_mode():
        pixels = to_pixel_values(batch, preprocessing, dtype=torch.float32, device="cpu")
        tokens = model(pixel_values=pixels).last_hidden_state
        folded = fold(model, family.model_type, preprocessing, pooling="mean", dtype=torch.float32)
    expected = pooled(tokens, family.tokens_before_patches(model.config), "mean")
    assert distance(folded(batch), expected) <= 1e-9


@pytest.mark.parametrize("packed", PACKED)
def test_rows_do_not_depend_on_their_batch(packed: bool) -> None:
    """Bit for bit, in both precisions: content digests and resumed runs rely on it."""
    model, family = model_of("vits16")
    batch = torch.cat([images((224, 224)) for _ in range(3)])
    for dtype in (torch.float32, torch.bfloat16):
        folded = fold(
            model, family.model_type, Preprocessing(),
            pooling="cls+mean", dtype=dtype, packed=packed and can_pack(CPU, dtype),
        )  # fmt: skip
        with torch.inference_mode():
            whole = folded(batch)
            alone = torch.cat([folded(batch[i : i + 1]) for i in range(len(batch))])
        assert torch.equal(whole, alone)
