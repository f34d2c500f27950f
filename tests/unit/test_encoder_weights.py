"""Tensors over files, and the digest that does not depend on how they were written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from dinoprobe.encoder.weights import INDEX_FILE, StoredTensors, weight_files, weights_digest
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
    "embeddings.mask_token": torch.zeros(1, 1, 3),
}


def plain(name: str) -> str:
    return name


def write_shards(folder: Path, *names: str) -> Path:
    """One shard per name of TENSORS, with an index."""
    places = {}
    for number, name in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        save_file({name: TENSORS[name]}, folder / file)
        places[name] = file
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_tensors_come_from_their_files(tmp_path: Path) -> None:
    tensors = StoredTensors(weight_files(write_shards(tmp_path, *TENSORS)))
    assert sorted(tensors) == sorted(TENSORS)
    assert len(tensors) == 3
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert tensors.shape("a.weight") == (2, 3)
    assert tensors.parameters() == 6 + 4 + 3


def test_the_digest_is_that_of_the_values_and_not_of_the_files(tmp_path: Path) -> None:
    shards = StoredTensors(weight_files(write_shards(tmp_path, *TENSORS)))
    assert weights_digest(shards, plain) == weights_digest(TENSORS, plain)
    renamed = {f"old.{name}": tensor for name, tensor in TENSORS.items()}
    assert weights_digest(renamed, lambda name: name[4:]) == weights_digest(TENSORS, plain)


@pytest.mark.parametrize(
    "change",
    [
        {"a.weight": torch.arange(6.0).view(3, 2)},
        {"a.weight": torch.arange(1.0, 7.0).view(2, 3)},
        {"a.weight": torch.arange(6, dtype=torch.float64).view(2, 3)},
        {"c.weight": torch.zeros(1)},
    ],
)
def test_the_digest_sees_shape_value_type_and_name(change: dict[str, torch.Tensor]) -> None:
    assert weights_digest({**TENSORS, **change}, plain) != weights_digest(TENSORS, plain)


def test_the_digest_leaves_out_what_no_pass_reads() -> None:
    other = {**TENSORS, "embeddings.mask_token": torch.ones(1, 1, 3)}
    assert weights_digest(other, plain) == weights_digest(TENSORS, plain)


def test_a_view_and_a_copy_have_one_digest() -> None:
    turned = {"w": torch.arange(6.0).view(2, 3).t()}
    assert weights_digest(turned, plain) == weights_digest({"w": turned["w"].contiguous()}, plain)


def test_the_index_decides_and_strays_are_not_read(tmp_path: Path) -> None:
    write_shards(tmp_path, "a.weight", "b.weight")
    save_file({"stray": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    assert "stray" not in StoredTensors(weight_files(tmp_path))


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    """What is hashed must be what is loaded: with both there, transformers takes the one file."""
    write_shards(tmp_path, "a.weight", "b.weight")
    save_file({"a.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "a.weight", "b.weight")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"1 of 2 shards are missing, first model-00002"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", ".hidden"])
def test_an_index_may_only_name_its_neighbours(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FormatError, match="expected files beside it"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}'])
def test_an_index_without_a_map_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(FormatError, match="no weight_map"):
        weight_files(tmp_path)


def test_one_name_in_two_files_is_an_error(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(EncoderError, match=r"a\.weight stands in one\.safetensors too"):
        StoredTensors(weight_files(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"<html>"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=r"model\.safetensors: the checkpoint can not be loaded"):
        StoredTensors([path])


def test_a_pth_beside_nothing_gets_the_command_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"dinoprobe pull weights\.pth"):
        weight_files(tmp_path)
