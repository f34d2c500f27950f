"""A folder in the transformers format to a frozen model on a device.

The class follows `model_type` in config.json, from an allow-list; weights come from safetensors
only; no code of the checkpoint runs. A missing, superfluous or misshapen tensor is an error:
transformers would fill it with random numbers and only log it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dinoprobe import files
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

_MODELS = {
    "dinov3_vit": ("transformers.models.dinov3_vit", "DINOv3ViTModel"),
    "dinov3_convnext": ("transformers.models.dinov3_convnext", "DINOv3ConvNextModel"),
}
_CHUNK_BYTES = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint. Raises EncoderError or FormatError."""
    try:
        value = files.read_json(path)
    except FileNotFoundError as error:
        msg = f"{path.parent}: no {path.name}. A folder in the transformers format was expected."
        raise EncoderError(msg) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds a {type(value).__name__}, expected an object.")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint, sorted by name. Raises EncoderError without any."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    others = sorted(p.name for p in folder.iterdir() if p.suffix in {".pth", ".bin", ".pt"})
    found = f" ({', '.join(others)} can run code when read and is not opened)" if others else ""
    msg = f"{folder}: no .safetensors file{found}. Expected model.safetensors beside config.json."
    raise EncoderError(msg)


def weights_digest(folder: Path) -> str:
    """SHA-256 in hex over the files with the weights, in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def load_model(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model in `dtype`, frozen and in evaluation mode, on the CPU."""
    config = read_json(folder / "config.json")
    weight_files(folder)
    model_class = _model_class(config, folder)
    try:
        with _quiet():
            model, info = model_class.from_pretrained(
                str(folder),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, strict dataclasses, torch: many kinds
        reason = str(error).strip().split("\n")[0]
        msg = (
            f"{folder}: the checkpoint can not be loaded ({type(error).__name__}: {reason}). "
            "Expected a config.json and safetensors that fit it. Fetch the checkpoint again."
        )
        raise EncoderError(msg) from error
    _refuse_partial_weights(folder, info)
    frozen: torch.nn.Module = model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own
    return frozen


def _model_class(config: dict[str, Any], folder: Path) -> Any:
    import importlib

    model_type = config.get("model_type")
    if model_type not in _MODELS:
        msg = (
            f"{folder}: model_type is {model_type!r}, expected one of {', '.join(_MODELS)}. "
            "Give a DINOv3 checkpoint."
        )
        raise EncoderError(msg)
    module, name = _MODELS[model_type]
    return getattr(importlib.import_module(module), name)


def _refuse_partial_weights(folder: Path, info: dict[str, Any]) -> None:
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        found = sorted(map(str, info.get(what) or ()))
        if found:
            msg = (
                f"{folder}: the weights do not fit config.json: {len(found)} "
                f"{what.replace('_', ' ')}, first {found[0]}. Fetch the checkpoint again."
            )
            raise EncoderError(msg)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' bars and load reports off the terminal: errors are raised instead."""
    from transformers.utils import logging as chatter

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.CRITICAL)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
