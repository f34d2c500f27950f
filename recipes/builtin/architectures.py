"""The two built-in encoders: their transformers configurations, and how their folder is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from evaluation import MEAN, STD
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

PROCESSOR = "DINOv3ViTImageProcessorFast"
SIZE_PX = {"vit": 64, "convnext": 64}


def build(arch: str) -> Any:
    """Return an untrained DINOv3 model of transformers: "vit" or "convnext"."""
    from transformers import (
        DINOv3ConvNextConfig,
        DINOv3ConvNextModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
    )

    if arch == "convnext":
        return DINOv3ConvNextModel(
            DINOv3ConvNextConfig(
                hidden_sizes=[40, 80, 160, 224],
                depths=[2, 2, 3, 1],
                image_size=SIZE_PX[arch],
                layer_scale_init_value=0.5,
            )
        )
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            patch_size=8,
            hidden_size=192,
            intermediate_size=480,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=SIZE_PX[arch],
            num_register_tokens=4,
            pos_embed_rescale=None,
        )
    )


def save(encoder: Any, arch: str, out: Path) -> None:
    """Write the configuration, float16 weights and preprocessing to out, each file atomically."""
    out.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().to(torch.float16).contiguous() for k, v in encoder.state_dict().items()}
    config = encoder.config.to_dict() | {"architectures": [type(encoder).__name__]}
    config["dtype"] = "float32"
    config.pop("_name_or_path", None)  # the folder of --init
    _write(out / "config.json", config)
    _write(out / "preprocessor_config.json", processor(SIZE_PX[arch]))
    partial = out / ".model.safetensors.partial"
    save_file(half, partial, metadata={"format": "pt"})
    partial.replace(out / "model.safetensors")


def processor(size_px: int) -> dict[str, Any]:
    """Return preprocessor_config.json as the DINOv3 checkpoints on the hub write it."""
    return {
        "image_processor_type": PROCESSOR,
        "do_resize": True,
        "size": {"height": size_px, "width": size_px},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    partial.replace(path)


def load(arch: str, folder: Path) -> nn.Module:
    """Return the encoder saved in folder, in float32."""
    model: nn.Module = type(build(arch)).from_pretrained(folder, dtype=torch.float32)
    return model
