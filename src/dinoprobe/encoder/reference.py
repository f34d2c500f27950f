"""From the name that a user gives to the place of the weights, and to what identifies them for
good.

    builtin                     inside the package
    vits16, dinov3/vits16       a published checkpoint on the hub, by its short name
    owner/name, name@revision   any repository of the hub, at a commit, a tag or a branch
    timm:NAME                   timm's copy of a checkpoint, by timm's name or by the short one
    imported:vits16-08c60483    a file of Meta's that `dinoprobe pull FILE.pth` has read
    a path                      a folder, a .safetensors file, or a .pth file that was imported

`resolve` never touches the network, `locate` does.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dinoprobe.catalog import BUILTIN_NAMES, CHECKPOINTS, HUB_IDS, by_hub_id, nearest_names
from dinoprobe.encoder.hub import download
from dinoprobe.encoder.pth import find_import, import_folder
from dinoprobe.errors import EncoderNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.catalog import Checkpoint
    from dinoprobe.encoder.hub import Transfer

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_TIMM, _IMPORTED = "timm:", "imported:"
PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt"})

Kind = Literal["builtin", "folder", "file", "hub", "imported"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a name points, before anything is fetched. `hub_id` is there for kind `hub` only."""

    kind: Kind
    name: str
    hub_id: str | None = None
    revision: str | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class EncoderReference:
    """`name` loads it again, `commit` pins it on the hub, `folder` holds it now.

    `file` is the one file with the weights where the folder holds others too.
    """

    name: str
    commit: str | None
    folder: Path
    file: Path | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The published checkpoint that this is a copy of, as far as its name tells."""
        if self.name.startswith(_IMPORTED):
            return CHECKPOINTS.get(self.name.removeprefix(_IMPORTED).rpartition("-")[0])
        return by_hub_id(self.name)

    @property
    def is_satellite(self) -> bool:
        """Whether it was trained with the SAT-493M statistics, by its name or its folder's."""
        if self.checkpoint is not None:
            return self.checkpoint.weights == "sat493m"
        parts = [self.folder.name, *(self.folder.parts[-3:-1] if _in_hub_cache(self) else ())]
        return any(
            "sat493m" in part.lower() for part in [*parts, self.file.name if self.file else ""]
        )


def _in_hub_cache(reference: EncoderReference) -> bool:
    return reference.folder.parent.name == "snapshots"


def resolve(name: str | os.PathLike[str]) -> Address:
    """Where this name points. Raises EncoderNotFoundError for a name that means nothing."""
    name = os.fspath(name)
    if name in BUILTIN_NAMES:
        return Address("builtin", name, path=builtin_folder(name))
    plain, _, revision = name.partition("@")
    short = plain.lower().removeprefix("dinov3/")
    if short in HUB_IDS:
        return Address("hub", HUB_IDS[short], HUB_IDS[short], revision or None)
    if plain.startswith(_TIMM):
        hub_id = _timm_id(plain.removeprefix(_TIMM), name)
        return Address("hub", hub_id, hub_id, revision or None)
    if name.startswith(_IMPORTED):
        return _imported(name)
    path = _path(name)
    if name and path.exists():
        place = Path(os.path.abspath(path))  # noqa: PTH100 - links stay: what is beside counts
        return Address("folder" if place.is_dir() else "file", str(place), path=place)
    is_file = Path(name).suffix.lower() in {*PICKLES, ".safetensors"}
    if not _HUB_ID.match(plain) or name.startswith((".", "/", "~")) or is_file:
        raise EncoderNotFoundError(_not_found(name))
    return Address("hub", plain, plain, revision or None)


def locate(
    name: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = lambda _: None,
    transfer: Transfer | None = None,
) -> EncoderReference:
    """The folder with the weights that this name means; downloads them when they are on the hub.

    `say` gets sentences for the user, `transfer` the bytes of a download. Raises
    EncoderNotFoundError for a name that means nothing, AccessError where the weights can not be
    had.
    """
    address = resolve(name)
    if address.kind == "hub" and address.hub_id is not None:
        folder, commit = download(address.hub_id, address.revision, progress=transfer, say=say)
        return EncoderReference(address.hub_id, commit, folder)
    path = address.path or Path(address.name)
    if address.kind != "file":
        return EncoderReference(address.name, None, path)
    if path.suffix == ".safetensors":
        return EncoderReference(address.name, None, path.parent, path)
    return _file(os.fspath(name), path)


def _file(name: str, path: Path) -> EncoderReference:
    if path.suffix.lower() not in PICKLES:
        msg = (
            f"{name}: a file that is neither .safetensors nor .pth. Expected a folder in the "
            "transformers format (config.json beside model.safetensors), or one of these files."
        )
        raise EncoderNotFoundError(msg)
    folder = find_import(path)
    if folder is None:
        msg = (
            f"{name}: a file, where a folder or .safetensors was expected; a {path.suffix} file "
            "can "
            "run code when read, so it is read once, safely, by an explicit step. "
            f"Run: dinoprobe pull {shlex.quote(name)}"
        )
        raise EncoderNotFoundError(msg)
    return EncoderReference(_IMPORTED + folder.name, None, folder)


def _imported(name: str) -> Address:
    folder = import_folder(name.removeprefix(_IMPORTED))
    if folder is None:
        msg = (
            f"{name}: no file was imported under this name here. Expected one that "
            "`dinoprobe pull FILE.pth` has printed. Run that with the same file."
        )
        raise EncoderNotFoundError(msg)
    return Address("imported", name, path=folder)


def _timm_id(name: str, given: str) -> str:
    checkpoint = CHECKPOINTS.get(name.lower())
    if checkpoint is not None and not checkpoint.timm:
        msg = f"{given}: timm holds no copy of {checkpoint.name}. Use --encoder {checkpoint.name}."
        raise EncoderNotFoundError(msg)
    timm_name = checkpoint.timm[0] if checkpoint is not None else name.removeprefix("timm/")
    hub_id = f"timm/{timm_name}"
    if not _HUB_ID.match(hub_id):
        example = "timm:vit_base_patch16_dinov3.lvd1689m"
        msg = f"{given}: not a name of timm's. Expected such as {example}."
        raise EncoderNotFoundError(msg)
    return hub_id


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~nobody"
        return Path(name)


def builtin_folder(name: str) -> Path:
    """The folder inside the installed package."""
    return Path(__file__).with_name("builtin") / name


def _not_found(name: str) -> str:
    near = nearest_names(name)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(HUB_IDS)}."
    return (
        f"'{name}' is not an encoder: no such short name, file, folder or hub id (owner/name). "
        f"{hint} "
        "'builtin' needs no download and is for demos and tests only."
    )
