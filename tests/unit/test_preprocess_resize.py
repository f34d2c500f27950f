import io
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from dinoprobe.errors import ConfigurationError, ImageError
from dinoprobe.preprocess import Augmentation, Preprocessing, prepare, thumbnail
from dinoprobe.preprocess.augment import augmented_shrink, draw_box
from dinoprobe.preprocess.resize import resized

WHITE = np.full((30, 60, 3), 255, np.uint8)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (30, 60), (60, 30), (7, 700), (224, 224)], ids=str)
def test_every_way_gives_the_size_and_a_constant_stays_constant(resize, exact, shape):
    preprocessing = Preprocessing(size=(32, 48)).with_options(resize=resize, exact=exact)
    image = prepare(np.full((*shape, 3), 255, np.uint8), preprocessing)
    assert image.shape == (3, 32, 48)
    assert image.is_contiguous()
    assert image.dtype == (torch.float32 if exact else torch.uint8)
    inside = image[:, 15, 24].tolist()
    assert inside == pytest.approx([1.0] * 3 if exact else [255] * 3)


def test_pad_puts_the_mean_colour_around_and_the_image_in_the_middle():
    image = prepare(WHITE, Preprocessing(size=(64, 64), resize="pad"))
    assert image[:, 0, 0].tolist() == [124, 116, 104]  # ImageNet mean times 255
    assert image[:, 15, 32].tolist() == [124, 116, 104]
    assert image[:, 16, 0].tolist() == [255, 255, 255]
    assert image[:, 47, 63].tolist() == [255, 255, 255]
    assert image[:, 48, 63].tolist() == [124, 116, 104]
    exact = prepare(WHITE, Preprocessing(size=(64, 64), resize="pad", arithmetic="exact"))
    assert exact[:, 0, 0].tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_crop_keeps_the_middle():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    image = prepare(pixels, Preprocessing(size=(10, 10), resize="crop"))
    assert (image == 200).all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((100, 300), (32, 96)), ((300, 100), (144, 48)), ((32, 48), (32, 48)), ((100, 101), (47, 48))],
)
def test_crop_covers_a_size_that_is_not_square(shape, expected):
    assert resized(*shape, Preprocessing(size=(32, 48), resize="crop")) == expected


def test_a_line_of_20000_pixels_costs_no_gigabytes():
    line = png(Image.new("L", (1, 20_000), 200))
    assert len(line) < 400
    tracemalloc.start()
    for resize in ("squash", "crop", "pad"):
        preprocessing = Preprocessing(resize=resize)
        assert prepare(line, preprocessing).shape == (3, 224, 224)
        assert resized(4, 1, preprocessing)[0] <= 896
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_an_aspect_that_costs_gigabytes_in_any_resize_is_refused():
    line = png(Image.new("L", (1, 400_000)))
    with pytest.raises(ImageError, match="1x400000") as caught:
        prepare(line, Preprocessing())
    assert caught.value.kind == "too-large"
    assert prepare(line, Preprocessing(resize="crop")).shape == (3, 224, 224)


def test_long_images_are_cropped_like_others_to_a_grey_level_in_the_middle():
    ramp = np.linspace(0, 255, 1000).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    long = prepare(ramp, Preprocessing(size=(32, 32), resize="crop")).int()
    short = prepare(ramp[:, 480:520], Preprocessing(size=(32, 32), resize="crop")).int()
    assert (long - short).abs().max() <= 1


def test_augmentation_repeats_with_its_seed_and_differs_without():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    preprocessing = Preprocessing(size=(32, 32))

    def draw(seed):
        return prepare(
            pixels, preprocessing, augment=Augmentation(), rng=np.random.default_rng(seed)
        )

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(3).shape == (3, 32, 32)
    assert draw(3).dtype == torch.uint8


def test_flip_alone_mirrors():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    preprocessing = Preprocessing(size=(32, 32))
    whole = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)
    image = prepare(pixels, preprocessing, augment=whole, rng=np.random.default_rng(0))
    assert torch.equal(image, prepare(pixels, preprocessing).flip(-1))


@pytest.mark.parametrize("shape", [(1, 1), (5, 2000), (2000, 5), (100, 133)], ids=str)
def test_boxes_lie_inside(shape):
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left, height, width = draw_box(*shape, Augmentation(), rng)
        assert min(top, left) >= 0
        assert 0 < height <= shape[0] - top
        assert 0 < width <= shape[1] - left


def test_boxes_have_the_share_of_the_area_and_the_ratio():
    rng = np.random.default_rng(0)
    boxes = [draw_box(500, 500, Augmentation(scale=(0.2, 0.5)), rng)[2:] for _ in range(500)]
    shares = [height * width / 500**2 for height, width in boxes]
    ratios = [width / height for height, width in boxes]
    assert min(shares) > 0.195
    assert max(shares) < 0.505
    assert min(ratios) > 0.74
    assert max(ratios) < 1.35


def test_augment_without_a_generator_is_a_mistake():
    with pytest.raises(ConfigurationError, match="default_rng"):
        prepare(WHITE, Preprocessing(), augment=Augmentation())


@pytest.mark.parametrize(
    "options",
    [{"scale": (0.0, 1.0)}, {"scale": (0.5, 2.0)}, {"ratio": (2.0, 1.0)}, {"flip": 1.5}],
)
def test_augmentations_that_can_not_work(options):
    with pytest.raises(ConfigurationError):
        Augmentation(**options)


def test_thumbnails_are_small_jpegs():
    small = Image.open(io.BytesIO(thumbnail(WHITE, 20)))
    assert (small.format, small.size) == ("JPEG", (20, 10))
    photo = io.BytesIO()
    Image.new("RGB", (1600, 1200), "red").save(photo, "JPEG")
    assert Image.open(io.BytesIO(thumbnail(photo.getvalue(), 64))).size == (64, 48)
    line = Image.open(io.BytesIO(thumbnail(png(Image.new("L", (1, 5000))), 64)))
    assert line.size == (1, 64)
    with pytest.raises(ImageError):
        thumbnail(b"", 64)


def test_threads_get_the_same_as_one():
    pixels = [
        np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        for seed in range(8)
    ]
    files = [png(Image.fromarray(array)) for array in pixels]
    expected = [prepare(file, Preprocessing(size=(64, 64))) for file in files]
    results = {}

    def work(thread):
        for index, file in enumerate(files):
            results[thread, index] = prepare(file, Preprocessing(size=(64, 64)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 32
    assert all(torch.equal(image, expected[index]) for (_, index), image in results.items())


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("not enough memory")])
def test_a_resize_without_memory_is_a_failure(raised, monkeypatch):
    def interpolate(*arguments, **options):
        raise raised

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)
    with pytest.raises(ImageError, match="60x30") as caught:
        prepare(WHITE, Preprocessing())
    assert caught.value.kind == "too-large"


def test_a_photo_is_decoded_smaller_only_if_the_smallest_part_keeps_twice_the_size():
    small, half = Preprocessing(size=(32, 32)), Augmentation(scale=(0.25, 1.0), ratio=(1.0, 1.0))
    assert augmented_shrink(1024, 1024, small, half) == 8  # parts of 512 become 64
    assert augmented_shrink(1020, 1020, small, half) == 4
    assert augmented_shrink(100, 2000, small, half) == 1
    assert augmented_shrink(1024, 1024, small.with_options(exact=True), half) == 1
    photo = io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(photo, "JPEG")
    image = prepare(photo.getvalue(), small, augment=half, rng=np.random.default_rng(0))
    assert image.shape == (3, 32, 32)
