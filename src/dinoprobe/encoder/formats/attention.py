"""Fused query, key and value, taken apart; and the bias of the keys, which Meta masks.

DINOv3 is trained without a bias of the keys. Meta's files carry one all the same, with a mask of
zeros over it, and leave whatever stands there; timm's and transformers' have none. One that is
neither masked nor zero would count, because positions rotate it, and is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dinoprobe.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_PART = re.compile(r"(blocks\.([0-9]+)\.attn\.)(qkv\.(weight|bias|bias_mask)|[qkv]_bias)")
_NAMES = ("q", "k", "v")
_AGAIN = "Fetch the file again."


@dataclass(slots=True)
class Attention:
    """`tensors` by transformers' names; `consumed` are the names that they were made of."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    consumed: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def split_attention(tensors: Mapping[str, torch.Tensor], place: str) -> Attention:
    """Query, key and value of every block. Raises FormatError for a shape that can not be split."""
    found = Attention()
    biases: dict[str, dict[str, torch.Tensor]] = {}
    matches = [match for name in tensors if (match := _PART.fullmatch(name))]
    for start, number in dict.fromkeys((match[1], match[2]) for match in matches):
        name, target = f"{start}qkv.weight", f"model.layer.{number}.attention"
        if name not in tensors:
            raise FormatError(f"{place}: no tensor {name}, expected one beside its bias. {_AGAIN}")
        for part, weight in zip(_NAMES, _thirds(tensors[name], 2, name, place), strict=True):
            found.tensors[f"{target}.{part}_proj.weight"] = weight
        found.consumed.add(name)
        biases[target] = _biases(tensors, start, place, found.consumed)
    _keep_biases(biases, found, place)
    return found


def _keep_biases(biases: dict[str, dict[str, torch.Tensor]], found: Attention, place: str) -> None:
    """Keys get a bias only where one that is not zero was found, and then in every block."""
    import torch

    keys = [parts["k"] for parts in biases.values() if "k" in parts]
    keyed = any(bias.any() for bias in keys)
    for target, parts in biases.items():
        for part, bias in parts.items():
            if part != "k":
                found.tensors[f"{target}.{part}_proj.bias"] = bias
        if keyed:
            blank = torch.zeros_like(found.tensors[f"{target}.k_proj.weight"][:, 0])
            found.tensors[f"{target}.k_proj.bias"] = parts.get("k", blank)
    if keys and not keyed:
        found.notes.append(f"{place}: left out the bias of the keys: masked, or zero.")


def _biases(
    tensors: Mapping[str, torch.Tensor], start: str, place: str, consumed: set[str]
) -> dict[str, torch.Tensor]:
    """The biases of one block, by q, k and v: fused and perhaps masked, or one by one."""
    fused, mask = f"{start}qkv.bias", f"{start}qkv.bias_mask"
    single = {part: f"{start}{part}_bias" for part in _NAMES}
    present = {part: name for part, name in single.items() if name in tensors}
    consumed |= {name for name in (fused, mask) if name in tensors} | set(present.values())
    if fused not in tensors and mask not in tensors:
        return {part: tensors[name] for part, name in present.items()}
    if fused not in tensors or present:
        other = next(iter(present.values()), fused)
        msg = (
            f"{place}: {fused if present else mask} {'beside' if present else 'without'} {other}, "
            f"expected one bias of queries, keys and values. {_AGAIN}"
        )
        raise FormatError(msg)
    bias = tensors[fused]
    if mask in tensors:
        bias = _masked(bias, tensors[mask], mask, place)
    return dict(zip(_NAMES, _thirds(bias, 1, fused, place), strict=True))


def _masked(bias: torch.Tensor, mask: torch.Tensor, name: str, place: str) -> torch.Tensor:
    """The bias where the mask is one, zero where it is zero, whatever stands there.

    A mask that was never filled is all NaN, and means the keys.
    """
    import torch

    if mask.shape != bias.shape:
        found, expected = tuple(mask.shape), tuple(bias.shape)
        msg = f"{place}: {name} has shape {found}, expected {expected}. {_AGAIN}"
        raise FormatError(msg)
    if mask.isnan().all():
        third = len(mask) // 3
        mask = torch.ones_like(mask)
        mask[third : 2 * third] = 0
    if not ((mask == 0) | (mask == 1)).all():
        msg = f"{place}: {name} holds other values than 0 and 1. {_AGAIN}"
        raise FormatError(msg)
    return torch.where(mask == 0, torch.zeros_like(bias), bias)


def _thirds(
    tensor: torch.Tensor, dimensions: int, name: str, place: str
) -> tuple[torch.Tensor, ...]:
    fits = tensor.ndim == dimensions and len(tensor) > 0 and len(tensor) % 3 == 0
    if not fits or (dimensions == 2 and len(tensor) != 3 * tensor.shape[1]):
        shape = "(3 D, D)" if dimensions == 2 else "(3 D,)"
        msg = (
            f"{place}: {name} has shape {tuple(tensor.shape)}, expected {shape}: equal parts for "
            f"query, key and value. {_AGAIN}"
        )
        raise FormatError(msg)
    return tuple(tensor.chunk(3, dim=0))
