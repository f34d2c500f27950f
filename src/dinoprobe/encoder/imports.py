"""The folders of imported encoders: written once, all or nothing, and found again.

    encoders/vits16-08c60483/   config.json, preprocessor_config.json, safetensors, import.json,
                                LICENSE* as it lay beside the source

import.json says which file it came from, so that the same file is not read twice.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.catalog import IMAGENET_MEAN, IMAGENET_STD
from dinoprobe.encoder.weights import INDEX_FILE
from dinoprobe.errors import EncoderError, FormatError
from dinoprobe.files import (
    read_json,
    sha256_file,
    staged_folder,
    umask,
    user_cache,
    write_json,
)
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

    from dinoprobe.catalog import Checkpoint
    from dinoprobe.encoder.formats import Converted

SCHEMA = "dinoprobe.import/1"
IMPORT_FILE = "import.json"
_SHARD_BYTES = 5_000_000_000
_LICENCE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What identifies a source file."""

    path: Path
    size_bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def read(cls, path: Path) -> SourceFile:
        """Reads all of it, at 1.8 GiB/s. Raises OSError."""
        stat = path.stat()
        return cls(path.resolve(), stat.st_size, stat.st_mtime_ns, sha256_file(path))

    def is_unchanged(self) -> bool:
        """Whether size and time are still those of the moment when it was read."""
        stat = self.path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)


def imports_folder() -> Path:
    """Where imported encoders lie: `encoders` in the user's cache."""
    return user_cache() / "encoders"


def import_folder(slug: str) -> Path | None:
    """The folder of an earlier import by its slug, None where there is none that is whole."""
    folder = imports_folder() / slug
    plain = folder.parent == imports_folder() and folder.name == slug
    return folder if plain and _record(folder) is not None else None


def find_import(path: Path) -> Path | None:
    """The folder of an earlier import of this file: by place, size and time, else by its SHA-256.

    Where it was imported as two checkpoints, the last that was asked for.
    """
    try:
        stat = path.stat()
        place = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        entries = [(folder, record["source"]) for folder, record in _records()]
        for folder, source in entries:
            if [source.get(key) for key in ("path", "size_bytes", "mtime_ns")] == place:
                return folder
        alike = [entry for entry in entries if entry[1].get("size_bytes") == stat.st_size]
        digest = sha256_file(path) if alike else ""
    except OSError:
        return None
    return next((folder for folder, source in alike if source.get("sha256") == digest), None)


def touch(folder: Path) -> None:
    """Make this the import that `find_import` prefers."""
    with suppress(OSError):
        os.utime(folder / IMPORT_FILE)


def _records() -> list[tuple[Path, dict[str, Any]]]:
    """Each import that is whole, with what it says of itself, the last one first."""
    root = imports_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    found = [(folder, record) for folder in folders if (record := _record(folder)) is not None]
    return sorted(found, key=lambda entry: -(entry[0] / IMPORT_FILE).stat().st_mtime_ns)


def _record(folder: Path) -> dict[str, Any] | None:
    """import.json, where it can be read and every file that it names is there in its size."""
    try:
        value = read_json(folder / IMPORT_FILE)
        if not isinstance(value, dict) or not isinstance(value.get("source"), dict):
            return None
        files = value.get("files")
        if not isinstance(files, dict):
            return None
        whole = all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, FormatError):
        return None
    return value if whole else None


# --- writing --------------------------------------------------------------------------------------


def write_import(
    folder: Path,
    source: SourceFile,
    converted: Converted,
    checkpoint: Checkpoint | None,
    notes: tuple[str, ...],
    doubts: tuple[str, ...] = (),
) -> None:
    """All or nothing: written beside its place, synced, renamed. Raises EncoderError."""
    from safetensors import SafetensorError

    try:
        with staged_folder(folder, lambda place: _record(place) is not None) as staging:
            _write_tensors(staging, converted.tensors)
            write_json(staging / "config.json", converted.config)
            write_json(staging / "preprocessor_config.json", _preprocessor(checkpoint))
            _copy_licence(source.path.parent, staging)
            record = _describe(source, checkpoint, staging)
            record |= {"notes": list(notes), "doubts": list(doubts)}
            write_json(staging / IMPORT_FILE, record)
            if not source.is_unchanged():
                msg = (
                    f"{source.path}: changed while it was read. Wait until it is whole; try again."
                )
                raise EncoderError(msg)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"{folder}: can not be written ({reason}). Free some space, or set DINOPROBE_CACHE."
        raise EncoderError(msg) from error


def _write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file, or several of at most 5 GB with their index: memory stays bounded."""
    from safetensors.torch import save_file

    shards = list(_shards(tensors))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {key: tensors[key].detach().contiguous() for key in names}
        save_file(shard, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o666 & ~umask())
        places |= dict.fromkeys(names, name)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / INDEX_FILE, index)


def _shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _copy_licence(beside: Path, folder: Path) -> None:
    for licence in sorted(beside.glob("LICENSE*")):
        if licence.is_file() and licence.stat().st_size <= _LICENCE_BYTES:
            shutil.copyfile(licence, folder / licence.name)


def _preprocessor(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What DINOv3's processor does, with the statistics of these weights."""
    return {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(checkpoint.mean if checkpoint else IMAGENET_MEAN),
        "image_std": list(checkpoint.std if checkpoint else IMAGENET_STD),
    }


def _describe(source: SourceFile, checkpoint: Checkpoint | None, folder: Path) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": {
            "name": source.path.name,
            "path": str(source.path),
            "size_bytes": source.size_bytes,
            "mtime_ns": source.mtime_ns,
            "sha256": source.sha256,
        },
        "checkpoint": checkpoint.name if checkpoint else None,
        "licence": checkpoint.licence if checkpoint else None,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "dinoprobe_version": own_version(),
    }
