"""From the name that a user gives to a folder with weights, and to what identifies them for good.

Three sources: `builtin` (inside the package), a folder, a hub id with an optional `@revision`. All
end as one folder in the transformers format, so that there is one way to load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dinoprobe.catalog import BUILTIN_NAMES, HUB_IDS, nearest_names
from dinoprobe.encoder.hub import download
from dinoprobe.errors import EncoderNotFoundError

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True, slots=True)
class EncoderReference:
    """`name` loads it again, `commit` pins it on the hub, `folder` holds it now."""

    name: str
    commit: str | None
    folder: Path


def locate(name: str) -> EncoderReference:
    """The folder with the weights that this name means; downloads them when they are on the hub.

    Raises EncoderNotFoundError for a name that means nothing, AccessError for gated weights.
    """
    if name in BUILTIN_NAMES:
        return EncoderReference(name, None, builtin_folder(name))
    path = _path(name)
    if path.is_dir() and name.lower() not in HUB_IDS:
        return EncoderReference(str(path.resolve()), None, path.resolve())
    plain, _, revision = name.partition("@")
    hub_id = HUB_IDS.get(plain.lower(), plain)
    is_path = (path.exists() and plain == hub_id) or name.startswith((".", "/", "~"))
    if not _HUB_ID.match(hub_id) or is_path:
        raise EncoderNotFoundError(_not_found(name, path))
    folder, commit = download(hub_id, revision or None)
    return EncoderReference(hub_id, commit, folder)


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~nobody"
        return Path(name)


def builtin_folder(name: str) -> Path:
    """The folder inside the installed package."""
    return Path(__file__).with_name("builtin") / name


def _not_found(name: str, path: Path) -> str:
    if path.is_file():
        return (
            f"{name}: a file, where a folder in the transformers format was expected "
            "(config.json beside model.safetensors). Give the folder."
        )
    near = nearest_names(name)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(HUB_IDS)}."
    return (
        f"'{name}' is not an encoder: no such short name, folder or hub id (owner/name). {hint} "
        "'builtin' needs no download and is for demos and tests only."
    )
