"""What the doctor says of weights that are whole, damaged, too large, or not the published ones."""

from __future__ import annotations

import http.server
import io
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.checkpoints import save_convnext, save_vit

from dinoprobe.catalog import GOLDEN, Golden
from dinoprobe.datasets import open_dataset
from dinoprobe.doctor import (
    Examination,
    Wishes,
    checks,
    examination,
    examine,
    measure_drift,
    selfcheck,
)
from dinoprobe.doctor.checks import check_checksums, check_versions
from dinoprobe.doctor.golden import check_picture, compare, golden_picture
from dinoprobe.doctor.selfcheck import check_forward
from dinoprobe.encoder import Encoder, EncoderReference, EncoderSettings
from dinoprobe.errors import ConfigurationError, DatasetError, EncoderError
from dinoprobe.files import sha256_file

if TYPE_CHECKING:
    from pathlib import Path


def state(found: Examination, name: str) -> str:
    return next(check.state for check in found.checks if check.name == name)


def text(found: Examination, name: str) -> str:
    return next(check.text for check in found.checks if check.name == name)


def picture(size: tuple[int, int] = (640, 480)) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_without_an_encoder_only_the_surroundings_are_looked_at() -> None:
    heard: list[str] = []
    found = examine(None, on_check=lambda check: heard.append(check.name))
    assert heard == ["versions", "device", "weights cache", "features cache"]
    assert [check.name for check in found.checks] == heard
    assert found.to_dict()["usable"] is True


def test_old_libraries_are_named_with_what_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"python": "3.11", "torch": "2.9.1+cpu", "transformers": "5.23.0", "pillow": "13.0.0"}
    monkeypatch.setattr(checks, "versions", lambda: old)
    check = check_versions()
    assert isinstance(examine(None).error, EncoderError)
    assert check.state == "failed"
    assert "torch 2.10 or newer" in check.text
    assert "transformers 5.3" not in check.text


@pytest.mark.parametrize("save", [save_vit, save_convnext])
def test_whole_weights_pass(save: object, tmp_path: Path) -> None:
    folder = save(tmp_path)  # type: ignore[operator]
    found = examine(EncoderSettings(name=str(folder)), device="cpu")
    assert found.error is None
    assert state(found, "forward") == "ok"
    assert "not one of the published" in text(found, "parameters")
    assert state(found, "golden vectors") == "unverified"


def test_nan_among_the_weights_is_found(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = examine(EncoderSettings(name=str(folder)), device="cpu")
    assert state(found, "forward") == "failed"
    assert isinstance(found.error, EncoderError)
    assert "NaN" in str(found.error)


def test_weights_that_are_all_zero_are_found(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(zeros, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = Encoder.from_pretrained(str(folder), device="cpu")
    assert "every picture gives the same features" in check_forward(encoder).text


def test_another_forward_than_transformers_is_found(tmp_path: Path) -> None:
    """A mean that starts at 1, and so takes the registers for patches, does not pass."""
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu", pooling="mean")
    assert check_forward(encoder).state == "ok"
    honest = encoder.encode
    wrong = lambda images: honest(images) + np.linspace(0, 0.05, 32, dtype=np.float32)  # noqa: E731
    encoder.encode = wrong  # type: ignore[method-assign]
    check = check_forward(encoder)
    assert check.state == "failed"
    assert "expected 1e-06 or less" in check.text


def test_earlier_blocks_are_checked_too(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu", pooling="blocks2")
    assert check_forward(encoder).state == "ok"
    honest = encoder.encode
    encoder.encode = lambda images: honest(images)[:, ::-1].copy()  # type: ignore[method-assign]
    assert check_forward(encoder).state == "failed"


def test_nan_in_the_comparison_is_no_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path)), device="cpu")
    nothing = np.full((4, encoder.dimension), np.nan, dtype=np.float32)
    monkeypatch.setattr(selfcheck, "_by_hand", lambda *_: nothing)
    assert check_forward(encoder).state == "failed"


def test_drift_that_can_not_be_measured_is_said_and_no_failure(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_vit(tmp_path)
    monkeypatch.setattr(examination, "_fits_in_float32", lambda *_: False)
    wishes = Wishes(images=open_dataset(str(photos)))
    settings = EncoderSettings(name=str(folder))
    found = examine(settings, device="cpu", dtype="bfloat16", wishes=wishes)
    assert found.error is None
    assert state(found, "drift") == "unverified"


def test_damaged_weights_end_with_their_own_message(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    (folder / "model.safetensors").write_bytes(b"cut")
    found = examine(EncoderSettings(name=str(folder)), device="cpu")
    assert "can not be loaded" in str(found.error)
    assert found.to_dict()["usable"] is False


def test_too_large_a_model_is_said_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "free_bytes", lambda _: 50_000)
    found = examine(EncoderSettings(name=str(save_vit(tmp_path))), device="cpu")
    assert state(found, "memory") == "failed"
    assert "--device-map auto" in str(found.error)
    assert state(found, "forward") == "unverified"


# --- published vectors ----------------------------------------------------------------------------


def as_published(folder: Path, content: bytes, first_patch: int) -> Golden:
    """What the publisher would have written down: transformers on the processor's arithmetic."""
    from transformers import AutoModel

    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder)((image - mean) / std).last_hidden_state[0]
    return Golden(tuple(tokens[0, :5].tolist()), tuple(tokens[first_patch, :5].tolist()))


@pytest.mark.parametrize(("save", "first_patch"), [(save_vit, 5), (save_convnext, 1)])
def test_the_vectors_are_compared_as_they_were_made(
    save: object, first_patch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, content = save(tmp_path), picture()  # type: ignore[operator]
    golden = as_published(folder, content, first_patch)
    encoder = Encoder.from_pretrained(str(folder), device="cpu")
    monkeypatch.setattr("dinoprobe.doctor.golden.GOLDEN", {"right": golden, **GOLDEN})
    right = compare(encoder, "right", content)
    assert right.agrees
    assert right.difference < 1e-4
    assert not compare(encoder, "vitb16", content).agrees


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderReference:
    """A reference to the folder that goes by the name of vits16."""
    reference = EncoderReference("facebook/dinov3-vits16-pretrain-lvd1689m", None, folder)
    monkeypatch.setattr(examination, "locate", lambda _: reference)
    return reference


@pytest.mark.parametrize("right", [True, False])
def test_golden_vectors_decide(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, content = save_vit(tmp_path / "w"), picture()
    (tmp_path / "coco.png").write_bytes(content)
    if right:
        golden = {"vits16": as_published(folder, content, 5)}
        monkeypatch.setattr("dinoprobe.doctor.golden.GOLDEN", golden)
    published(folder, monkeypatch)
    wishes = Wishes(golden_image=str(tmp_path / "coco.png"))
    found = examine(EncoderSettings(name=str(folder)), device="cpu", wishes=wishes)
    assert state(found, "golden vectors") == ("ok" if right else "failed")
    assert (found.error is None) is right
    if not right:
        assert "not vits16 as published" in str(found.error)


def test_without_the_picture_it_is_said_to_be_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_vit(tmp_path)
    published(folder, monkeypatch)
    found = examine(EncoderSettings(name=str(folder)), device="cpu")
    assert state(found, "golden vectors") == "unverified"
    assert "--golden fetches it" in text(found, "golden vectors")
    assert found.error is None
    assert state(found, "parameters") == "note"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (picture((64, 48)), "64 x 48 pixels, expected 640 x 480"),
        (b"<html>not found</html>", "Expected COCO's"),
    ],
)
def test_another_picture_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_picture(content, "here.jpg")


def test_a_picture_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    wishes = Wishes(golden_image=str(tmp_path / "nothing.jpg"))
    found = examine(EncoderSettings(name="builtin"), device="cpu", wishes=wishes)
    assert "nothing.jpg: not readable" in str(found.error)
    assert state(found, "golden vectors") == "failed"


def test_the_precision_that_is_wanted_is_run(tmp_path: Path) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)))
    found = examine(settings, device="cpu", dtype="bfloat16")
    assert state(found, "precision") == "ok"
    assert "bfloat16: 1 - cosine to float32" in text(found, "precision")


class _Serve(http.server.BaseHTTPRequestHandler):
    content = picture()
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if "missing" not in self.path else 404)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> str:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Serve)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_picture_is_fetched_once(address: str, tmp_path: Path) -> None:
    before = _Serve.asked
    first = golden_picture(tmp_path, url=f"{address}/a/000000039769.jpg")
    assert golden_picture(tmp_path, url=f"{address}/a/000000039769.jpg") == first == _Serve.content
    assert _Serve.asked == before + 1


def test_a_picture_that_is_not_to_be_had_says_how_to_give_it(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--golden-image FILE"):
        golden_picture(tmp_path, url=f"{address}/missing.jpg")
    assert not list(tmp_path.rglob("*.jpg"))


# --- the hub's cache ------------------------------------------------------------------------------


def snapshot(root: Path, *, damaged: bool, linked: bool = True) -> Path:
    """A snapshot as the hub's cache keeps it: links to files named by their digests."""
    folder, blobs = root / "snapshots" / "0123", root / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    weights = save_vit(root / "source") / "model.safetensors"
    blob = blobs / sha256_file(weights)
    content = weights.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damaged else content)
    if linked:
        (folder / "model.safetensors").symlink_to(blob)
    else:
        (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("damaged", "linked", "expected"),
    [(False, True, "ok"), (True, True, "failed"), (False, False, "unverified")],
)
def test_one_flipped_bit_in_the_cache_is_found(
    damaged: bool, linked: bool, expected: str, tmp_path: Path
) -> None:
    check = check_checksums(snapshot(tmp_path, damaged=damaged, linked=linked))
    assert check.state == expected


def test_a_blob_in_the_store_that_all_repositories_share_is_whole(tmp_path: Path) -> None:
    """huggingface_hub 2 with Xet: the blob is a link to a file with a name of another kind."""
    folder = snapshot(tmp_path, damaged=False)
    blob = (folder / "model.safetensors").resolve()
    store = tmp_path / "shared" / ("ab" * 32)
    store.parent.mkdir()
    blob.rename(store)
    blob.symlink_to(store)
    assert check_checksums(folder).state == "ok"


# --- drift ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for i in range(10):
            pixels = np.clip(rng.normal(level, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_drift_with_labels_asks_a_head(photos: Path, tmp_path: Path) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)), device="cpu", dtype="bfloat16")
    drift = measure_drift(open_dataset(str(photos)), settings)
    assert drift.n == 20
    assert drift.agreement_n == 10
    assert drift.head.startswith("logistic")
    assert 0.99 < drift.cosine_min <= drift.cosine_mean < 1
    assert drift.agreement_interval[0] <= drift.agreement <= 1
    assert drift.to_dict()["agreement_interval"] == list(drift.agreement_interval)


def test_drift_without_labels_asks_for_neighbours(photos: Path, tmp_path: Path) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)), device="cpu", dtype="bfloat16")
    drift = measure_drift(open_dataset(str(photos / "dark")), settings)
    assert (drift.n, drift.agreement_n, drift.head) == (10, 10, "nearest other image")


def test_drift_needs_two_images(photos: Path, tmp_path: Path) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)), device="cpu", dtype="bfloat16")
    with pytest.raises(DatasetError, match="1 images could be used"):
        measure_drift(open_dataset(str(photos / "dark" / "0.png")), settings)


@pytest.mark.parametrize(("dtype", "measured"), [("bfloat16", True), ("float32", False)])
def test_the_examination_tells_the_drift(
    photos: Path, tmp_path: Path, dtype: str, measured: bool
) -> None:
    settings = EncoderSettings(name=str(save_vit(tmp_path)), device="cpu")
    wishes = Wishes(images=open_dataset(str(photos)))
    found = examine(settings, device="cpu", dtype=dtype, wishes=wishes)
    assert (found.drift is not None) is measured
    says = "same answer for" if measured else "compared with itself"
    assert says in text(found, "drift")
