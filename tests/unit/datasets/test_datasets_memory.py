"""Arrays, PIL images, bytes, tensors, pairs and lists."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from dinoprobe.datasets import open_dataset
from dinoprobe.datasets.memory import TensorSource
from dinoprobe.errors import ConfigurationError, DatasetError, DatasetNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def only(source: object) -> object:
    (sample,) = open_dataset(source).samples
    return pickle.loads(pickle.dumps(sample)).source.read()


def test_bytes() -> None:
    assert only(b"abc") == only(bytearray(b"abc")) == only(memoryview(b"abc")) == b"abc"


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[:, :, 0], np.zeros((9, 9, 7), np.uint16)])
def test_arrays(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(only(pixels), pixels)
    assert open_dataset(pixels).samples[0].source.stamp() is None


def test_a_batch_is_many_images() -> None:
    assert len(open_dataset(np.zeros((6, 4, 5, 3), np.uint8))) == 6
    assert len(open_dataset(torch.zeros(6, 3, 4, 5))) == 6
    assert len(open_dataset((np.zeros((6, 8, 8)), [1] * 6))) == 6
    assert len(open_dataset((torch.zeros(6, 8, 8), torch.ones(6)))) == 6


def test_tensors_become_bands_last() -> None:
    np.testing.assert_array_equal(only(torch.tensor(PIXELS).permute(2, 0, 1)), PIXELS)
    np.testing.assert_array_equal(only(torch.tensor(PIXELS[:, :, 0])), PIXELS[:, :, 0])
    assert only(torch.ones(3, 4, 5, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F", "I"])
def test_pil_images_keep_their_mode_and_pixels(mode: str) -> None:
    base = Image.fromarray(PIXELS)
    image = base.convert("L").convert(mode) if mode in ("I;16", "LA") else base.convert(mode)
    read = Image.open(io.BytesIO(only(image)))
    assert read.mode == mode
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("mode", ["HSV", "PA", "RGBa", "RGBX"])
def test_rare_modes_become_rgb(mode: str) -> None:
    step = {"PA": "P", "RGBa": "RGBA"}.get(mode, "RGB")
    image = Image.fromarray(PIXELS).convert(step).convert(mode)
    assert Image.open(io.BytesIO(only(image))).mode in ("RGB", "RGBA")


def test_pil_images_are_turned_upright_and_broken_ones_fail_as_oserror(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert Image.open(io.BytesIO(only(opened))).size == (4, 5)
    buffer = io.BytesIO()
    image.resize((99, 99)).save(buffer, "JPEG")
    broken = Image.open(io.BytesIO(buffer.getvalue()[:-200]))
    with pytest.raises(OSError, match="truncated"):
        open_dataset(broken).samples[0].source.read()


def test_pairs_have_labels_as_text() -> None:
    images = [PIXELS, b"x", Image.new("L", (1, 1)), torch.zeros(3, 2, 2)]
    for labels in (["0", "1", "1", "0"], np.array([0, 1, 1, 0]), torch.tensor([0, 1, 1, 0])):
        dataset = open_dataset((images, labels))
        assert [s.label for s in dataset.samples] == ["0", "1", "1", "0"]
        assert dataset.classes == ("0", "1")
        assert [s.key for s in dataset.samples][:2] == ["000000", "000001"]
    mixed = open_dataset((images[:3], ["cat", None, np.str_("dog")]))
    assert [s.label for s in mixed.samples] == ["cat", None, "dog"]


def test_a_tuple_of_two_images_is_no_pair() -> None:
    assert len(open_dataset((PIXELS, PIXELS))) == 2
    assert len(open_dataset((b"a", b"b"))) == 2
    assert len(open_dataset(("a.jpg", "b.jpg"))) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (([PIXELS], ["a", "b"]), "2 labels for 1 images"),
        (("folder", ["a"]), "one image with a list of labels"),
        ([], "An empty list"),
        ({"a": 1}, r"Image 0 is a dict\. Expected a path"),
        ([3], "Image 0 is a int"),
        (np.zeros((3, 9, 9)), r"\(3, 9, 9\), bands first"),
        (torch.zeros(9, 9, 3), r"\(9, 9, 3\), bands last"),
        (np.zeros(9), r"shape \(9,\)"),
        (np.zeros((0, 9)), r"shape \(0, 9\)"),
        (torch.zeros(9), r"shape \(9,\)"),
        ([np.zeros((4, 4), complex)], "type complex128"),
    ],
)
def test_what_is_no_image_is_refused(source: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_dataset(source)


def test_a_tensor_that_can_not_be_read_fails_as_oserror() -> None:
    with pytest.raises(OSError, match="tensor: can not be read"):
        TensorSource(torch.zeros(3, 2, 2, device="meta")).read()


def test_a_dataset_is_passed_through() -> None:
    dataset = open_dataset(b"x")
    assert open_dataset(dataset) is dataset


def test_a_list_of_images_is_taken_whatever_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"1")
    (tmp_path / "photo.dat").write_bytes(b"2")
    dataset = open_dataset([tmp_path / "image", str(tmp_path / "photo.dat"), tmp_path / "no.jpg"])
    assert [s.source.read() for s in dataset.samples[:2]] == [b"1", b"2"]
    with pytest.raises(FileNotFoundError):
        dataset.samples[2].source.read()
    one = open_dataset(tmp_path / "photo.dat")
    assert [(s.key, s.label) for s in one.samples] == [("photo.dat", None)]
    assert len(open_dataset(np.array([str(tmp_path / "image")]))) == 1


def test_repeated_images_of_a_list_have_unique_keys() -> None:
    dataset = open_dataset(["a.jpg", "a.jpg"])
    assert [s.key for s in dataset.samples] == ["a.jpg", "a.jpg#2"]
    assert "1 image repeats a path" in dataset.notes[0]


def test_a_glob_of_images(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    keys = [s.key for s in open_dataset(f"{tmp_path}/*.jpg").samples]
    assert keys == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    with pytest.raises(DatasetNotFoundError, match="nothing matches"):
        open_dataset(f"{tmp_path}/*.png")


def test_a_list_of_folders_and_images_is_one_dataset(tmp_path: Path) -> None:
    for name in ("one/cat/1.jpg", "two/dog/1.jpg", "two/dog/x.txt", "3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = open_dataset([tmp_path / "one", tmp_path / "two", tmp_path / "3.jpg"])
    assert [(s.key, s.label) for s in dataset.samples] == [
        ("one/cat/1.jpg", "cat"),
        ("two/dog/1.jpg", "dog"),
        ("3.jpg", None),
    ]
    assert (dataset.classes, dataset.ignored) == (("cat", "dog"), {"not an image by name": 1})


def test_columns_of_memory_and_lists_are_refused() -> None:
    for source in ([b"x"], PIXELS, ([b"x"], ["cat"])):
        with pytest.raises(ConfigurationError, match="has no columns"):
            open_dataset(source, label_column="kind")
