"""Small files as Meta writes them, and what an import left behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from tests import layouts
from tests.layouts import ConvNeXt, Tensors, ViT

from dinoprobe.encoder.pth import imports_folder

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = ViT(width=32, depth=2, heads=2, inner=48, patch=8)
CONVNEXT = ConvNeXt((8, 12, 16, 20), (1, 1, 1, 1))


def meta() -> Tensors:
    return layouts.meta_vit(SHAPE)


def saved(folder: Path, value: object, name: str = "weights.pth", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def left_over() -> list[str]:
    """What lies in the cache, hidden or not."""
    return sorted(os.listdir(imports_folder())) if imports_folder().is_dir() else []
