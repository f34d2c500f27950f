"""The checkpoints that `dinoprobe models` lists: the twelve of DINOv3, and DINOv2's for comparison.

Shapes and parameter counts are those of transformers' own models built from these settings, which a
test repeats for every one; file names and statistics are those of facebookresearch/dinov3 (README,
hub/backbones.py), timm names those of timm 1.0.31 (models/eva.py, models/convnext.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Family = Literal["vit", "convnext", "dinov2"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # transformers, image_utils.py: IMAGENET_DEFAULT_MEAN
IMAGENET_STD = (0.229, 0.224, 0.225)
SAT493M_MEAN = (0.430, 0.411, 0.296)
SAT493M_STD = (0.213, 0.156, 0.143)
# What --normalize takes, besides the checkpoint's own: (mean, std).
STATISTICS = MappingProxyType(
    {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "sat493m": (SAT493M_MEAN, SAT493M_STD),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One published set of weights.

    `config` holds the settings of transformers' configuration that differ from its defaults.
    `parameters` counts what transformers loads; `meta_file` is the official file of the same
    weights, and `meta_hash` the digits in its name; `timm` names timm's copies, which need no
    account. `relative_cost` is the measured time of one image at 224 pixels over vits16's
    (benchmarks/results/checkpoints-cpu.json), None where it was not measured.
    """

    name: str
    hub_id: str
    family: Family
    weights: str
    model_type: str
    config: Mapping[str, Any]
    parameters: int
    gated: bool
    licence: str
    meta_file: str | None = None
    timm: tuple[str, ...] = ()
    relative_cost: float | None = None

    @property
    def meta_hash(self) -> str | None:
        """The eight digits in the name of Meta's file: the start of its SHA-256."""
        return self.meta_file.rpartition("-")[2].removesuffix(".pth") if self.meta_file else None

    @property
    def width(self) -> int:
        """Numbers in one token, and in features pooled with `cls`."""
        return int(self.config.get("hidden_size") or self.config["hidden_sizes"][-1])

    @property
    def dimension(self) -> int:
        """Numbers in one row of features with the default pooling."""
        return self.width if self.family == "convnext" else 2 * self.width

    @property
    def patch_size(self) -> int:
        """Pixels on a side that one token stands for."""
        return 32 if self.family == "convnext" else int(self.config["patch_size"])

    @property
    def statistics(self) -> str:
        """Name of the mean and deviation that it was trained with."""
        return "sat493m" if self.weights == "sat493m" else "imagenet"

    @property
    def download_bytes(self) -> int:
        """Bytes of the weights as published, in float32."""
        return 4 * self.parameters

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of the training images, red, green, blue, from 0 to 1."""
        return STATISTICS[self.statistics][0]

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of the training images."""
        return STATISTICS[self.statistics][1]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the weights of one architecture share, whatever they were trained on."""

    config: dict[str, Any]
    parameters: int
    timm: str
    relative_cost: float | None = None
    biased: bool = True
    family: Family = "vit"
    hashes: dict[str, str] = field(default_factory=dict)


def _vit(width: int, depth: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_register_tokens": 4,
        "patch_size": 16,
        **more,
    }


def _convnext(depth: int, *widths: int) -> dict[str, Any]:
    return {"hidden_sizes": list(widths), "depths": [3, 3, depth, 3]}


_GATED: dict[str, Any] = {"use_gated_mlp": True, "hidden_act": "silu"}
_SHAPES = {
    "vits16": _Shape(
        _vit(384, 12, 6, 1536),
        21_596_544,
        "vit_small_patch16_dinov3",
        relative_cost=1.0,
        hashes={"lvd1689m": "08c60483"},
    ),
    "vits16plus": _Shape(
        _vit(384, 12, 6, 1536, **_GATED),
        28_692_864,
        "vit_small_plus_patch16_dinov3",
        relative_cost=1.4,
        hashes={"lvd1689m": "4057cbaa"},
    ),
    "vitb16": _Shape(
        _vit(768, 12, 12, 3072),
        85_660_416,
        "vit_base_patch16_dinov3",
        relative_cost=3.8,
        hashes={"lvd1689m": "73cec8be"},
    ),
    "vitl16": _Shape(
        _vit(1024, 24, 16, 4096),
        303_129_600,
        "vit_large_patch16_dinov3",
        relative_cost=13.0,
        hashes={"lvd1689m": "8aa4cbdd", "sat493m": "eadcf0ff"},
    ),
    "vith16plus": _Shape(
        _vit(1280, 32, 20, 5120, **_GATED),
        840_592_640,
        "vit_huge_plus_patch16_dinov3",
        relative_cost=34.0,
        hashes={"lvd1689m": "7c1da9a5"},
    ),
    "vit7b16": _Shape(
        _vit(4096, 40, 32, 8192, query_bias=False, value_bias=False, **_GATED),
        6_716_035_072,
        "vit_7b_patch16_dinov3",
        biased=False,
        relative_cost=260.0,
        hashes={"lvd1689m": "a955f4ea", "sat493m": "a6675841"},
    ),
    "convnext-tiny": _Shape(
        _convnext(9, 96, 192, 384, 768),
        27_820_128,
        "convnext_tiny",
        family="convnext",
        relative_cost=1.0,
        hashes={"lvd1689m": "21b726bb"},
    ),
    "convnext-small": _Shape(
        _convnext(27, 96, 192, 384, 768),
        49_454_688,
        "convnext_small",
        family="convnext",
        relative_cost=1.9,
        hashes={"lvd1689m": "296db49d"},
    ),
    "convnext-base": _Shape(
        _convnext(27, 128, 256, 512, 1024),
        87_566_464,
        "convnext_base",
        family="convnext",
        relative_cost=3.0,
        hashes={"lvd1689m": "801f2ba9"},
    ),
    "convnext-large": _Shape(
        _convnext(27, 192, 384, 768, 1536),
        196_230_336,
        "convnext_large",
        family="convnext",
        relative_cost=6.1,
        hashes={"lvd1689m": "61fa432d"},
    ),
}


def _timm_names(shape: _Shape, weights: str) -> tuple[str, ...]:
    if shape.family == "convnext":
        return (f"{shape.timm}.dinov3_{weights}",)
    plain = f"{shape.timm}.{weights}"
    return (f"{shape.timm}_qkvb.{weights}", plain) if shape.biased else (plain,)


def _dinov3(architecture: str, weights: str) -> Checkpoint:
    shape = _SHAPES[architecture]
    name = architecture if weights == "lvd1689m" else f"{architecture}-{weights}"
    file = f"dinov3_{architecture.replace('-', '_')}_pretrain_{weights}-{shape.hashes[weights]}.pth"
    return Checkpoint(
        name=name,
        hub_id=f"facebook/dinov3-{architecture}-pretrain-{weights}",
        family=shape.family,
        weights=weights,
        model_type="dinov3_convnext" if shape.family == "convnext" else "dinov3_vit",
        config=MappingProxyType(shape.config),
        parameters=shape.parameters,
        gated=True,
        licence="dinov3-license",
        meta_file=file,
        timm=_timm_names(shape, weights),
        relative_cost=shape.relative_cost,
    )


def _dinov2(
    size: str,
    width: int,
    depth: int,
    parameters: int,
    cost: float | None,
    *,
    registers: bool,
    **more: Any,
) -> Checkpoint:
    variant = "dinov2-with-registers" if registers else "dinov2"
    config = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "patch_size": 14,
        "image_size": 518,
        **more,
    }
    return Checkpoint(
        name=f"dinov2-{size}-reg" if registers else f"dinov2-{size}",
        hub_id=f"facebook/{variant}-{size}",
        family="dinov2",
        weights="lvd142m",
        model_type=variant.replace("-", "_"),
        config=MappingProxyType(config),
        parameters=parameters,
        gated=False,
        licence="apache-2.0",
        relative_cost=cost,
    )


_DINOV2 = [
    _dinov2("small", 384, 12, 22_056_576, 1.3, registers=False),
    _dinov2("base", 768, 12, 86_580_480, 4.0, registers=False),
    _dinov2("large", 1024, 24, 304_368_640, 14.0, registers=False),
    _dinov2("giant", 1536, 40, 1_136_480_768, 45.0, registers=False, use_swiglu_ffn=True),
    _dinov2("small", 384, 12, 22_058_112, 1.2, registers=True),
    _dinov2("base", 768, 12, 86_583_552, None, registers=True),
    _dinov2("large", 1024, 24, 304_372_736, None, registers=True),
    _dinov2("giant", 1536, 40, 1_136_486_912, None, registers=True, use_swiglu_ffn=True),
]

CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        *(_dinov3(name, "lvd1689m") for name in _SHAPES),
        _dinov3("vitl16", "sat493m"),
        _dinov3("vit7b16", "sat493m"),
        *_DINOV2,
    )
}
