"""What each form of a name means, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoints import save_vit

from dinoprobe.encoder.reference import EncoderReference, locate, resolve
from dinoprobe.errors import EncoderNotFoundError

S16 = "facebook/dinov3-vits16-pretrain-lvd1689m"


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("vits16", S16, None),
        ("VITS16", S16, None),
        ("vits16@v1.0", S16, "v1.0"),
        ("dinov3/vits16", S16, None),
        (S16, S16, None),
        (f"{S16}@abc123", S16, "abc123"),
        ("vitl16-sat493m", "facebook/dinov3-vitl16-pretrain-sat493m", None),
        ("convnext-tiny", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m", None),
        ("dinov2-small", "facebook/dinov2-small", None),
        ("dinov2-base-reg", "facebook/dinov2-with-registers-base", None),
        ("timm:vits16", "timm/vit_small_patch16_dinov3_qkvb.lvd1689m", None),
        ("timm:vit7b16", "timm/vit_7b_patch16_dinov3.lvd1689m", None),
        ("timm:convnext-base@main", "timm/convnext_base.dinov3_lvd1689m", "main"),
        (
            "timm:vit_base_patch16_dinov3.lvd1689m",
            "timm/vit_base_patch16_dinov3.lvd1689m",
            None,
        ),
        ("timm:timm/convnext_tiny.dinov3_lvd1689m", "timm/convnext_tiny.dinov3_lvd1689m", None),
        ("someone/finetuned-dino@main", "someone/finetuned-dino", "main"),
    ],
)
def test_names_of_the_hub(name: str, hub_id: str, revision: str | None) -> None:
    address = resolve(name)
    assert (address.kind, address.hub_id, address.revision) == ("hub", hub_id, revision)


def test_places_on_disk(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "weights")
    assert resolve(str(folder)).kind == "folder"
    assert resolve(str(folder / "model.safetensors")).kind == "file"
    assert resolve("builtin").kind == "builtin"


def test_a_path_is_a_name_too(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "weights")
    assert resolve(folder).kind == "folder"
    assert locate(folder).folder == folder


def test_a_folder_that_is_named_as_a_checkpoint_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vits16").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("vits16").kind == "hub"
    assert resolve("./vits16").kind == "folder"


@pytest.mark.parametrize("old_names", [False, True])
def test_a_file_with_its_config_beside_it_is_loaded_alone(tmp_path: Path, old_names: bool) -> None:
    from safetensors.torch import load_file, save_file

    from dinoprobe.encoder import Encoder

    folder = save_vit(tmp_path)
    if old_names:
        path = folder / "model.safetensors"
        renamed = {k.removeprefix("model."): v for k, v in load_file(path).items()}
        save_file(renamed, path, metadata={"format": "pt"})
    whole = Encoder.from_pretrained(str(folder), device="cpu")
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    (folder / "other.safetensors").write_bytes(b"something else")
    alone = Encoder.from_pretrained(str(folder / "mine.safetensors"), device="cpu")
    assert alone.weights_digest == whole.weights_digest
    assert alone.fingerprint == whole.fingerprint


def test_a_link_into_the_hubs_cache_is_what_it_is_called(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "sat493m-weights")
    blob = (folder / "model.safetensors").rename(tmp_path / ("0" * 64))
    (folder / "model.safetensors").symlink_to(blob)
    found = locate(str(folder / "model.safetensors"))
    assert (found.folder, found.file) == (folder, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "'' is not an encoder"),
        ("weights/missing.pth", "no such short name, file, folder"),
        ("weights/missing.safetensors", "no such short name, file, folder"),
        ("vitz16", "Did you mean vits16"),
        ("./nowhere", "no such short name, file, folder"),
        ("/no/where", "no such short name, file, folder"),
        ("timm:dinov2-small", "timm holds no copy of dinov2-small. Use --encoder dinov2-small"),
        ("timm:", "not a name of timm's"),
        ("timm:a b", "not a name of timm's"),
        ("imported:vits16-00000000", "no file was imported under this name here"),
    ],
)
def test_names_that_mean_nothing(name: str, says: str) -> None:
    with pytest.raises(EncoderNotFoundError) as caught:
        resolve(name)
    assert says in str(caught.value)


def test_a_pth_gets_the_command_that_imports_it(tmp_path: Path) -> None:
    path = tmp_path / "dinov3.pth"
    path.write_bytes(b"x")
    with pytest.raises(EncoderNotFoundError, match=r"Run: dinoprobe pull .*dinov3\.pth"):
        locate(str(path))


def test_a_file_of_another_kind_says_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"x")
    with pytest.raises(EncoderNotFoundError, match=r"neither \.safetensors nor \.pth"):
        locate(str(path))


@pytest.mark.parametrize(
    ("name", "folder", "satellite"),
    [
        ("facebook/dinov3-vitl16-pretrain-sat493m", "x", True),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", "x", False),
        ("timm/vit_large_patch16_dinov3_qkvb.sat493m", "x", True),
        ("imported:vitl16-sat493m-eadcf0ff", "x", True),
        ("imported:vitl16-8aa4cbdd", "x", False),
        ("/mine", "dinov3-vitl16-pretrain-sat493m", True),
        ("/mine", "models--facebook--dinov3-vitl16-pretrain-sat493m/snapshots/0123", True),
        ("/mine", "sat493m-photos/weights", False),
    ],
)
def test_satellite_weights_are_known_by_name(name: str, folder: str, satellite: bool) -> None:
    assert EncoderReference(name, None, Path("/w", folder)).is_satellite is satellite
