"""DINOv3's ViT as one straight function, after transformers' modeling_dinov3_vit.py.

Attention is two batched products with a softmax between them: on a CPU torch's fused kernel takes
31 % of the time for 8 % of the FLOPs; on a GPU it is the fused one. The rope table has rows of
cos 1 and sin 0 for CLS and registers, so nothing is split or joined. Without a mean in the pooling
the last block computes one row alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from dinoprobe.encoder.optimized.folding import (
    after_norm,
    centre,
    joined,
    on_centred_pixels,
    scaled,
    weight_and_bias,
)
from dinoprobe.encoder.optimized.projection import Linear
from dinoprobe.pooling import CLS, MEAN, blocks_of, parts_of

if TYPE_CHECKING:
    from dinoprobe.preprocess import Preprocessing


class FoldedViT(nn.Module):
    """Images `(n, 3, height, width)` to features `(n, dimension)` float32."""

    centre: torch.Tensor
    prefix: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
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
        fused: bool = False,
    ) -> None:
        super().__init__()
        config = model.config
        self.parts = parts_of(pooling)
        self.earlier = max(blocks_of(pooling) - 1, 0)
        self.dtype = dtype
        self.patch = int(config.patch_size)
        self.width = int(config.hidden_size)
        self.epsilon = float(config.layer_norm_eps)
        self.skip = 1 + int(config.num_register_tokens)
        self._keep("centre", centre(preprocessing), torch.float32)
        embeddings = model.embeddings
        weight, bias = on_centred_pixels(
            weight_and_bias(embeddings.patch_embeddings), preprocessing
        )
        self.patches = Linear((weight.flatten(1), bias), dtype, packed=packed)
        prefix = torch.cat([embeddings.cls_token, embeddings.register_tokens], dim=1)
        self._keep("prefix", prefix.detach(), torch.float32)
        cos, sin = _rope_table(model, preprocessing.size, self.skip)
        self._keep("cos", cos, dtype)
        self._keep("sin", sin, dtype)
        self.blocks = nn.ModuleList(
            _Block(layer, config, dtype, packed=packed, fused=fused) for layer in model.model.layer
        )
        self._keep("gain", model.norm.weight.detach(), torch.float32)
        self._keep("shift", model.norm.bias.detach(), torch.float32)

    def _keep(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        self.register_buffer(name, tensor.to(dtype).contiguous(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images as `prepare` gives them."""
        tokens = self._embed(images)
        earlier = []
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            only_first = number == last and MEAN not in self.parts
            tokens = block(tokens, self.cos, self.sin, only_first=only_first)
            if last - self.earlier <= number < last:
                earlier.append(tokens[:, 0])
        return self._pool(tokens, earlier)

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        """Prefix and patches as `(n, tokens, width)` float32."""
        n, _, height, width = images.shape
        p = self.patch
        rows, columns = height // p, width // p
        pixels = (images - self.centre).to(self.dtype)
        cut = pixels.view(n, 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        patches = self.patches(cut.reshape(n, rows * columns, 3 * p * p))
        return torch.cat([self.prefix.expand(n, -1, -1), patches.float()], dim=1)

    def _pool(self, tokens: torch.Tensor, earlier: list[torch.Tensor]) -> torch.Tensor:
        """One row an image from the last block's tokens and the CLS of earlier blocks."""
        rows = [self._normed(cls) for cls in earlier]
        normed = self._normed(tokens)
        if CLS in self.parts:
            rows.append(normed[:, 0])
        if MEAN in self.parts:
            rows.append(normed[:, self.skip :].mean(dim=1))
        return torch.cat([row * self.gain + self.shift for row in rows], dim=1)

    def _normed(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(tokens, (self.width,), None, None, self.epsilon)


class _Block(nn.Module):
    """One layer: attention and MLP, with norms and scales in the projections."""

    def __init__(
        self, layer: Any, config: Any, dtype: torch.dtype, *, packed: bool, fused: bool
    ) -> None:
        super().__init__()
        attention, mlp = layer.attention, layer.mlp
        self.dtype = dtype
        self.fused = fused
        self.heads = int(config.num_attention_heads)
        self.width = int(config.hidden_size)
        self.epsilon = float(config.layer_norm_eps)
        self.gated = bool(config.use_gated_mlp)
        query = weight_and_bias(attention.q_proj)
        query = (query[0] * attention.scaling, query[1] * attention.scaling)
        parts = joined(query, weight_and_bias(attention.k_proj), weight_and_bias(attention.v_proj))
        self.qkv = Linear(after_norm(layer.norm1, parts), dtype, packed=packed)
        out = scaled(weight_and_bias(attention.o_proj), layer.layer_scale1.lambda1)
        self.out = Linear(out, dtype, packed=packed)
        first = mlp.gate_proj if self.gated else mlp.up_proj
        up = after_norm(layer.norm2, weight_and_bias(first))
        self.up = Linear(up, dtype, activation=config.hidden_act, packed=packed)
        if self.gated:
            gated = after_norm(layer.norm2, weight_and_bias(mlp.up_proj))
            self.gated_up = Linear(gated, dtype, packed=packed)
        down = scaled(weight_and_bias(mlp.down_proj), layer.layer_scale2.lambda1)
        self.down = Linear(down, dtype, packed=packed)

    def forward(
        self, tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, only_first: bool
    ) -> torch.Tensor:
        """`(n, tokens, width)` float32 in and out; with `only_first` one token comes out, and the
        others give key and value alone.
        """
        query, key, value = self._project(tokens, cos, sin)
        if only_first:
            tokens, query = tokens[:, :1], query[:, :1]
        tokens = tokens + self._attend(query, key, value, tokens.shape[1])
        return tokens + self._mlp(tokens)

    def _project(
        self, tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value `(n * heads, tokens, head)`, the first two rotated."""
        n, count, width = tokens.shape
        head = width // self.heads
        normed = self._norm(tokens)
        split = self.qkv(normed).view(n, count, 3, self.heads, head).permute(2, 0, 3, 1, 4)
        stacked = split.reshape(3, n * self.heads, count, head)
        rotated = _rotate(stacked[:2], cos, sin)
        return rotated[0], rotated[1], stacked[2]

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, count: int
    ) -> torch.Tensor:
        mixed = self._mixed(query, key, value)
        head = mixed.shape[-1]
        rows = mixed.view(-1, self.heads, count, head).transpose(1, 2)
        result: torch.Tensor = self.out(rows.reshape(-1, count, self.heads * head))
        return result

    def _mixed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention by two products and a softmax, or by the device's fused kernel."""
        if not self.fused:
            return torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1), value)
        query, key, value = self._by_head(query), self._by_head(key), self._by_head(value)
        return functional.scaled_dot_product_attention(query, key, value, scale=1.0).flatten(0, 1)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, self.heads, *x.shape[1:])

    def _mlp(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self._norm(tokens)
        inner = self.up(normed)
        if self.gated:
            inner = inner * self.gated_up(normed)
        result: torch.Tensor = self.down(inner)
        return result

    def _norm(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = functional.layer_norm(tokens, (self.width,), None, None, self.epsilon)
        return normed.to(self.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + rotate_half(x) sin, the sign of rotate_half being in the table."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return x * cos + swapped * sin


def _rope_table(model: Any, size: tuple[int, int], skip: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin `(tokens, head)` float32: no turn for CLS and registers."""
    device = model.embeddings.cls_token.device
    blank = torch.empty(1, 3, *size, device=device)
    cos, sin = (table.float() for table in model.rope_embeddings(blank))
    half = sin.shape[-1] // 2
    sin = torch.cat([-sin[:, :half], sin[:, half:]], dim=1)
    still = torch.ones(skip, cos.shape[1], device=device)
    return torch.cat([still, cos]), torch.cat([torch.zeros_like(still), sin])
