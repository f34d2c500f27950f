"""Which architectures are loaded, and where their tokens stand; driven by `model_type` and config.

The token sequence of each, as its transformers model returns it:

    dinov3_vit             CLS, registers, patches
    dinov3_convnext        pooled, patches (the pooled output stands where a ViT has its CLS)
    dinov2                 CLS, patches
    dinov2_with_registers  CLS, registers, patches
    vit                    CLS, patches

No code of a checkpoint ever runs: classes come from this list and nothing else.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture of transformers.

    `forward_options` go to each forward pass, such as the wish that position embeddings made for
    one size are interpolated for another. `ignored` are beginnings of tensor names that belong to a
    classifier or to another output. `norm` names the module behind the last block of a ViT.
    """

    model_type: str
    module: str
    class_name: str
    has_registers: bool = False
    norm: str = "layernorm"
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def is_convnext(self) -> bool:
        """Whether the first token is a mean of the others."""
        return self.model_type == "dinov3_convnext"

    @property
    def is_dinov3(self) -> bool:
        """Whether it is one of Meta's DINOv3 architectures."""
        return self.model_type.startswith("dinov3")

    def model_class(self) -> Any:
        """The class in transformers; imports it."""
        return getattr(importlib.import_module(self.module), self.class_name)

    def config_class(self) -> Any:
        """The class of its configuration; imports it."""
        return self.model_class().config_class

    def tokens_before_patches(self, config: object) -> int:
        """CLS and registers: the patches start at this position."""
        registers = getattr(config, "num_register_tokens", 0) if self.has_registers else 0
        return 1 + int(registers or 0)

    def depth(self, config: Mapping[str, Any]) -> int:
        """How many blocks have a CLS; 1 for a ConvNeXt. 12 is transformers' own default."""
        layers = 1 if self.is_convnext else config.get("num_hidden_layers", 12)
        return layers if isinstance(layers, int) else 1

    def width(self, config: Any) -> int:
        """Numbers in one token."""
        return int(config.hidden_sizes[-1] if self.is_convnext else config.hidden_size)


def _family(model_type: str, class_name: str, **more: Any) -> Family:
    module = f"transformers.models.{model_type}"
    return Family(model_type=model_type, module=module, class_name=class_name, **more)


_HEADS = ("classifier.", "pooler.")
FAMILIES = {
    family.model_type: family
    for family in (
        _family("dinov3_vit", "DINOv3ViTModel", has_registers=True, norm="norm"),
        _family("dinov3_convnext", "DINOv3ConvNextModel"),
        _family("dinov2", "Dinov2Model", prefix="dinov2.", ignored=_HEADS),
        _family(
            "dinov2_with_registers",
            "Dinov2WithRegistersModel",
            has_registers=True,
            prefix="dinov2_with_registers.",
            ignored=_HEADS,
        ),
        _family(
            "vit",
            "ViTModel",
            prefix="vit.",
            ignored=_HEADS,
            forward_options={"interpolate_pos_encoding": True},
            model_options={"add_pooling_layer": False},
        ),
    )
}


def family_of(config: Mapping[str, Any], place: object) -> Family:
    """The family of a config.json. Raises EncoderError for one that is not in the list."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        msg = (
            f"{place}: model_type is {model_type!r}, expected one of {', '.join(FAMILIES)}. "
            "Give a DINOv3 checkpoint, or another of these."
        )
        raise EncoderError(msg)
    return FAMILIES[model_type]
