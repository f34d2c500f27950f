"""A linear layer whose weight is laid out beforehand for the CPU's kernels.

torch's own float32 product on x86 goes through MKL, which takes its AVX2 path on AMD: 114 GFLOP/s
on one core, where oneDNN with a weight in its own layout reaches 270; in bfloat16 477 against 512,
and GELU costs nothing extra inside. The operator is the one that torch's compiler uses for linear
layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.encoder.optimized.folding import Projection

Activation = Literal["none", "gelu", "silu"]
_AFTER: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
_INSIDE = {"none": "none", "gelu": "gelu", "silu": "swish"}
_PACKED_ROWS = 804  # the layout is chosen for about this many rows: four images of 201 tokens


class Linear(nn.Module):
    """`activation(x W' + b)` of `(..., in)`; plain tensors, or packed ones where `packed`."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        projection: Projection,
        dtype: torch.dtype,
        *,
        activation: Activation = "none",
        packed: bool = False,
    ) -> None:
        super().__init__()
        weight, bias = (tensor.to(dtype).contiguous() for tensor in projection)
        self.activation = activation
        self.packed = packed
        if packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)  # noqa: SLF001
            self._weight = weight  # an opaque tensor: not a buffer, which modules copy and move
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in)` to `(..., out)`."""
        if self.packed:
            inside = _INSIDE[self.activation]
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
                x, self._weight, self.bias, inside, [], "none"
            )
            return result
        return _AFTER[self.activation](functional.linear(x, self.weight, self.bias))
