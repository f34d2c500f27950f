"""A checkpoint on disk to a frozen model on its device.

The class follows `model_type` in config.json, from an allow-list; weights come from safetensors
only; no code of the checkpoint runs. A missing, superfluous or misshapen tensor is an error:
transformers would fill it with random numbers and only log it. Files in timm's or in Meta's layout
are renamed while they are read, without a copy on disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from dinoprobe import files
from dinoprobe.encoder import formats
from dinoprobe.encoder.families import Family, family_of
from dinoprobe.encoder.imports import IMPORT_FILE
from dinoprobe.encoder.weights import INDEX_FILE, StoredTensors, weight_files, weights_digest
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

    from dinoprobe.encoder.placement import Spread
    from dinoprobe.encoder.reference import EncoderReference


_WITHOUT_SPREAD = "Expected a config.json and safetensors that fit it. Fetch the checkpoint again."
_WITH_SPREAD = "Expected one that the devices can hold. Change --device-map or --max-memory."


@dataclass(frozen=True)
class Source:
    """A checkpoint that was opened, and not yet loaded: settings, and tensors that are read late.

    `format` says how its tensors are named on disk; `tensors` have transformers' names wherever
    they had to be renamed.
    """

    place: Path
    format: formats.Format
    family: Family
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    parameters: int
    notes: tuple[str, ...] = ()
    is_satellite: bool = False

    @cached_property
    def digest(self) -> str:
        """What identifies the weights, whatever file they came in: see `weights_digest`."""
        names = {name: self._plain(name) for name in self.tensors}
        kept = {name for name, plain in names.items() if not plain.startswith(self.family.ignored)}
        return weights_digest(_Selected(self.tensors, kept), self._plain)

    def _plain(self, name: str) -> str:
        prefix = self.family.prefix
        plain = name.removeprefix(prefix) if prefix else name
        return formats.canonical_name(plain, self.family.model_type)


class _Selected(dict[str, "torch.Tensor"]):
    """The tensors of these names; each is read when it is asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: set[str]) -> None:
        super().__init__(dict.fromkeys(names))  # type: ignore[arg-type]
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]


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


def open_source(reference: EncoderReference) -> Source:
    """The checkpoint at this place, in whichever of the known layouts.

    Raises EncoderError or FormatError.
    """
    folder = reference.folder
    place = reference.file or folder
    if (folder / "adapter_config.json").exists():
        msg = f"{folder}: holds an adapter (adapter_config.json). Merge it into the weights first."
        raise EncoderError(msg)
    stored = StoredTensors([reference.file] if reference.file else weight_files(folder))
    layout = formats.detect(stored.keys())
    if layout in {"meta", "timm"}:
        name, heads = _timm_settings(folder) if layout == "timm" else (None, None)
        converted = formats.convert(stored, place=str(place), heads=heads)
        family = family_of(converted.config, place)
        count = sum(tensor.numel() for tensor in converted.tensors.values())
        config, tensors, notes = converted.config, converted.tensors, converted.notes
        if layout == "timm" and family.is_convnext and name is None:
            doubt = "taken for DINOv3 by its tensors, which timm's other ConvNeXts have, too"
            notes = (*notes, f"{place}: {doubt}.")
        satellite = name is not None and "sat493m" in name
        return Source(place, layout or "timm", family, config, tensors, count, notes, satellite)
    config = read_json(folder / "config.json")
    family = family_of(config, folder)
    notes = _doubts(folder)
    return Source(place, "transformers", family, config, stored, stored.parameters(), notes)


def _timm_settings(folder: Path) -> tuple[str | None, int | None]:
    """What timm's config.json calls the model, such as vit_base_patch16_dinov3.lvd1689m, and how
    many heads of attention it says; None without.

    timm's other ConvNeXts have the tensors of DINOv3's: they are refused. Raises EncoderError.
    """
    path = folder / "config.json"
    value = read_json(path) if path.exists() else {}
    if not value.get("architecture"):
        return None, None
    settings = value.get("pretrained_cfg")
    tag = settings.get("tag") if isinstance(settings, dict) else None
    name = f"{value['architecture']}.{tag}" if tag else str(value["architecture"])
    if "dinov3" not in name and "eupe" not in name:
        msg = (
            f"{folder}: timm's {name}, expected one of timm's DINOv3 models. Give such as "
            "timm:vits16."
        )
        raise EncoderError(msg)
    arguments = value.get("model_args")
    heads = arguments.get("num_heads") if isinstance(arguments, dict) else None
    return name, heads if isinstance(heads, int) and heads > 0 else None


def _doubts(folder: Path) -> tuple[str, ...]:
    """What was not certain when Meta's file was imported: it is said at every use."""
    path = folder / IMPORT_FILE
    doubts = read_json(path).get("doubts") if path.exists() else None
    return tuple(map(str, doubts)) if isinstance(doubts, list) else ()


def load_model(source: Source, dtype: torch.dtype, spread: Spread | None = None) -> torch.nn.Module:
    """The model in `dtype`, frozen and in evaluation mode: on the CPU, or spread over devices.

    The weights are converted to `dtype` while they are read, one at a time. Raises EncoderError.
    """
    options: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are refused below, by name
    }
    if spread is not None:
        options |= _spread_options(spread)
    try:
        with _quiet():
            model, info = _from_pretrained(source, options)
    except Exception as error:  # safetensors, strict dataclasses, torch, accelerate: many kinds
        if "offload_folder" in options:
            shutil.rmtree(options["offload_folder"], ignore_errors=True)
        reason = str(error).strip().split("\n")[0]
        msg = (
            f"{source.place}: the checkpoint can not be loaded ({type(error).__name__}: {reason}). "
            f"{_WITH_SPREAD if spread is not None else _WITHOUT_SPREAD}"
        )
        raise EncoderError(msg) from error
    _refuse_partial_weights(source, info)
    if "offload_folder" in options:
        _remove_with(model, options["offload_folder"])
    frozen: torch.nn.Module = model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own
    return frozen


def _from_pretrained(source: Source, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """transformers' own loader, on the folder or on the tensors that were renamed."""
    family = source.family
    options = {**family.model_options, **options}
    if source.format == "transformers" and _has_standard_names(source.place):
        found: tuple[Any, dict[str, Any]] = family.model_class().from_pretrained(
            str(source.place), use_safetensors=True, local_files_only=True, **options
        )
        return found
    config = family.config_class()(**_without_type(source.config))
    renamed: tuple[Any, dict[str, Any]] = family.model_class().from_pretrained(
        None, config=config, state_dict=dict(source.tensors), **options
    )
    return renamed


def _has_standard_names(place: Path) -> bool:
    """Whether transformers itself finds the weights in this folder."""
    names = ("model.safetensors", INDEX_FILE)
    return place.is_dir() and any((place / name).is_file() for name in names)


def _without_type(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in {"model_type", "auto_map"}}


def _spread_options(spread: Spread) -> dict[str, Any]:
    """Where device memory and CPU memory do not suffice, layers are read from disk at each pass."""
    options: dict[str, Any] = {
        "device_map": spread.device_map,
        "offload_folder": tempfile.mkdtemp(prefix="dinoprobe-offload-"),
    }
    if spread.max_memory is not None:
        options["max_memory"] = dict(spread.max_memory)
    return options


def _remove_with(model: torch.nn.Module, folder: str) -> None:
    weakref.finalize(model, partial(shutil.rmtree, folder, ignore_errors=True))


def _refuse_partial_weights(source: Source, info: dict[str, Any]) -> None:
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        found = sorted(map(str, info.get(what) or ()))
        if what == "unexpected_keys":
            prefix = source.family.prefix or ""
            found = [
                k for k in found if not k.removeprefix(prefix).startswith(source.family.ignored)
            ]
        if found:
            msg = (
                f"{source.place}: the weights do not fit config.json: {len(found)} "
                f"{what.replace('_', ' ')}, first {found[0]}. Fetch the checkpoint again."
            )
            raise EncoderError(msg)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' bars and load reports off the terminal: errors are raised instead."""
    from transformers.utils import logging as chatter

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    other = logging.getLogger("accelerate")
    other_level = other.level
    chatter.set_verbosity(logging.CRITICAL)
    chatter.disable_progress_bar()
    other.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        other.setLevel(other_level)
        if bars:
            chatter.enable_progress_bar()
