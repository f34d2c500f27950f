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


def save_vit(folder: Path, *, seed: int = 0, size: int = 32) -> Path:
    """A ViT with 4 registers, patches of 8 and width 32."""
    from transformers.models.dinov3_vit import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
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


def _save(model: torch.nn.Module, folder: Path, size: int) -> Path:
    with torch.no_grad():  # registers and CLS start near zero, which would hide a wrong mean
        for name, parameter in model.named_parameters():
            if "token" in name:
                parameter.normal_(std=1.0)
    model.save_pretrained(folder)
    settings = {**PREPROCESSOR, "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
