"""What surrounds the weights: libraries, device, disk, caches. Nothing here loads a model."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dinoprobe.encoder.placement import choose_device, choose_dtype, free_bytes, gigabytes
from dinoprobe.files import sha256_file
from dinoprobe.versions import versions

if TYPE_CHECKING:
    import torch

_SHA256 = re.compile(r"[0-9a-f]{64}")
State = Literal["ok", "note", "failed", "unverified"]
# The floors of pyproject.toml whose reason is security: CVE-2026-24747 (torch), CVE-2026-5241
# (transformers, above 5.2), the JPEG overflow fixed in Pillow 13.
_FLOORS = {"torch": (2, 10), "transformers": (5, 3), "pillow": (13, 0)}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `unverified` says that it could not be, and why."""

    name: str
    state: State
    text: str


def check_versions() -> Check:
    """The versions that decide, against the oldest that are safe."""
    found = versions()
    shown = ", ".join(
        f"{name} {found[name]}" for name in ("python", "torch", "transformers", "pillow")
    )
    old = [name for name, floor in _FLOORS.items() if _numbers(found[name]) < floor]
    if old:
        wanted = ", ".join(f"{n} {'.'.join(map(str, _FLOORS[n]))} or newer" for n in old)
        return Check(
            "versions", "failed", f"{shown}; expected {wanted}. Run pip install -U dinoprobe"
        )
    return Check("versions", "ok", shown)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+", maxsplit=1)[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def check_device(device: str, dtype: str) -> tuple[Check, torch.device, str]:
    """The device that `auto` means here and its free memory; also that device and precision."""
    import torch

    chosen = choose_device(device)
    precision = str(choose_dtype(dtype, chosen)).removeprefix("torch.")
    name = f" ({torch.cuda.get_device_name(chosen)})" if chosen.type == "cuda" else ""
    free = free_bytes(chosen)
    memory = f", {gigabytes(free)} free" if free is not None else ""
    count = torch.cuda.device_count()
    others = f"; {count} CUDA devices in all" if count > 1 else ""
    text = f"{chosen}{name}{memory}, {precision}{others}"
    return Check("device", "ok", text), chosen, precision


def check_disk(hub_cache: Path, features: str) -> list[Check]:
    """Where weights and features are kept, and how much room is there."""
    found = [_room("weights cache", hub_cache, "HF_HOME")]
    if "://" not in features:
        found.append(_room("features cache", Path(features), "DINOPROBE_CACHE"))
    return found


def _room(name: str, folder: Path, variable: str) -> Check:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = gigabytes(shutil.disk_usage(existing).free)
    text = f"{folder}, {free} free"
    if not os.access(existing, os.W_OK):
        return Check(name, "note", f"{text}; not writable. Set {variable} to a place that is.")
    return Check(name, "ok", text)


def check_checksums(snapshot: Path) -> Check:
    """The weights of a snapshot in the hub's cache against the SHA-256 that they were published
    with.

    The cache names a large file by its digest and links to it; where links are not supported, the
    file is a copy and there is nothing to compare with.
    """
    wrong, checked = [], 0
    for path in sorted(snapshot.glob("*.safetensors")):
        expected = _published_digest(path)
        if not _SHA256.fullmatch(expected):
            continue
        checked += 1
        if sha256_file(path) != expected:
            wrong.append(path.name)
    if wrong:
        text = (
            f"{', '.join(wrong)} differs from what was published: damaged or changed on this disk. "
            f"Remove {snapshot.parent.parent} and fetch it again"
        )
        return Check("checksum", "failed", text)
    if not checked:
        return Check("checksum", "unverified", "the cache holds copies without their digest")
    files = "1 file" if checked == 1 else f"{checked} files"
    return Check("checksum", "ok", f"SHA-256 of {files} as published")


def _published_digest(path: Path) -> str:
    """The name of the blob that this file of a snapshot is a link to.

    The blob may be a link itself: huggingface_hub 2 keeps what Xet brought in one store for all
    repositories, under names of another kind that look like a SHA-256.
    """
    return path.readlink().name if path.is_symlink() else path.name
