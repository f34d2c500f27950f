"""The names of each layout, and what they become in transformers.

Sources: transformers' conversion scripts (convert_dinov3_vit_to_hf.py and
convert_dinov3_convnext_to_hf.py), timm 1.0.31 (models/eva.py, models/convnext.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Format = Literal["transformers", "meta", "timm"]
Pairs = tuple[tuple[str, str], ...]

_NUMBER = "0|[1-9][0-9]*"
_FIELDS = {"n": _NUMBER, "m": _NUMBER, "k": "[012]", "x": "weight|bias", "rest": ".+"}


@dataclass(frozen=True, slots=True)
class Layout:
    """One way of naming. `marks` are names that all its checkpoints have.

    `names` pairs what stands in the file with what transformers calls it: {n} and {m} are numbers
    of layers, {k} is a small number, {x} is weight or bias. `fused` is the same for what is split,
    and serves messages alone. `dropped` pairs what no forward pass reads with the reason.
    """

    format: Format
    is_convnext: bool
    marks: tuple[str, ...]
    names: Pairs
    fused: Pairs = ()
    dropped: Pairs = ()

    def renamed(self, name: str) -> str | None:
        """transformers' name, or None for a name that is not in the table."""
        return _translate(name, self.names)

    def original(self, name: str, present: Iterable[str]) -> str:
        """The inverse: what a tensor of transformers' is called, or comes from, in this layout.

        Of several names it is the one that is present, else the one that other blocks use.
        """
        pairs = [(theirs, ours) for ours, theirs in (*self.names, *self.fused)]
        candidates = [found for pair in pairs if (found := _translate(name, [pair]))] or [name]
        names = set(present)
        forms = {_form(other) for other in names}
        used = [candidate for candidate in candidates if _form(candidate) in forms]
        return next((found for found in candidates if found in names), (used or candidates)[0])

    def reason_to_drop(self, name: str) -> str | None:
        """Why this tensor is left out, or None where it is not."""
        return next((why for form, why in self.dropped if _pattern(form).fullmatch(name)), None)


def _translate(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    for form, other in pairs:
        if match := _pattern(form).fullmatch(name):
            return other.format(**match.groupdict())
    return None


def _form(name: str) -> str:
    """The name without its numbers of layers."""
    return re.sub(r"\.[0-9]+\.", ".N.", name)


@cache
def _pattern(form: str) -> re.Pattern[str]:
    """`blocks.{n}.norm{k}.{x}` as an expression."""
    parts = re.split(r"\{(\w+)\}", form)
    fields = [f"(?P<{field}>{_FIELDS[field]})" for field in parts[1::2]]
    texts = [re.escape(text) for text in parts[::2]]
    return re.compile(
        "".join(text + field for text, field in zip(texts, [*fields, ""], strict=True))
    )


_VIT = (
    ("cls_token", "embeddings.cls_token"),
    ("patch_embed.proj.{x}", "embeddings.patch_embeddings.{x}"),
    ("blocks.{n}.norm{k}.{x}", "model.layer.{n}.norm{k}.{x}"),
    ("blocks.{n}.attn.proj.{x}", "model.layer.{n}.attention.o_proj.{x}"),
    ("norm.{x}", "norm.{x}"),
)
_FUSED = (
    *(
        ("blocks.{n}.attn.qkv.{x}", f"model.layer.{{n}}.attention.{part}_proj.{{x}}")
        for part in "qkv"
    ),
    *(
        (f"blocks.{{n}}.attn.{part}_bias", f"model.layer.{{n}}.attention.{part}_proj.bias")
        for part in "qkv"
    ),
)
_HEADS = "a head for training"
_META_VIT = Layout(
    "meta",
    is_convnext=False,
    marks=("cls_token", "storage_tokens", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma"),
    names=(
        *_VIT,
        ("storage_tokens", "embeddings.register_tokens"),
        ("mask_token", "embeddings.mask_token"),
        ("blocks.{n}.ls{k}.gamma", "model.layer.{n}.layer_scale{k}.lambda1"),
        ("blocks.{n}.mlp.fc1.{x}", "model.layer.{n}.mlp.up_proj.{x}"),
        ("blocks.{n}.mlp.fc2.{x}", "model.layer.{n}.mlp.down_proj.{x}"),
        ("blocks.{n}.mlp.w1.{x}", "model.layer.{n}.mlp.gate_proj.{x}"),
        ("blocks.{n}.mlp.w2.{x}", "model.layer.{n}.mlp.up_proj.{x}"),
        ("blocks.{n}.mlp.w3.{x}", "model.layer.{n}.mlp.down_proj.{x}"),
    ),
    fused=_FUSED,
    dropped=(
        ("local_cls_norm.{x}", "a norm for local crops in training"),
        ("dino_head.{rest}", _HEADS),
        ("ibot_head.{rest}", _HEADS),
        ("projectors.{rest}", _HEADS),
    ),
)
_TIMM_VIT = Layout(
    "timm",
    is_convnext=False,
    marks=("cls_token", "reg_token", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1"),
    names=(
        *_VIT,
        ("reg_token", "embeddings.register_tokens"),
        ("blocks.{n}.gamma_{k}", "model.layer.{n}.layer_scale{k}.lambda1"),
        ("blocks.{n}.mlp.fc1.{x}", "model.layer.{n}.mlp.up_proj.{x}"),
        ("blocks.{n}.mlp.fc1_g.{x}", "model.layer.{n}.mlp.gate_proj.{x}"),
        ("blocks.{n}.mlp.fc1_x.{x}", "model.layer.{n}.mlp.up_proj.{x}"),
        ("blocks.{n}.mlp.fc2.{x}", "model.layer.{n}.mlp.down_proj.{x}"),
    ),
    fused=_FUSED,
    dropped=(("head.{x}", "a classifier"),),
)
_CONVNEXT_BLOCK = "model.stages.{n}.layers.{m}."
_META_CONVNEXT = Layout(
    "meta",
    is_convnext=True,
    marks=("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    names=(
        ("downsample_layers.{n}.{k}.{x}", "model.stages.{n}.downsample_layers.{k}.{x}"),
        ("stages.{n}.{m}.dwconv.{x}", _CONVNEXT_BLOCK + "depthwise_conv.{x}"),
        ("stages.{n}.{m}.norm.{x}", _CONVNEXT_BLOCK + "layer_norm.{x}"),
        ("stages.{n}.{m}.pwconv{k}.{x}", _CONVNEXT_BLOCK + "pointwise_conv{k}.{x}"),
        ("stages.{n}.{m}.gamma", _CONVNEXT_BLOCK + "gamma"),
        ("norm.{x}", "layer_norm.{x}"),
    ),
    dropped=(
        ("dino_head.{rest}", _HEADS),
        ("ibot_head.{rest}", _HEADS),
        ("projectors.{rest}", _HEADS),
        ("head.{x}", "a classifier"),
    ),
)
_TIMM_CONVNEXT = Layout(
    "timm",
    is_convnext=True,
    marks=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    names=(
        ("stem.{k}.{x}", "model.stages.0.downsample_layers.{k}.{x}"),
        ("stages.{n}.downsample.{k}.{x}", "model.stages.{n}.downsample_layers.{k}.{x}"),
        ("stages.{n}.blocks.{m}.conv_dw.{x}", _CONVNEXT_BLOCK + "depthwise_conv.{x}"),
        ("stages.{n}.blocks.{m}.norm.{x}", _CONVNEXT_BLOCK + "layer_norm.{x}"),
        ("stages.{n}.blocks.{m}.mlp.fc{k}.{x}", _CONVNEXT_BLOCK + "pointwise_conv{k}.{x}"),
        ("stages.{n}.blocks.{m}.gamma", _CONVNEXT_BLOCK + "gamma"),
        ("head.norm.{x}", "layer_norm.{x}"),
    ),
    dropped=(("head.fc.{x}", "a classifier"), ("head.pre_logits.{rest}", "a classifier")),
)
LAYOUTS = (_META_VIT, _TIMM_VIT, _META_CONVNEXT, _TIMM_CONVNEXT)

_TRANSFORMERS = ("embeddings.patch_embeddings.weight", "stages.0.downsample_layers.0.weight")


def timm_layout(*, is_convnext: bool) -> Layout:
    """How timm names a DINOv3."""
    return _TIMM_CONVNEXT if is_convnext else _TIMM_VIT


def find_layout(names: Collection[str]) -> Layout | None:
    """The layout of Meta's or timm's whose marks are all there."""
    known = set(names)
    return next((layout for layout in LAYOUTS if known.issuperset(layout.marks)), None)


def detect(names: Collection[str]) -> Format | None:
    """How these tensors are named; None for nothing that is known here."""
    layout = find_layout(names)
    if layout is not None:
        return layout.format
    plain = {name.removeprefix("model.") for name in names}
    return "transformers" if any(mark in plain for mark in _TRANSFORMERS) else None


def canonical_name(name: str, model_type: str) -> str:
    """One name for both generations of transformers' own: `layer.0.` became `model.layer.0.` and
    `stages.0.` became `model.stages.0.` in 5.0. Other architectures keep theirs.
    """
    start = {"dinov3_vit": "layer.", "dinov3_convnext": "stages."}.get(model_type)
    return f"model.{name}" if start is not None and name.startswith(start) else name
