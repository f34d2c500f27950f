"""The way back: a DINOv3 by transformers' names, as timm builds and names it.

Names come from the table that timm's files are read by, architectures from the catalogue; a shape
that was never published is the smallest architecture with other arguments. What timm's models have
fixed (timm 1.0.31, models/eva.py and models/convnext.py) is compared, and refused where it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.encoder.formats.configuration import ROPE_BASE
from dinoprobe.encoder.formats.layouts import timm_layout
from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_MASK = "embeddings.mask_token"  # timm has none: only pre-training reads it
_FUSED = ("q_proj", "k_proj", "v_proj")  # one tensor in timm, in this order
_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_register_tokens",
    "patch_size",
)
_VIT_FIXED = {
    "layer_norm_eps": 1e-5,
    "rope_theta": ROPE_BASE,
    "num_channels": 3,
    "mlp_bias": True,
    "proj_bias": True,
}
_CONVNEXT_FIXED = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "num_channels": 3}


@dataclass(frozen=True, slots=True)
class TimmModel:
    """What `timm.create_model(architecture, **arguments)` builds, and its tensors in float32.

    `first` and `head` are the names of its first convolution and of its classifier.
    """

    architecture: str
    arguments: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    first: str
    head: str


def to_timm(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> TimmModel:
    """The encoder with timm's names. Raises ConfigurationError for what timm's models are not."""
    if config["model_type"] == "dinov3_convnext":
        return _convnext(tensors, config)
    if config["model_type"] == "dinov3_vit":
        return _vit(tensors, config)
    msg = (
        f"the encoder is a {config['model_type']}; expected a DINOv3, which timm has with the same "
        "tensors. Export to transformers or onnx."
    )
    raise ConfigurationError(msg)


def _vit(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> TimmModel:
    gated = bool(config["use_gated_mlp"])
    _require(config, {**_VIT_FIXED, "hidden_act": "silu" if gated else "gelu"})
    if not config["num_register_tokens"]:
        raise ConfigurationError(f"the encoder has no register tokens, and {_EXPECTED}")
    if _any(tensors, ".k_proj.bias"):
        raise ConfigurationError(f"the encoder has a bias of the keys, and {_EXPECTED}")
    biased = _any(tensors, ".q_proj.bias") or _any(tensors, ".v_proj.bias")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name != _MASK and not (name.endswith("k_proj.bias") or (not biased and _is_qv(name)))
    }
    used = ["blocks.0.attn.q_bias", "blocks.0.attn.v_bias"]
    used += [f"blocks.0.mlp.fc1_x.{part}" for part in ("weight", "bias")] if gated else []
    architecture, arguments = _vit_architecture(config, gated=gated, biased=biased)
    named = _named(kept, used, is_convnext=False)
    return TimmModel(architecture, arguments, named, "patch_embed.proj", "head")


def _convnext(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> TimmModel:
    _require(config, _CONVNEXT_FIXED)
    shape = {"depths": list(config["depths"]), "dims": list(config["hidden_sizes"])}
    found = _published(config, ("depths", "hidden_sizes"))
    name, arguments = (_plain(found[0]), {}) if found else ("convnext_tiny", shape)
    named = _named(tensors, (), is_convnext=True)
    return TimmModel(name, arguments, named, "stem.0", "head.fc")


def _vit_architecture(
    config: Mapping[str, Any], *, gated: bool, biased: bool
) -> tuple[str, dict[str, Any]]:
    """timm's name, `_qkvb` with biases of queries and values, and what differs from it."""
    found = _published(config, (*_SHAPE, "use_gated_mlp"))
    if found:
        name = _plain(found[0] if biased else found[-1])
        return name, {"qkv_bias": True} if biased and "_qkvb" not in name else {}
    width, inner = config["hidden_size"], config["intermediate_size"]
    ratio = inner / width
    arguments = {
        "embed_dim": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": ratio if int(width * ratio) == inner else (inner + 0.5) / width,
        "num_reg_tokens": config["num_register_tokens"],
        "patch_size": config["patch_size"],
    }
    plus = "_plus" if gated else ""
    arguments |= {"swiglu_align_to": 1} if gated else {}
    return f"vit_small{plus}_patch16_dinov3{'_qkvb' if biased else ''}", arguments


def _published(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """timm's names of the published checkpoint of this shape, the biased one first."""
    for entry in CHECKPOINTS.values():
        theirs = {"use_gated_mlp": False, **entry.config}
        is_like_it = entry.model_type == config["model_type"] and entry.timm
        if is_like_it and all(_same(theirs.get(key), config[key]) for key in keys):
            return entry.timm
    return ()


def _same(one: Any, other: Any) -> bool:
    return bool(list(one) == list(other) if isinstance(one, list | tuple) else one == other)


def _plain(name: str) -> str:
    return name.partition(".")[0]


def _named(
    tensors: Mapping[str, torch.Tensor], used: list[str] | tuple[str, ...], *, is_convnext: bool
) -> dict[str, torch.Tensor]:
    """By timm's names; of several for one tensor, those that `used` has."""
    import torch

    layout = timm_layout(is_convnext=is_convnext)
    parts: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors, key=_place_in_fused):
        parts.setdefault(layout.original(name, used), []).append(tensors[name].detach().float())
    return {
        name: (found[0] if len(found) == 1 else torch.cat(found)).contiguous()
        for name, found in parts.items()
    }


def _place_in_fused(name: str) -> int:
    return next((i for i, part in enumerate(_FUSED) if f".{part}." in name), 0)


def _is_qv(name: str) -> bool:
    return name.endswith((".q_proj.bias", ".v_proj.bias"))


def _any(tensors: Mapping[str, torch.Tensor], ending: str) -> bool:
    """Whether a tensor of this ending holds another number than zero."""
    return any(bool(tensor.any()) for name, tensor in tensors.items() if name.endswith(ending))


_EXPECTED = "timm's DINOv3 has it otherwise. Export to transformers or onnx."


def _require(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, expected in fixed.items():
        found = config.get(name, expected)
        if found != expected:
            msg = (
                f"the encoder's {name} is {found}, expected {expected}, which timm's model of it "
                "has. Export to transformers or onnx."
            )
            raise ConfigurationError(msg)
