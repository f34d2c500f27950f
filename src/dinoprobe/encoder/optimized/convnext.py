"""DINOv3's ConvNeXt as one straight function, after transformers' modeling_dinov3_convnext.py.

Everything stays channels-last: the pointwise layers are matrix products on rows of channels, and
the depthwise convolution reads the same memory. Each stage's first norm is in the convolution
behind it, each block's norm and LayerScale are in its pointwise layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from dinoprobe.encoder.optimized.folding import (
    after_norm,
    centre,
    on_centred_pixels,
    scaled,
    weight_and_bias,
)
from dinoprobe.encoder.optimized.projection import Linear
from dinoprobe.pooling import CLS, MEAN, parts_of

if TYPE_CHECKING:
    from dinoprobe.preprocess import Preprocessing


class FoldedConvNext(nn.Module):
    """Images `(n, 3, height, width)` to features `(n, dimension)` float32."""

    centre: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        *,
        pooling: str,
        dtype: torch.dtype,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.parts = parts_of(pooling)
        self.dtype = dtype
        self.epsilon = float(model.config.layer_norm_eps)
        self.width = int(model.config.hidden_sizes[-1])
        self.register_buffer("centre", centre(preprocessing).float(), persistent=False)
        self.stages = nn.ModuleList(
            _Stage(stage, preprocessing if i == 0 else None, dtype, packed=packed)
            for i, stage in enumerate(model.model.stages)
        )
        gain, shift = model.layer_norm.weight, model.layer_norm.bias
        self.register_buffer("gain", gain.detach().float(), persistent=False)
        self.register_buffer("shift", shift.detach().float(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images as `prepare` gives them."""
        pixels = (images - self.centre).to(self.dtype)
        maps = pixels.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            maps = stage(maps)
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2).float()
        return self._pool(tokens)

    def _pool(self, tokens: torch.Tensor) -> torch.Tensor:
        parts = []
        if CLS in self.parts:
            parts.append(self._norm(tokens.mean(dim=1)))
        if MEAN in self.parts:
            parts.append(self._norm(tokens).mean(dim=1))
        rows = [part * self.gain + self.shift for part in parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (self.width,), None, None, self.epsilon)


class _Stage(nn.Module):
    """Downsampling and the blocks behind it."""

    weight: torch.Tensor
    bias: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        stage: Any,
        preprocessing: Preprocessing | None,
        dtype: torch.dtype,
        *,
        packed: bool,
    ) -> None:
        super().__init__()
        first, second = stage.downsample_layers
        self.is_stem = preprocessing is not None
        if preprocessing is not None:
            convolution, norm = first, second
            weight, bias = on_centred_pixels(weight_and_bias(convolution), preprocessing)
            self.register_buffer("gain", norm.weight.detach().float(), persistent=False)
            self.register_buffer("shift", norm.bias.detach().float(), persistent=False)
        else:
            norm, convolution = first, second
            weight, bias = after_norm(norm, weight_and_bias(convolution))
        self.width, self.before = weight.shape[:2]
        self.stride = int(convolution.stride[0])
        self.epsilon = float(norm.eps)
        laid_out = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", laid_out, persistent=False)
        self.register_buffer("bias", bias.to(dtype), persistent=False)
        self.blocks = nn.ModuleList(_Block(layer, dtype, packed=packed) for layer in stage.layers)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """`(n, channels, height, width)`, channels last in memory, in and out."""
        if not self.is_stem:
            maps = _normed(maps, self.before, self.epsilon)
        maps = functional.conv2d(maps, self.weight, self.bias, stride=self.stride)
        if self.is_stem:
            rows = maps.permute(0, 2, 3, 1).float()
            rows = functional.layer_norm(rows, (self.width,), self.gain, self.shift, self.epsilon)
            maps = rows.to(self.weight.dtype).permute(0, 3, 1, 2)
        for block in self.blocks:
            maps = block(maps)
        return maps


class _Block(nn.Module):
    """Depthwise convolution, two pointwise layers, residual."""

    depthwise_weight: torch.Tensor
    depthwise_bias: torch.Tensor

    def __init__(self, layer: Any, dtype: torch.dtype, *, packed: bool) -> None:
        super().__init__()
        self.epsilon = float(layer.layer_norm.eps)
        weight, bias = weight_and_bias(layer.depthwise_conv)
        laid_out = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("depthwise_weight", laid_out, persistent=False)
        self.register_buffer("depthwise_bias", bias.to(dtype), persistent=False)
        up = after_norm(layer.layer_norm, weight_and_bias(layer.pointwise_conv1))
        down = scaled(weight_and_bias(layer.pointwise_conv2), layer.gamma)
        self.up = Linear(up, dtype, activation="gelu", packed=packed)
        self.down = Linear(down, dtype, packed=packed)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """`(n, channels, height, width)`, channels last in memory, in and out."""
        weight = self.depthwise_weight
        mixed = functional.conv2d(
            maps, weight, self.depthwise_bias, padding=3, groups=weight.shape[0]
        )
        rows = mixed.permute(0, 2, 3, 1)
        rows = functional.layer_norm(rows, (weight.shape[0],), None, None, self.epsilon)
        change: torch.Tensor = self.down(self.up(rows)).permute(0, 3, 1, 2)
        return maps + change


def _normed(maps: torch.Tensor, width: int, epsilon: float) -> torch.Tensor:
    rows = maps.permute(0, 2, 3, 1)
    return functional.layer_norm(rows, (width,), None, None, epsilon).permute(0, 3, 1, 2)
