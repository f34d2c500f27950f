"""The same file gives the same tensor, or the same failure, with and without simplejpeg."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dinoprobe.errors import ImageError
from dinoprobe.preprocess import Preprocessing, decode, prepare
from dinoprobe.preprocess.jpeg import decode_jpeg

simplejpeg = pytest.importorskip("simplejpeg")


def picture(width, height, mode="RGB", seed=0):
    """Smooth colours with some noise, so that a JPEG has all frequencies."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth.astype(int) + rng.integers(-20, 20, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 90} | options))
    return buffer.getvalue()


def both_ways(data, preprocessing, monkeypatch):
    def outcome():
        try:
            return prepare(data, preprocessing)
        except ImageError as error:
            return error.kind

    fast = outcome()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "simplejpeg", None)
        slow = outcome()
    return fast, slow


def assert_same(pair):
    fast, slow = pair
    if isinstance(fast, str) or isinstance(slow, str):
        assert fast == slow
    else:
        assert torch.equal(fast, slow)


FILES = {
    "plain": {},
    "odd": {"size": (501, 333)},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "low quality": {"quality": 20},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "rgb, not YCbCr": {"keep_rgb": True},
    "restart markers": {"restart_marker_rows": 1},
    "one pixel": {"size": (1, 1)},
}


@pytest.mark.parametrize("arithmetic", ["uint8", "exact"])
@pytest.mark.parametrize("name", FILES)
def test_kinds_of_jpeg(name, arithmetic, monkeypatch):
    options = dict(FILES[name])
    image = picture(*options.pop("size", (500, 375)), options.pop("mode", "RGB"))
    data = jpeg(image, **options)
    assert_same(both_ways(data, Preprocessing(arithmetic=arithmetic), monkeypatch))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"}],
    ids=str,
)
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_scaled_decodes_are_the_same_bits(scale, options, extra, monkeypatch):
    options = dict(options)
    image = picture(64 * scale + extra, 48 * scale + extra, options.pop("mode", "RGB"))
    data = jpeg(image, **options)
    fast = decode_jpeg(Image.open(io.BytesIO(data)), data, scale)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    slow = decode_jpeg(Image.open(io.BytesIO(data)), data, scale)
    assert fast.shape == (-(-image.height // scale), -(-image.width // scale), 3)
    assert np.array_equal(fast, slow)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_large_photos_in_every_resize(resize, monkeypatch):
    data = jpeg(picture(1203, 903))
    assert_same(both_ways(data, Preprocessing(size=(64, 64), resize=resize), monkeypatch))


def test_every_truncation_fails_the_same_way(monkeypatch):
    data = jpeg(picture(40, 30))
    small = Preprocessing(size=(16, 16))
    for length in [*range(1, 40), *range(40, len(data), 7), *range(len(data) - 12, len(data) + 1)]:
        assert_same(both_ways(data[:length], small, monkeypatch))
    for length in range(200, len(data), 50):
        with pytest.raises(ImageError):
            prepare(data[:length], small)


def test_flipped_bytes_and_rubbish_behind_it_end_the_same_way(monkeypatch):
    data = jpeg(picture(40, 30), exif=orientation(6))
    small = Preprocessing(size=(16, 16))
    rng = np.random.default_rng(7)
    for _ in range(400):
        broken = bytearray(data)
        broken[rng.integers(2, len(data))] = rng.integers(0, 256)
        assert_same(both_ways(bytes(broken), small, monkeypatch))
    assert_same(both_ways(data + b"rubbish" * 100, small, monkeypatch))


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_applied_after_either_decoder(value, monkeypatch):
    data = jpeg(picture(1000, 420), exif=orientation(value))
    assert_same(both_ways(data, Preprocessing(size=(32, 96)), monkeypatch))


def test_a_large_photo_is_decoded_smaller_only_in_8_bit(monkeypatch):
    scales = []
    plain = simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        pixels = plain(*arguments, **options)
        scales.append(900 / pixels.shape[0])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    data = jpeg(picture(1200, 900))
    prepare(data, Preprocessing(size=(64, 64)))
    prepare(data, Preprocessing(size=(224, 224)))
    prepare(data, Preprocessing(size=(225, 225)))
    prepare(data, Preprocessing(size=(451, 451)))
    prepare(data, Preprocessing(size=(64, 64), arithmetic="exact"))
    assert [round(scale) for scale in scales] == [4, 2, 2, 1, 1]


def test_scaling_while_decoding_stays_near_the_full_decode():
    data = jpeg(picture(1200, 900))
    full = prepare(decode(data).pixels, Preprocessing(size=(64, 64)))
    scaled = prepare(data, Preprocessing(size=(64, 64)))
    assert (full.int() - scaled.int()).abs().max() <= 4  # reference: at most 4 at twice the size
