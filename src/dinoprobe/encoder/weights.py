"""The tensors of a checkpoint, read one at a time, and the digest that names them.

The digest is taken over names, types, shapes and values, and not over files: the same weights in
one file or in shards, from the hub, from Meta's file or from timm's copy, are the same encoder, and
share their features. It runs at the speed of SHA-256, 1.8 GB/s.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, final

from dinoprobe import files
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
# Never read at inference (transformers, modeling_dinov3_vit.py: only with bool_masked_pos).
UNUSED_TENSORS = frozenset({"embeddings.mask_token"})


@final
class StoredTensors(Mapping[str, "torch.Tensor"]):
    """Name to tensor over one or several safetensors files; each is read when it is asked for.

    Raises EncoderError for a file that is damaged, and for a name that stands in two files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self._place: dict[str, int] = {}
        self._files = []
        self._paths = list(paths)
        for number, path in enumerate(paths):
            try:
                file = safe_open(path, framework="pt")
                names = list(file.keys())  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError) as error:
                _refuse_damaged(path, error)
            if twice := sorted(self._place.keys() & set(names)):
                other = paths[self._place[twice[0]]].name
                msg = (
                    f"{path}: tensor {twice[0]} stands in {other} too. Fetch the checkpoint again."
                )
                raise EncoderError(msg)
            self._files.append(file)
            self._place |= dict.fromkeys(names, number)

    def __getitem__(self, name: str) -> torch.Tensor:
        number = self._place[name]
        try:
            tensor: torch.Tensor = self._files[number].get_tensor(name)  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - safetensors has one class, torch several
            _refuse_damaged(self._paths[number], error)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the file's header alone."""
        file: Any = self._files[self._place[name]]
        return tuple(file.get_slice(name).get_shape())

    def parameters(self) -> int:
        """Numbers in all tensors, from the headers alone."""
        return sum(math.prod(self.shape(name)) for name in self)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, as transformers chooses them: model.safetensors, else the
    shards of its index, else all that there are.

    Raises EncoderError without any, or where one that the index names is missing.
    """
    single, index = folder / _SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(index)
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    others = sorted(p.name for p in folder.iterdir() if p.suffix in {".pth", ".bin", ".pt"})
    hint = f" ({', '.join(others)} can run code when read and is not opened)" if others else ""
    first = f" Meta's file is read once, by dinoprobe pull {others[0]}." if others else ""
    msg = (
        f"{folder}: no .safetensors file{hint}. A folder in the transformers format was expected: "
        "model.safetensors beside config.json."
    )
    raise EncoderError(msg + first)


def _shards(index: Path) -> list[Path]:
    value = files.read_json(index)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places:
        msg = f"{index}: no weight_map. Expected tensor names with their files. Fetch it again."
        raise FormatError(msg)
    names = sorted(set(map(str, places.values())))
    if unsafe := [name for name in names if "/" in name or "\\" in name or name.startswith(".")]:
        msg = f"{index}: names the file {unsafe[0]!r}; expected files beside it. Fetch it again."
        raise FormatError(msg)
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        msg = (
            f"{index.parent}: {len(missing)} of {len(names)} shards are missing, first "
            f"{missing[0]}. Fetch the checkpoint again: dinoprobe pull goes on where it stopped."
        )
        raise EncoderError(msg)
    return [index.parent / name for name in names]


def weights_digest(tensors: Mapping[str, torch.Tensor], rename: Callable[[str], str]) -> str:
    """SHA-256 in hex over the tensors in the order of their names, `rename` applied to each.

    Tensors that no forward pass reads are left out.
    """
    names = sorted((rename(name), name) for name in tensors)
    digest = hashlib.sha256()
    for name, stored in names:
        if name in UNUSED_TENSORS:
            continue
        tensor = tensors[stored]
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def _refuse_damaged(path: Path, error: Exception) -> NoReturn:
    reason = str(error).strip().split("\n")[0]
    msg = (
        f"{path}: the checkpoint can not be loaded ({type(error).__name__}: {reason}). "
        "Expected a whole safetensors file. Fetch the checkpoint again."
    )
    raise EncoderError(msg) from error
