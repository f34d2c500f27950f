"""The settings of a checkpoint, read off its tensors by transformers' names.

What shapes can not tell is fixed for DINOv3: norm epsilons, the base of the position embedding,
SiLU in gated MLPs and GELU elsewhere (transformers' configurations of the published checkpoints).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    Original = Callable[[str], str]

ROPE_BASE = 100.0
# Heads by width, where no periods are (facebookresearch/dinov3, README; 192 is EUPE's tiny).
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32}
_FLOAT32_ERROR = 1e-5
_CHANNELS = 3
_AGAIN = "Fetch the file again."


def vit_config(
    tensors: Mapping[str, torch.Tensor], head: int | None, place: str, original: Original
) -> dict[str, Any]:
    """config.json of a ViT; `head` is the width of one attention head, None where nothing tells.

    `original` gives the name of a tensor in its file, for messages.
    """
    first = "model.layer.0"
    dimensions = {
        "embeddings.cls_token": 3,
        "embeddings.register_tokens": 3,
        "embeddings.patch_embeddings.weight": 4,
        f"{first}.mlp.up_proj.weight": 2,
    }
    _require(tensors, dimensions, place, original)
    cls, registers, patches, up = (tensors[name] for name in dimensions)
    if patches.shape[1] != _CHANNELS:
        msg = (
            f"{place}: {original('embeddings.patch_embeddings.weight')} takes "
            f"{patches.shape[1]} channels, expected {_CHANNELS}. Give a checkpoint for RGB images."
        )
        raise FormatError(msg)
    width = int(cls.shape[-1])
    parts = {re.sub(r"^model\.layer\.[0-9]+\.", "", name) for name in tensors}
    gated = "mlp.gate_proj.weight" in parts
    return {
        "model_type": "dinov3_vit",
        "hidden_size": width,
        "intermediate_size": int(up.shape[0]),
        "num_hidden_layers": _count(tensors, r"model\.layer\.([0-9]+)\.", place),
        "num_attention_heads": _heads(width, head, place),
        "num_register_tokens": int(registers.shape[1]),
        "patch_size": int(patches.shape[-1]),
        "num_channels": _CHANNELS,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": 1e-5,
        "rope_theta": ROPE_BASE,
        "query_bias": "attention.q_proj.bias" in parts,
        "key_bias": "attention.k_proj.bias" in parts,
        "value_bias": "attention.v_proj.bias" in parts,
        "proj_bias": "attention.o_proj.bias" in parts,
        "mlp_bias": "mlp.up_proj.bias" in parts,
    }


def convnext_config(
    tensors: Mapping[str, torch.Tensor], place: str, original: Original
) -> dict[str, Any]:
    """config.json of a ConvNeXt."""
    stages = _count(tensors, r"model\.stages\.([0-9]+)\.", place)
    starts = [f"model.stages.{i}.layers.0.depthwise_conv.bias" for i in range(stages)]
    _require(tensors, dict.fromkeys(starts, 1), place, original)
    return {
        "model_type": "dinov3_convnext",
        "hidden_sizes": [int(tensors[name].shape[0]) for name in starts],
        "depths": [
            _count(tensors, rf"model\.stages\.{i}\.layers\.([0-9]+)\.", place)
            for i in range(stages)
        ],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def head_width(periods: torch.Tensor, name: str, place: str) -> int:
    """Four numbers of an attention head share a period, so their count tells its width.

    The periods must be those of base 100, or what half precision makes of them: transformers
    computes them anew. Raises FormatError for others.
    """
    import torch

    found = periods.double().flatten()
    halves = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}  # one step of each, relative
    fitting = [kind for kind in halves if torch.equal(found, found.to(kind).double())]
    tolerance = halves[fitting[0]] if fitting else _FLOAT32_ERROR
    count = max(1, len(found))
    expected = ROPE_BASE ** (torch.arange(len(found), dtype=torch.float64) / count)
    if len(found) and torch.allclose(found, expected, rtol=tolerance, atol=0.0):
        return 4 * len(found)
    shown = [round(period, 3) for period in found.tolist()[:4]]
    msg = (
        f"{place}: {name} is {shown} ..., expected {len(found)} powers of {ROPE_BASE:g} from 1 on. "
        "Give the checkpoint in the transformers format."
    )
    raise FormatError(msg)


def _heads(width: int, head: int | None, place: str) -> int:
    if head is not None and width and width % head == 0:
        return width // head
    if head is None and width in _HEADS:
        return _HEADS[width]
    known = ", ".join(map(str, _HEADS))
    msg = (
        f"{place}: width {width} with heads of {head or 'unknown width'}; expected one of {known}, "
        "or position periods that tell. Give the checkpoint in the transformers format."
    )
    raise FormatError(msg)


def _count(names: Iterable[str], pattern: str, place: str) -> int:
    """How many layers there are; their numbers must go from 0 up without a gap."""
    found = sorted({int(match[1]) for name in names if (match := re.match(pattern, name))})
    gap = next((i for i, number in enumerate(found) if i != number), None)
    if gap is not None:
        layer = pattern.replace("([0-9]+)\\.", str(found[gap])).replace("\\", "")
        msg = f"{place}: found what becomes {layer}, expected number {gap} before it. {_AGAIN}"
        raise FormatError(msg)
    return len(found)


def _require(
    tensors: Mapping[str, torch.Tensor],
    dimensions: Mapping[str, int],
    place: str,
    original: Original,
) -> None:
    for name, count in dimensions.items():
        if name not in tensors:
            msg = f"{place}: no tensor {original(name)}, and DINOv3 has one. {_AGAIN}"
            raise FormatError(msg)
        if tensors[name].ndim != count:
            msg = (
                f"{place}: {original(name)} has shape {tuple(tensors[name].shape)}, "
                f"expected {count} dimensions. {_AGAIN}"
            )
            raise FormatError(msg)
