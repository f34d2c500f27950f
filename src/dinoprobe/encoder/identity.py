"""Which published checkpoint a file of weights is: by its digest, by name, by shape.

Shapes can not tell the satellite weights from the others of their size, and the two want other
statistics; so whatever was not certain is said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dinoprobe.catalog import CHECKPOINTS, nearest_names
from dinoprobe.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dinoprobe.catalog import Checkpoint

_DIGITS = re.compile(r"-([0-9a-f]{8})\.\w+$")
_PUBLISHED = {name: entry for name, entry in CHECKPOINTS.items() if entry.meta_file}


def check_name(name: str | None) -> None:
    """Raise ConfigurationError for what Meta has published no file of."""
    if name is None or name in _PUBLISHED:
        return
    near = [found for found in nearest_names(name) if found in _PUBLISHED]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Use {', '.join(_PUBLISHED)}."
    raise ConfigurationError(f"'{name}' is not a checkpoint that Meta publishes as a file. {hint}")


def identify(
    file_name: str, sha256: str, config: Mapping[str, Any], as_name: str | None
) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The checkpoint, or None where the shapes are of no published one; and what to say of it.

    Meta's file names end in the first eight digits of the SHA-256 (torch.hub's convention). Raises
    FormatError where `as_name` contradicts the digest or the shapes.
    """
    fitting = [entry for entry in _PUBLISHED.values() if _fits(entry, config)]
    certain = next((e for e in fitting if e.meta_hash == sha256[:8]), None)
    if as_name is not None:
        told = _as_told(file_name, fitting, certain, as_name)
        return told, _digest_note(file_name, sha256)
    if certain is not None or not fitting:
        return certain, _digest_note(file_name, sha256)
    named = [e for e in _PUBLISHED.values() if _stem(e) in file_name.lower()]
    by_name = next((e for e in named if e in fitting), None)
    notes = _digest_note(file_name, sha256)
    if by_name is not None:
        return by_name, notes
    return fitting[0], (*notes, _shape_note(file_name, fitting, named))


def description(config: Mapping[str, Any]) -> str:
    """`dinov3-vit384x12`: a name by width and depth, for what is none of the published ones."""
    if config["model_type"] == "dinov3_convnext":
        return f"dinov3-convnext{config['hidden_sizes'][-1]}x{sum(config['depths'])}"
    return f"dinov3-vit{config['hidden_size']}x{config['num_hidden_layers']}"


def _as_told(
    file_name: str, fitting: list[Checkpoint], certain: Checkpoint | None, as_name: str
) -> Checkpoint:
    if certain is not None and certain.name != as_name:
        msg = (
            f"{file_name}: its SHA-256 begins with {certain.meta_hash}, which is {certain.name}, "
            f"and not {as_name}. Leave --as out."
        )
        raise FormatError(msg)
    told = next((entry for entry in fitting if entry.name == as_name), None)
    if told is None:
        names = " or ".join(entry.name for entry in fitting) or "no published checkpoint"
        msg = f"{file_name}: its shapes are those of {names}, and not of {as_name}. Leave --as out."
        raise FormatError(msg)
    return told


def _digest_note(file_name: str, sha256: str) -> tuple[str, ...]:
    digits = _DIGITS.search(file_name.lower())
    if digits is None or sha256.startswith(digits[1]):
        return ()
    note = (
        f"{file_name}: its SHA-256 begins with {sha256[:8]}, and its name says {digits[1]}: the "
        "file was changed, or damaged on its way. Fetch it again, unless that was you."
    )
    return (note,)


def _shape_note(file_name: str, fitting: list[Checkpoint], named: list[Checkpoint]) -> str:
    contradicted = f", against its name ({named[0].name})" if named else ""
    note = (
        f"{file_name}: taken for {fitting[0].name} by its shapes alone{contradicted}; neither its "
        "name nor its digest is that of a published file."
    )
    if len(fitting) == 1:
        return note
    other = fitting[1].name
    return f"{note} {other} has the same shapes: --as {other} says so, and changes the statistics."


def _fits(entry: Checkpoint, config: Mapping[str, Any]) -> bool:
    same = entry.model_type == config["model_type"]
    return same and all(config.get(key) == value for key, value in entry.config.items())


def _stem(entry: Checkpoint) -> str:
    """`dinov3_vits16_pretrain_lvd1689m`."""
    return str(entry.meta_file).rpartition("-")[0]
