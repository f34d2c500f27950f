"""Reading .pth files: attacks, failed downloads, archives, and contents that are no DINOv3."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import tarfile
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import layouts
from tests.layouts import ViT
from tests.pth_files import CONVNEXT, SHAPE, left_over, meta, saved

from dinoprobe.encoder.formats import convert
from dinoprobe.encoder.pth import import_pth
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- attacks --------------------------------------------------------------------------------------


class Attack:
    """What pickle would call to build it: make a folder, which is seen afterwards."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._marker,)


ATTACKS: dict[str, Callable[[Path], object]] = {
    "alone": Attack,
    "beside tensors": lambda marker: {**meta(), "extra": Attack(marker)},
    "nested": lambda marker: {"teacher": meta(), "args": Attack(marker)},
    "as a name": lambda marker: {**meta(), (Attack(marker),): torch.zeros(1)},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_would_run_code_runs_none(attack: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = saved(tmp_path, ATTACKS[attack](marker))
    with pytest.raises(EncoderError, match=r"it asks for posix\.mkdir|it asks for nt\.mkdir") as e:
        import_pth(path)
    assert not marker.exists()
    assert "weights_only" not in str(e.value)  # torch's own message advises to switch it off
    assert left_over() == []
    torch.load(path, weights_only=False)  # the attack is a real one
    assert marker.exists()


def test_no_environment_variable_lifts_the_restriction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = saved(tmp_path, Attack(tmp_path / "marker"))
    with pytest.raises(EncoderError, match="could run code; nothing of it was run"):
        import_pth(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_bare_pickle_is_not_opened(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Attack(tmp_path / "marker"), protocol=protocol))
    with pytest.raises(EncoderError, match=r"format from before 1\.6 \(or a plain pickle\)"):
        import_pth(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("value", [torch.nn.Linear(2, 2), {"args": argparse.Namespace(lr=1.0)}])
def test_settings_beside_weights_get_the_name_of_what_is_foreign(
    value: object, tmp_path: Path
) -> None:
    with pytest.raises(
        EncoderError, match=r"asks for (torch\.nn|argparse).*save its weights alone"
    ):
        import_pth(saved(tmp_path, value))


def test_tensors_that_repeat_a_few_bytes_can_not_fill_the_disk(tmp_path: Path) -> None:
    """A file of 20 kB that claims 60 MB, in shapes that fit each other."""
    wide = layouts.meta_vit(ViT(width=1024, depth=2, heads=2, inner=2048, patch=8))
    hollow = {name: torch.ones(1).expand(tensor.shape) for name, tensor in wide.items()}
    hollow["rope_embed.periods"] = wide["rope_embed.periods"]
    path = saved(tmp_path, hollow)
    assert path.stat().st_size < 50_000
    with pytest.raises(FormatError, match=r"its tensors claim [\d,]+ bytes, expected at most"):
        import_pth(path)
    one = torch.ones(96, 32)
    same = {f"blocks.{i}.attn.qkv.weight": one for i in range(1000)}
    with pytest.raises(FormatError, match="its tensors claim"):
        import_pth(saved(tmp_path, {**meta(), **same}))


def test_a_dictionary_inside_itself_comes_to_an_end(tmp_path: Path) -> None:
    value: dict[str, Any] = {}
    value["model"] = value
    with pytest.raises(FormatError, match="'model' is a dict, expected tensors by name"):
        import_pth(saved(tmp_path, value))


# --- no checkpoint at all -------------------------------------------------------------------------

FOREIGN = {
    b"": "an empty file",
    b"\0" * 4096: "nothing but zeros",
    b"<!DOCTYPE html><html><body>403 Forbidden</body></html>": "a web page",
    b"\n  <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "a web page",
    b'{"error": "expired"}': "a JSON document",
    b"Forbidden": "not a file that torch has written",
    b"PK\x03": "not a file that torch has written",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "a git-lfs pointer",
    gzip.compress(b"PK\x03\x04", mtime=0): "compressed with gzip",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": r"in torch's format from before 1\.6",
}


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: repr(content[:12]))
def test_what_a_failed_download_leaves_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    expected = (
        rf"^.*weights\.pth: {FOREIGN[content]}.*Expected a \.pth file as Meta.*Fetch it again"
    )
    with pytest.raises(EncoderError, match=expected):
        import_pth(path)
    assert left_over() == []


def test_safetensors_under_another_name_are_recognised(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(EncoderError, match=r"give it the ending \.safetensors"):
        import_pth(tmp_path / "weights.pth")


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"gone\.pth: can not be read \(No such file"):
        import_pth(tmp_path / "gone.pth")
    with pytest.raises(EncoderError, match="can not be read"):
        import_pth(tmp_path)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(part: float, tmp_path: Path) -> None:
    path = saved(tmp_path, meta())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(EncoderError, match=r"weights\.pth: truncated or damaged"):
        import_pth(path)


def rezipped(path: Path, **options: Any) -> Path:
    """The same members, written by Python."""
    content = path.read_bytes()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(path, "w", **options) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return path


def test_compressed_members_are_not_taken_for_weights(tmp_path: Path) -> None:
    """Torch maps a member as it lies there: compressed, it would give other numbers, silently."""
    path = rezipped(
        saved(tmp_path, layouts.meta_convnext(CONVNEXT)), compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(EncoderError, match="packed again with compression"):
        import_pth(path)


def encrypted(path: Path) -> Path:
    """The flag of encryption in every header."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(signature, place + 4)
    path.write_bytes(content)
    return path


def scripted(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path, path.name)
    path.with_suffix(".zip").rename(path)
    return path


def tarred(path: Path) -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        archive.add(path, path.name)
    path.with_suffix(".tar").rename(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (encrypted, "encrypted"),
        (scripted, "a TorchScript archive, which holds code"),
        (zipped, "a zip archive that torch has not written; unpack it"),
        (tarred, "in torch's format from before"),
    ],
)
def test_other_archives_are_named(
    change: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=message):
        import_pth(change(saved(tmp_path, meta())))


def test_a_damaged_pickle_in_a_whole_zip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00(garbage")
        archive.writestr("archive/version", "3\n")
    with pytest.raises(EncoderError, match="not readable as a PyTorch file") as caught:
        import_pth(path)
    assert "weights_only" not in str(caught.value)


def test_torch_before_2_10_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Attack(tmp_path / "marker"))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(torch, "load", pytest.fail)
    with pytest.raises(EncoderError, match=r"torch is 2\.9\.1\+cpu; .*2\.10 or newer only"):
        import_pth(path)


# --- a state dict that is none of DINOv3's --------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list, expected tensors by name"),
        ({}, "holds nothing, expected tensors by name"),
        ({"epoch": 3}, "'epoch' is a int, expected tensors by name"),
        ({1: torch.zeros(1)}, "1 is a Tensor, expected tensors by name"),
        ({**layouts.meta_vit(SHAPE), "norm.weight": torch.ones(32).to_sparse()}, "sparse_coo"),
        ({**layouts.meta_vit(SHAPE), "norm.weight": torch.ones(32, dtype=torch.int8)}, "int8"),
        ({**layouts.meta_vit(SHAPE), "norm.weight": torch.ones(32, device="meta")}, "meta"),
        ({**layouts.meta_vit(SHAPE), "module.cls_token": torch.zeros(1, 1, 32)}, "two tensors are"),
        ({**layouts.meta_vit(SHAPE), "head.x": torch.zeros(2, 3)}, r"head\.x \(2, 3\) is not part"),
        ({**layouts.meta_vit(SHAPE), "norm.weight": torch.ones(31)}, r"norm\.weight is \(31,\)"),
        ({"cls_token": torch.zeros(1, 1, 3), "pos_embed": torch.zeros(1, 5, 3)}, "in no layout"),
    ],
)  # fmt: skip
def test_other_contents_are_named(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        import_pth(saved(tmp_path, value))
    assert left_over() == []


def test_training_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    inside = {f"module.backbone.{name}": tensor for name, tensor in meta().items()}
    inside["module.dino_head.last_layer.weight"] = torch.zeros(3, 3)
    inside["module.ibot_head.last_layer.weight"] = torch.zeros(3, 3)
    value = {"model": {"teacher": inside}, "epoch": 3, "optimizer": {"state": {}}}
    imported = import_pth(saved(tmp_path, value))
    plain = convert(meta(), place="x")
    found = load_file(imported.folder / "model.safetensors")
    assert found.keys() == plain.tensors.keys()
    assert all(torch.equal(found[name], plain.tensors[name]) for name in found)
    notes = "\n".join(imported.notes)
    assert "read 'model', left out epoch, optimizer." in notes
    assert "left out 2 tensors: a head for training." in notes
