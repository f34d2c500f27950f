"""Meta's .pth files, read once and written as safetensors in the user's cache.

The one place in this package that opens a pickle: `torch.load(weights_only=True)` of torch 2.10 or
newer (CVE-2025-32434 and CVE-2026-24747 are in older ones), and no other way, whatever fails. Only
torch's zip format is read, by mapping it, so 27 GB take no memory. What comes out is checked name
by name and shape by shape; from then on only the safetensors are read.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dinoprobe.encoder.formats import convert
from dinoprobe.encoder.identity import check_name, description, identify
from dinoprobe.encoder.imports import (
    SourceFile,
    find_import,
    import_folder,
    imports_folder,
    touch,
    write_import,
)
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

__all__ = ["Imported", "find_import", "import_folder", "import_pth", "imports_folder"]

_MINIMUM_TORCH = (2, 10)
_NESTED = ("teacher", "model", "state_dict")
_MAXIMUM_NESTING = 3
_PREFIXES = ("module.", "backbone.")
_FETCH = "Fetch it again from where it came."
_UNSAFE = re.compile(r"GLOBAL (\S+)")
_ZIP = b"PK\x03\x04"
_NOT_TORCH = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file that it points to"),
    (b"<", "a web page, perhaps the error page of a link that has expired"),
    (b"{", "a JSON document, perhaps an error message of a server"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
)


@dataclass(frozen=True, slots=True)
class Imported:
    """A file of Meta's in the cache. `slug` names it (`--encoder imported:SLUG`), `folder` holds it
    in the transformers format, `checkpoint` is the published name or None. `already` says that it
    was there before and nothing was written.
    """

    slug: str
    folder: Path
    checkpoint: str | None
    notes: tuple[str, ...]
    already: bool


def import_pth(
    path: Path, *, as_name: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Imported:
    """Read a .pth file of Meta's, check it, and write it as safetensors into the cache.

    `as_name` says which published checkpoint it is, where neither its digest nor its name tell.
    `say` gets sentences on the way. Raises EncoderError for a file that can not be opened safely,
    FormatError for tensors that make no DINOv3, or not the one that `as_name` names.
    """
    check_name(as_name)
    try:
        _refuse_foreign(path)
        say(f"{path}: computing its SHA-256")
        source = SourceFile.read(path)
    except OSError as error:
        msg = f"{path}: can not be read ({error.strerror or error}). Give a .pth file of Meta's."
        raise EncoderError(msg) from error
    say(f"{path}: reading tensors, and nothing but tensors")
    tensors, left_out = _read(path)
    converted = convert(tensors, place=str(path))
    checkpoint, unsure = identify(path.name, source.sha256, converted.config, as_name)
    name = checkpoint.name if checkpoint else None
    slug = f"{name or description(converted.config)}-{source.sha256[:8]}"
    notes = (*left_out, *converted.notes, *unsure)
    folder = imports_folder() / slug
    already = import_folder(slug) is not None
    if already:
        touch(folder)
    else:
        say(f"{path}: writing {len(converted.tensors)} tensors to {folder}")
        write_import(folder, source, converted, checkpoint, notes, unsure)
    return Imported(slug, folder, name, notes, already)


# --- before anything is unpickled -----------------------------------------------------------------


def _refuse_foreign(path: Path) -> None:
    """Raise EncoderError for what is no archive of torch's, such as a failed download."""
    with path.open("rb") as file:
        head = file.read(512)
    what = _describe_foreign(head)
    if what is None:
        what = _describe_archive(path)
    if what is not None:
        raise EncoderError(f"{path}: {what}. Expected a .pth file as Meta publishes it. {_FETCH}")


def _describe_foreign(head: bytes) -> str | None:
    if head.startswith(_ZIP):
        return None
    if not head.strip(b"\0"):
        return "an empty file" if not head else "nothing but zeros"
    if head[8:9] == b"{":
        return "a safetensors file under another name; give it the ending .safetensors"
    start = head.lstrip().lower()
    found = next((what for mark, what in _NOT_TORCH if start.startswith(mark)), None)
    old = head.startswith(b"\x80") or head[257:262] == b"ustar"
    return found or (
        "in torch's format from before 1.6 (or a plain pickle), which is not read"
        if old
        else "not a file that torch has written"
    )


def _describe_archive(path: Path) -> str | None:
    """What is wrong with a zip; torch maps its members as they are, whatever the directory says."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return "truncated or damaged: a zip archive without a readable directory"
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        return "a TorchScript archive, which holds code; it is not read"
    if "data.pkl" not in names:
        return "a zip archive that torch has not written; unpack it, if the file is inside"
    if any(member.flag_bits & 1 for member in members):
        return "encrypted"
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return "packed again with compression"
    return None


# --- reading --------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The state dict, its tensors mapped and not yet read; and what was left out."""
    import torch

    _refuse_old_torch(torch.__version__)
    try:
        with warnings.catch_warnings(action="ignore"):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - pickle, zip, torch and the system: each its own
        _explain(path, error)
    state, notes = _unwrapped(path, value)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        plain = _without_prefixes(_checked(path, name, tensor))
        if plain in tensors:
            msg = f"{path}: two tensors are {plain} without their prefixes. Save one model alone."
            raise FormatError(msg)
        tensors[plain] = tensor.detach()
    _refuse_inflated(path, tensors)
    return tensors, notes


def _refuse_old_torch(version: str) -> None:
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _MINIMUM_TORCH:
        msg = (
            f"torch is {version}; a .pth file is read with 2.10 or newer only, for older ones can "
            "be made to run its code. Run: pip install -U torch"
        )
        raise EncoderError(msg)


def _explain(path: Path, error: Exception) -> NoReturn:
    """Torch's own messages advise to load without the restriction; they are not passed on."""
    text = str(error)
    if unsafe := _UNSAFE.search(text):
        msg = (
            f"{path}: it asks for {unsafe[1]}, which is no tensor and could run code; nothing of "
            "it was run. Expected a dictionary of tensors alone, as Meta publishes. Do not open it "
            "by other means; if it is your own, save its weights alone, without settings."
        )
    else:
        advice = ("weights_only", "weights only")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        plain = next(
            (x for x in lines if not any(a in x.lower() for a in advice)), "no reason given"
        )
        msg = (
            f"{path}: not readable as a PyTorch file ({type(error).__name__}: {plain[:200]}). "
            f"Expected a whole .pth file as Meta publishes it. {_FETCH}"
        )
    raise EncoderError(msg) from error


def _unwrapped(path: Path, value: object) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """The names with their tensors, out of what a training run wraps around them."""
    notes: list[str] = []
    for _ in range(_MAXIMUM_NESTING):
        if not isinstance(value, dict):
            break
        key = next((key for key in _NESTED if isinstance(value.get(key), dict)), None)
        if key is None:
            break
        if others := sorted(str(other) for other in value if other != key):
            notes.append(f"{path}: read '{key}', left out {', '.join(others)[:200]}.")
        value = value[key]
    if not isinstance(value, dict) or not value:
        what = "nothing" if value == {} else f"a {type(value).__name__}"
        raise FormatError(f"{path}: holds {what}, expected tensors by name. {_FETCH}")
    return value, tuple(notes)


def _checked(path: Path, name: object, tensor: object) -> str:
    """The name, where it is one, and where the tensor holds plain numbers."""
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        msg = (
            f"{path}: {name!r} is a {type(tensor).__name__}, expected tensors by name and nothing "
            "else. Save the weights alone."
        )
        raise FormatError(msg)
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not plain or not tensor.is_floating_point():
        kind = f"{tensor.dtype} {tensor.layout} {tensor.device}".replace("torch.", "")
        msg = f"{path}: {name} is of {kind}, expected plain floats. Save it as dense float32."
        raise FormatError(msg)
    return name


def _without_prefixes(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _refuse_inflated(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors that repeat a few bytes (by strides of zero, or all the same) would fill a disk.

    Only ConvNeXt's second norm shares its bytes with the first.
    """
    sizes = [tensor.nbytes for name, tensor in tensors.items() if not name.startswith("norms.")]
    found, expected = sum(sizes), path.stat().st_size
    if found > expected:
        msg = (
            f"{path}: its tensors claim {found:,} bytes, expected at most the file's {expected:,}. "
            f"It may have been made to fill a disk. {_FETCH}"
        )
        raise FormatError(msg)
