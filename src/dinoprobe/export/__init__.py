"""A classifier for other programs: ONNX and others, each let through only if it answers the same.

`Runner` runs an exported ONNX file, and imports neither torch nor transformers nor scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinoprobe.export.exporting import Exported, export
    from dinoprobe.export.onnx_file import Runner
    from dinoprobe.export.push import Destination

_HOMES = {
    "Destination": "push",
    "Exported": "exporting",
    "Runner": "onnx_file",
    "export": "exporting",
}

__all__ = ["Destination", "Exported", "Runner", "export"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dinoprobe.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dinoprobe.export.{_HOMES[name]}"), name)
