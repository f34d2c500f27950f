"""DINOv3 in Meta's and in timm's layout, without either: random tensors, and the tokens they give.

The proof that a key map is right must not come from the code that maps. So the forward passes here
read a tensor by the name that it has in its file, and are written from the architecture's
description (arXiv 2508.10104 and 2201.03545) with other means than transformers': patches as a
matrix product, rotation as a product of complex numbers, norms and attention spelled out. Every
tensor is random and different, so two that are exchanged give other tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn.functional import conv2d

Tensors = dict[str, torch.Tensor]
Biases = Literal["none", "separate", "fused"]


@dataclass(frozen=True)
class ViT:
    """The shape of a ViT; heads are 64 wide but for the largest model."""

    width: int
    depth: int
    heads: int
    inner: int
    gated: bool = False
    biased: bool = True
    registers: int = 4
    patch: int = 16

    def shallow(self, depth: int) -> ViT:
        return replace(self, depth=depth)


@dataclass(frozen=True)
class ConvNeXt:
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    def shallow(self, *depths: int) -> ConvNeXt:
        return replace(self, depths=depths)


VITS = {
    "vits16": ViT(384, 12, 6, 1536),
    "vits16plus": ViT(384, 12, 6, 1536, gated=True),
    "vitb16": ViT(768, 12, 12, 3072),
    "vitl16": ViT(1024, 24, 16, 4096),
    "vith16plus": ViT(1280, 32, 20, 5120, gated=True),
    "vit7b16": ViT(4096, 40, 32, 8192, gated=True, biased=False),
}
CONVNEXTS = {
    "convnext-tiny": ConvNeXt((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext-small": ConvNeXt((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext-base": ConvNeXt((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext-large": ConvNeXt((192, 384, 768, 1536), (3, 3, 27, 3)),
}


# --- random tensors -----------------------------------------------------------------------------


class Draw:
    """Random tensors of a size that keeps activations near one through all layers."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator).mul_(std).add_(mean)

    def linear(self, name: str, outputs: int, inputs: int, *, bias: bool = True) -> Tensors:
        weight = {f"{name}.weight": self.normal(outputs, inputs, std=inputs**-0.5)}
        return weight | ({f"{name}.bias": self.normal(outputs, std=0.3)} if bias else {})

    def convolution(self, name: str, outputs: int, inputs: int, size: int) -> Tensors:
        std = (inputs * size * size) ** -0.5
        return {
            f"{name}.weight": self.normal(outputs, inputs, size, size, std=std),
            f"{name}.bias": self.normal(outputs, std=0.3),
        }

    def norm(self, name: str, width: int) -> Tensors:
        return {
            f"{name}.weight": self.normal(width, std=0.2, mean=1.0),
            f"{name}.bias": self.normal(width, std=0.2),
        }


def periods(head: int, base: float = 100.0) -> torch.Tensor:
    """One period for each four numbers of a head: 1 for the first, near `base` for the last."""
    count = head // 4
    return torch.tensor([base ** (i / count) for i in range(count)])


def meta_vit(shape: ViT, seed: int = 0) -> Tensors:
    """As facebookresearch/dinov3 saves it; what the mask of the keys' bias hides is not zero."""
    draw, width = Draw(seed), shape.width
    tensors = {
        "cls_token": draw.normal(1, 1, width),
        "storage_tokens": draw.normal(1, shape.registers, width),
        "mask_token": draw.normal(1, width),
        "rope_embed.periods": periods(width // shape.heads),
        **draw.convolution("patch_embed.proj", width, 3, shape.patch),
        **draw.norm("norm", width),
    }
    for i in range(shape.depth):
        block = f"blocks.{i}"
        tensors |= draw.norm(f"{block}.norm1", width) | draw.norm(f"{block}.norm2", width)
        tensors |= draw.linear(f"{block}.attn.qkv", 3 * width, width, bias=shape.biased)
        tensors |= draw.linear(f"{block}.attn.proj", width, width)
        if shape.biased:
            tensors[f"{block}.attn.qkv.bias_mask"] = (
                torch.ones(3, width).index_fill_(0, torch.tensor([1]), 0.0).flatten()
            )
        for number in (1, 2):
            tensors[f"{block}.ls{number}.gamma"] = draw.normal(width, std=0.1, mean=0.3)
        ins = ("w1", "w2") if shape.gated else ("fc1",)
        for name in ins:
            tensors |= draw.linear(f"{block}.mlp.{name}", shape.inner, width)
        out = "w3" if shape.gated else "fc2"
        tensors |= draw.linear(f"{block}.mlp.{out}", width, shape.inner)
    return tensors


def timm_vit(shape: ViT, seed: int = 0, *, biases: Biases = "separate") -> Tensors:
    """As timm's Eva saves it: without mask token and periods."""
    draw, width = Draw(seed), shape.width
    tensors = {
        "cls_token": draw.normal(1, 1, width),
        "reg_token": draw.normal(1, shape.registers, width),
        **draw.convolution("patch_embed.proj", width, 3, shape.patch),
        **draw.norm("norm", width),
    }
    for i in range(shape.depth):
        block = f"blocks.{i}"
        tensors |= draw.norm(f"{block}.norm1", width) | draw.norm(f"{block}.norm2", width)
        tensors |= draw.linear(f"{block}.attn.qkv", 3 * width, width, bias=biases == "fused")
        if biases == "separate":
            for part in ("q", "v"):
                tensors[f"{block}.attn.{part}_bias"] = draw.normal(width, std=0.3)
        tensors |= draw.linear(f"{block}.attn.proj", width, width)
        for number in (1, 2):
            tensors[f"{block}.gamma_{number}"] = draw.normal(width, std=0.1, mean=0.3)
        ins = ("fc1_g", "fc1_x") if shape.gated else ("fc1",)
        for name in ins:
            tensors |= draw.linear(f"{block}.mlp.{name}", shape.inner, width)
        tensors |= draw.linear(f"{block}.mlp.fc2", width, shape.inner)
    return tensors


def meta_convnext(shape: ConvNeXt, seed: int = 0) -> Tensors:
    """As facebookresearch/dinov3 saves it: the last norm stands there twice."""
    draw, widths = Draw(seed), shape.widths
    tensors = draw.convolution("downsample_layers.0.0", widths[0], 3, 4)
    tensors |= draw.norm("downsample_layers.0.1", widths[0])
    for i in range(1, len(widths)):
        tensors |= draw.norm(f"downsample_layers.{i}.0", widths[i - 1])
        tensors |= draw.convolution(f"downsample_layers.{i}.1", widths[i], widths[i - 1], 2)
    for i, (width, depth) in enumerate(zip(widths, shape.depths, strict=True)):
        for j in range(depth):
            block = f"stages.{i}.{j}"
            tensors |= draw.convolution(f"{block}.dwconv", width, 1, 7)
            tensors |= draw.norm(f"{block}.norm", width)
            tensors |= draw.linear(f"{block}.pwconv1", 4 * width, width)
            tensors |= draw.linear(f"{block}.pwconv2", width, 4 * width)
            tensors[f"{block}.gamma"] = draw.normal(width, std=0.1, mean=0.3)
    tensors |= draw.norm("norm", widths[-1])
    last = len(widths) - 1
    return tensors | {f"norms.{last}.{x}": tensors[f"norm.{x}"] for x in ("weight", "bias")}


def timm_convnext(shape: ConvNeXt, seed: int = 0, *, pointwise_dimensions: int = 2) -> Tensors:
    """As timm's ConvNeXt saves it, its pointwise layers as matrices or as 1 x 1 convolutions."""
    meta = meta_convnext(shape, seed)
    tensors = {}
    for name, tensor in meta.items():
        parts = name.split(".")
        if parts[0] == "downsample_layers":
            start = "stem" if parts[1] == "0" else f"stages.{parts[1]}.downsample"
            tensors[f"{start}.{parts[2]}.{parts[3]}"] = tensor
        elif parts[0] == "stages":
            kind = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}
            rest = ".".join([kind.get(parts[3], parts[3]), *parts[4:]])
            is_matrix = (
                pointwise_dimensions == 4 and parts[3].startswith("pwconv") and tensor.ndim > 1
            )
            tensors[f"stages.{parts[1]}.blocks.{parts[2]}.{rest}"] = (
                tensor[:, :, None, None] if is_matrix else tensor
            )
        elif parts[0] == "norm":
            tensors[f"head.norm.{parts[1]}"] = tensor
    return tensors


# --- forward passes -----------------------------------------------------------------------------


def layer_norm(x: torch.Tensor, tensors: Tensors, name: str, epsilon: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return centred / deviation * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    y = x @ tensors[f"{name}.weight"].flatten(1).T
    bias = tensors.get(f"{name}.bias")
    return y if bias is None else y + bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def patchify(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    """A convolution whose stride is its size, channels last: `(n, rows, columns, outputs)`."""
    weight = tensors[f"{name}.weight"]
    size = weight.shape[-1]
    n, height, width, channels = x.shape
    blocks = x.reshape(n, height // size, size, width // size, size, channels)
    return torch.einsum("nhpwqc,ocpq->nhwo", blocks, weight) + tensors[f"{name}.bias"]


def turns(rows: int, columns: int, period: torch.Tensor) -> torch.Tensor:
    """One complex number of length one per patch and per pair of a head's numbers: first those of
    the row, then those of the column, whose centres go from -1 to 1.
    """
    y = (torch.arange(rows) + 0.5) / rows * 2 - 1
    x = (torch.arange(columns) + 0.5) / columns * 2 - 1
    angle_y = (2 * math.pi * y[:, None] / period)[:, None].expand(rows, columns, -1)
    angle_x = (2 * math.pi * x[:, None] / period)[None].expand(rows, columns, -1)
    angle = torch.cat([angle_y, angle_x], dim=-1).flatten(0, 1)
    return torch.polar(torch.ones_like(angle), angle)


def turn(heads: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Rotates the last tokens; number i of a head makes a pair with number i + half."""
    still, moving = heads.split([heads.shape[-2] - len(by), len(by)], dim=-2)
    real, imaginary = moving.chunk(2, dim=-1)
    turned = torch.complex(real.contiguous(), imaginary.contiguous()) * by
    return torch.cat([still, torch.cat([turned.real, turned.imag], dim=-1)], dim=-2)


def attention(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, heads: int, by: torch.Tensor
) -> torch.Tensor:
    """Of normalised tokens, before the output projection. `weight` is queries, keys, values."""
    n, tokens, width = x.shape
    fused = x @ weight.T if bias is None else x @ weight.T + bias
    q, k, v = fused.reshape(n, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = turn(q, by) @ turn(k, by).transpose(-1, -2) / math.sqrt(width // heads)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, width)


@torch.no_grad()
def meta_vit_tokens(tensors: Tensors, pixels: torch.Tensor, heads: int) -> torch.Tensor:
    """`(n, 1 + registers + patches, width)` after the last norm."""
    patches = patchify(pixels.permute(0, 2, 3, 1), tensors, "patch_embed.proj")
    by = turns(patches.shape[1], patches.shape[2], tensors["rope_embed.periods"].float())
    x = _sequence(tensors["cls_token"], tensors["storage_tokens"], patches)
    for block in _blocks(tensors):
        y = layer_norm(x, tensors, f"{block}.norm1", 1e-5)
        bias = tensors.get(f"{block}.attn.qkv.bias")
        mask = tensors.get(f"{block}.attn.qkv.bias_mask")
        if bias is not None and mask is not None:
            bias = torch.where(mask == 1, bias, 0.0)
        y = attention(y, tensors[f"{block}.attn.qkv.weight"], bias, heads, by)
        x = x + linear(y, tensors, f"{block}.attn.proj") * tensors[f"{block}.ls1.gamma"]
        y = layer_norm(x, tensors, f"{block}.norm2", 1e-5)
        if f"{block}.mlp.w1.weight" in tensors:
            gate = linear(y, tensors, f"{block}.mlp.w1")
            y = gate * gate.sigmoid() * linear(y, tensors, f"{block}.mlp.w2")
            y = linear(y, tensors, f"{block}.mlp.w3")
        else:
            y = linear(gelu(linear(y, tensors, f"{block}.mlp.fc1")), tensors, f"{block}.mlp.fc2")
        x = x + y * tensors[f"{block}.ls2.gamma"]
    return layer_norm(x, tensors, "norm", 1e-5)


@torch.no_grad()
def timm_vit_tokens(tensors: Tensors, pixels: torch.Tensor, heads: int) -> torch.Tensor:
    """`(n, 1 + registers + patches, width)` after the last norm."""
    patches = patchify(pixels.permute(0, 2, 3, 1), tensors, "patch_embed.proj")
    width = patches.shape[-1]
    by = turns(patches.shape[1], patches.shape[2], periods(width // heads))
    x = _sequence(tensors["cls_token"], tensors["reg_token"], patches)
    for block in _blocks(tensors):
        y = layer_norm(x, tensors, f"{block}.norm1", 1e-5)
        bias = tensors.get(f"{block}.attn.qkv.bias")
        if f"{block}.attn.q_bias" in tensors:
            keys = tensors.get(f"{block}.attn.k_bias", torch.zeros(width))
            parts = (tensors[f"{block}.attn.q_bias"], keys, tensors[f"{block}.attn.v_bias"])
            bias = torch.cat(parts)
        y = attention(y, tensors[f"{block}.attn.qkv.weight"], bias, heads, by)
        x = x + linear(y, tensors, f"{block}.attn.proj") * tensors[f"{block}.gamma_1"]
        y = layer_norm(x, tensors, f"{block}.norm2", 1e-5)
        if f"{block}.mlp.fc1_g.weight" in tensors:
            gate = linear(y, tensors, f"{block}.mlp.fc1_g")
            y = gate * gate.sigmoid() * linear(y, tensors, f"{block}.mlp.fc1_x")
        else:
            y = gelu(linear(y, tensors, f"{block}.mlp.fc1"))
        x = x + linear(y, tensors, f"{block}.mlp.fc2") * tensors[f"{block}.gamma_2"]
    return layer_norm(x, tensors, "norm", 1e-5)


def _sequence(cls: torch.Tensor, registers: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    n = len(patches)
    return torch.cat([cls.repeat(n, 1, 1), registers.repeat(n, 1, 1), patches.flatten(1, 2)], dim=1)


def _blocks(tensors: Tensors) -> list[str]:
    numbers = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    return [f"blocks.{number}" for number in sorted(numbers)]


@torch.no_grad()
def meta_convnext_tokens(
    tensors: Tensors, pixels: torch.Tensor, depths: tuple[int, ...]
) -> torch.Tensor:
    """`(n, 1 + positions, width)`: the mean, then each position, after the last norm."""
    x = patchify(pixels.permute(0, 2, 3, 1), tensors, "downsample_layers.0.0")
    x = layer_norm(x, tensors, "downsample_layers.0.1", 1e-6)
    for i, depth in enumerate(depths):
        if i > 0:
            x = layer_norm(x, tensors, f"downsample_layers.{i}.0", 1e-6)
            x = patchify(x, tensors, f"downsample_layers.{i}.1")
        for j in range(depth):
            block = f"stages.{i}.{j}"
            y = _depthwise(x, tensors, f"{block}.dwconv")
            y = layer_norm(y, tensors, f"{block}.norm", 1e-6)
            y = linear(gelu(linear(y, tensors, f"{block}.pwconv1")), tensors, f"{block}.pwconv2")
            x = x + y * tensors[f"{block}.gamma"]
    return layer_norm(_with_mean(x), tensors, "norm", 1e-6)


@torch.no_grad()
def timm_convnext_tokens(
    tensors: Tensors, pixels: torch.Tensor, depths: tuple[int, ...]
) -> torch.Tensor:
    """`(n, 1 + positions, width)`: the mean, then each position, after the last norm."""
    x = patchify(pixels.permute(0, 2, 3, 1), tensors, "stem.0")
    x = layer_norm(x, tensors, "stem.1", 1e-6)
    for i, depth in enumerate(depths):
        if i > 0:
            x = layer_norm(x, tensors, f"stages.{i}.downsample.0", 1e-6)
            x = patchify(x, tensors, f"stages.{i}.downsample.1")
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}"
            y = _depthwise(x, tensors, f"{block}.conv_dw")
            y = layer_norm(y, tensors, f"{block}.norm", 1e-6)
            y = linear(gelu(linear(y, tensors, f"{block}.mlp.fc1")), tensors, f"{block}.mlp.fc2")
            x = x + y * tensors[f"{block}.gamma"]
    return layer_norm(_with_mean(x), tensors, "head.norm", 1e-6)


def _depthwise(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    y = conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=3, groups=len(weight))
    return y.permute(0, 2, 3, 1)


def _with_mean(x: torch.Tensor) -> torch.Tensor:
    positions = x.flatten(1, 2)
    return torch.cat([positions.mean(1, keepdim=True), positions], dim=1)
