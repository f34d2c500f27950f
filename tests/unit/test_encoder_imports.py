"""The folders of imports: what is in them, all or nothing, and that they are found again."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests import layouts
from tests.checkpoints import PREPROCESSOR
from tests.layouts import Tensors, ViT
from tests.pth_files import CONVNEXT, SHAPE, left_over, meta, saved

from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.encoder import imports
from dinoprobe.encoder.formats import convert
from dinoprobe.encoder.imports import SourceFile, write_import
from dinoprobe.encoder.pth import find_import, import_folder, import_pth, imports_folder
from dinoprobe.errors import DinoprobeError, EncoderError, FormatError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- what is written ------------------------------------------------------------------------------


def test_an_import_has_everything_that_a_loader_needs(tmp_path: Path) -> None:
    path = saved(tmp_path, meta())
    said: list[str] = []
    imported = import_pth(path, say=said.append)
    digest = SourceFile.read(path).sha256
    assert imported.slug == f"dinov3-vit32x2-{digest[:8]}"
    assert imported.folder == imports_folder() / imported.slug
    assert (imported.checkpoint, imported.already) == (None, False)
    assert any(str(path) in sentence for sentence in said)
    names = ["config.json", "import.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(os.listdir(imported.folder)) == names
    config = json.loads((imported.folder / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"]) == ("dinov3_vit", 32)
    record = json.loads((imported.folder / "import.json").read_text())
    assert record["schema"] == "dinoprobe.import/1"
    assert record["source"]["name"] == "weights.pth"
    assert record["source"]["size_bytes"] == path.stat().st_size
    assert record["source"]["sha256"] == digest
    assert record["notes"] == list(imported.notes)
    assert record["checkpoint"] is None
    assert record["dinoprobe_version"]


def test_a_convnext_is_named_by_width_and_depth(tmp_path: Path) -> None:
    imported = import_pth(saved(tmp_path, layouts.meta_convnext(CONVNEXT)))
    assert imported.slug.startswith("dinov3-convnext20x4-")


def test_timms_files_are_read_too(tmp_path: Path) -> None:
    shape = ViT(width=192, depth=1, heads=3, inner=64)
    imported = import_pth(saved(tmp_path, layouts.timm_vit(shape), "pytorch_model.bin"))
    assert imported.slug.startswith("dinov3-vit192x1-")


def test_a_published_checkpoint_goes_by_its_name(tmp_path: Path) -> None:
    """Of a file with the official name and other weights; --as gives the same."""
    tensors = layouts.meta_vit(layouts.VITS["vits16"])
    path = saved(tmp_path, tensors, str(CHECKPOINTS["vits16"].meta_file))
    imported = import_pth(path)
    assert imported.checkpoint == "vits16"
    assert imported.slug == f"vits16-{SourceFile.read(path).sha256[:8]}"
    assert any("its name says 08c60483" in note for note in imported.notes)
    assert import_pth(path, as_name="vits16").already
    with pytest.raises(FormatError, match="its shapes are those of vits16, and not of vitl16"):
        import_pth(path, as_name="vitl16")
    record = json.loads((imported.folder / "import.json").read_text())
    assert (record["checkpoint"], record["licence"]) == ("vits16", "dinov3-license")


def written(tmp_path: Path, checkpoint: str | None) -> Path:
    """A small model under the name of a published one."""
    path = saved(tmp_path, meta(), f"{checkpoint}.pth")
    folder = imports_folder() / f"{checkpoint}-00000000"
    entry = CHECKPOINTS[checkpoint] if checkpoint else None
    write_import(folder, SourceFile.read(path), convert(meta(), place="x"), entry, ())
    return folder


@pytest.mark.parametrize(
    ("checkpoint", "mean", "std"),
    [
        (None, PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]),
        ("vitl16", PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]),
        ("vitl16-sat493m", [0.430, 0.411, 0.296], [0.213, 0.156, 0.143]),
    ],
)
def test_the_statistics_are_those_of_the_training(
    checkpoint: str | None, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    folder = written(tmp_path, checkpoint)
    found = json.loads((folder / "preprocessor_config.json").read_text())
    size = {"size": {"height": 224, "width": 224}}
    assert found == {**PREPROCESSOR, **size, "image_mean": mean, "image_std": std}


def test_licences_beside_the_file_are_copied(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.md").write_text("terms")
    (tmp_path / "LICENSES").mkdir()
    folder = import_pth(saved(tmp_path, meta())).folder
    assert (folder / "LICENSE.md").read_text() == "terms"
    assert not (folder / "LICENSES").exists()


def test_large_models_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.dinov3_vit import DINOv3ViTModel

    monkeypatch.setattr(imports, "_SHARD_BYTES", 30_000)
    folder = import_pth(saved(tmp_path, meta())).folder
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 40_000 for shard in shards)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = convert(meta(), place="x").tensors
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    _, info = DINOv3ViTModel.from_pretrained(str(folder), output_loading_info=True)
    assert not any(info.values())


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        folder = import_pth(saved(tmp_path, meta())).folder
    finally:
        os.umask(old)
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_precision_of_the_file_stays(kind: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(kind) for name, tensor in meta().items()}
    folder = import_pth(saved(tmp_path, tensors)).folder
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {kind}


# --- all or nothing, and found again --------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_an_interrupted_import_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, tensors: Tensors) -> None:
        save_file({"half": torch.zeros(10)}, folder / "model.safetensors")
        raise error

    path = saved(tmp_path, meta())
    with monkeypatch.context() as patch:
        patch.setattr(imports, "_write_tensors", interrupted)
        with pytest.raises((KeyboardInterrupt, EncoderError)) as caught:
            import_pth(path)
    if isinstance(caught.value, DinoprobeError):
        assert "can not be written" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert left_over() == []
    assert find_import(path) is None
    assert not import_pth(path).already


def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, meta())
    real = imports._write_tensors

    def grows(folder: Path, tensors: Tensors) -> None:
        real(folder, tensors)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(imports, "_write_tensors", grows)
    with pytest.raises(EncoderError, match=r"weights\.pth: changed while it was read"):
        import_pth(path)
    assert left_over() == []


def test_a_second_import_is_already_there(tmp_path: Path) -> None:
    path = saved(tmp_path, meta())
    first = import_pth(path)
    before = (first.folder / "model.safetensors").stat().st_mtime_ns
    second = import_pth(path)
    assert second.already
    assert (second.slug, second.folder, second.notes) == (first.slug, first.folder, first.notes)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_process_that_was_faster_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes between the look into the cache and the rename."""
    path = saved(tmp_path, meta())
    elsewhere = tmp_path / "elsewhere"
    first = import_pth(path).folder
    first.rename(elsewhere)
    real = imports._write_tensors

    def slow(folder: Path, tensors: Tensors) -> None:
        real(folder, tensors)
        shutil.copytree(elsewhere, first)

    monkeypatch.setattr(imports, "_write_tensors", slow)
    assert not import_pth(path).already
    assert left_over() == [first.name]


@pytest.mark.parametrize("damage", ["import.json", "model.safetensors"])
def test_an_import_that_lost_a_file_is_made_anew(damage: str, tmp_path: Path) -> None:
    path = saved(tmp_path, meta())
    imported = import_pth(path)
    (imported.folder / damage).unlink()
    assert import_folder(imported.slug) is None
    assert find_import(path) is None
    again = import_pth(path)
    assert not again.already
    assert (again.folder / damage).is_file()
    assert left_over() == [imported.slug]


def test_an_import_is_found_by_place_by_content_and_by_slug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, meta())
    assert find_import(path) is None
    folder = import_pth(path).folder
    with monkeypatch.context() as patch:
        patch.setattr(imports, "sha256_file", pytest.fail)  # place, size and time suffice
        assert find_import(path) == folder
    moved = path.rename(tmp_path / "renamed.pth")
    assert find_import(moved) == folder
    assert import_folder(folder.name) == folder
    other = saved(tmp_path, layouts.meta_vit(SHAPE, seed=1), "another.pth")
    assert other.stat().st_size == moved.stat().st_size
    assert find_import(other) is None
    assert find_import(tmp_path / "gone.pth") is None


@pytest.mark.parametrize("slug", ["", ".", "..", "../x", "a/b", "/etc", "nothing-00000000"])
def test_a_slug_names_a_folder_of_the_cache_and_no_other(slug: str, tmp_path: Path) -> None:
    import_pth(saved(tmp_path, meta()))
    assert import_folder(slug) is None


def test_of_two_names_for_one_file_the_last_counts(tmp_path: Path) -> None:
    """After --as vitl16-sat493m the file's own path means the satellite weights."""
    path = saved(tmp_path, meta())
    source = SourceFile.read(path)
    converted = convert(meta(), place="x")
    for name in ("vitl16-sat493m", "vitl16"):
        write_import(imports_folder() / f"{name}-0", source, converted, CHECKPOINTS[name], ())
    for number, name in enumerate(("vitl16", "vitl16-sat493m")):
        folder = imports_folder() / f"{name}-0"
        os.utime(folder / "import.json", ns=(number + 1, number + 1))
    assert find_import(path) == imports_folder() / "vitl16-sat493m-0"
    imports.touch(imports_folder() / "vitl16-0")
    assert find_import(path) == imports_folder() / "vitl16-0"


def test_what_a_killed_import_left_goes_after_a_day(tmp_path: Path) -> None:
    old, new = imports_folder() / ".staging-old", imports_folder() / ".staging-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    import_pth(saved(tmp_path, meta()))
    assert not old.exists()
    assert new.exists()


def test_strangers_in_the_cache_do_no_harm(tmp_path: Path) -> None:
    path = saved(tmp_path, meta())
    folder = import_pth(path).folder
    (imports_folder() / "file").write_text("x")
    for name, content in {"a": "", "b": "[]", "c": "{}", "d": '{"source": {}}'}.items():
        (imports_folder() / name).mkdir()
        (imports_folder() / name / "import.json").write_text(content)
    assert find_import(path) == folder


def test_a_cache_that_can_not_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        EncoderError, match=r"can not be written \(Not a directory\).*DINOPROBE_CACHE"
    ):
        import_pth(saved(tmp_path, meta()))


def test_views_of_one_memory_are_written_apart(tmp_path: Path) -> None:
    """Queries, keys and values are parts of one tensor in the file."""
    folder = import_pth(saved(tmp_path, meta())).folder
    converted = convert(meta(), place="x")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == converted.tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in converted.tensors.items())
