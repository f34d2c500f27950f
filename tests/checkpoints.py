"""Small random checkpoints in the official layout, for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

PREPROCESSOR = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 2,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def save_vit(
    folder: Path, *, seed: int = 0, size: int = 32, width: int = 32, depth: int = 2
) -> Path:
    """A ViT with 4 registers and patches of 8."""
    from transformers.models.dinov3_vit import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        num_register_tokens=4,
        patch_size=8,
        image_size=size,
    )
    torch.manual_seed(seed)
    return _save(DINOv3ViTModel(config), folder, size)


def save_convnext(folder: Path, *, seed: int = 0, size: int = 64) -> Path:
    """A ConvNeXt with stages of 8 to 32 channels."""
    from transformers.models.dinov3_convnext import DINOv3ConvNextConfig, DINOv3ConvNextModel

    config = DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    torch.manual_seed(seed)
    return _save(DINOv3ConvNextModel(config), folder, size)


def save_dinov2(folder: Path, *, registers: bool = False, seed: int = 0) -> Path:
    """A DINOv2 with patches of 14, position embeddings for 56 px, crops of 28 px."""
    from transformers.models.dinov2 import Dinov2Config, Dinov2Model
    from transformers.models.dinov2_with_registers import (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    if registers:
        options = {**shape, "patch_size": 14, "image_size": 56, "num_register_tokens": 3}
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**options))
    else:
        model = Dinov2Model(Dinov2Config(**shape, patch_size=14, image_size=56))
    return _save(model, folder, 28, _CROP)


def save_vit_of_google(folder: Path, *, seed: int = 0) -> Path:
    """A plain ViT with a pooler, as google/vit-* have it: patches of 8, made for 32 px."""
    from transformers.models.vit import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        image_size=32,
    )
    torch.manual_seed(seed)
    return _save(ViTModel(config), folder, 32)


_CROP = {
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "resample": 3,
    "image_processor_type": "BitImageProcessor",
}


def _save(
    model: torch.nn.Module, folder: Path, size: int, own: dict[str, object] | None = None
) -> Path:
    with torch.no_grad():  # registers and CLS start near zero, which would hide a wrong mean
        for name, parameter in model.named_parameters():
            if "token" in name:
                parameter.normal_(std=1.0)
    model.save_pretrained(folder)
    settings = {**PREPROCESSOR, "size": {"height": size, "width": size}, **(own or {})}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_official(folder: Path, name: str, **changes: object) -> Path:
    """Random weights of a published checkpoint's shape, as transformers saves them."""
    from dinoprobe.catalog import CHECKPOINTS
    from dinoprobe.encoder.families import FAMILIES

    entry = CHECKPOINTS[name]
    family = FAMILIES[entry.model_type]
    torch.manual_seed(0)
    model = family.model_class()(family.config_class()(**{**entry.config, **changes}))
    return _save(model, folder, 224)
