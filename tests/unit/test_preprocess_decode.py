import contextlib
import io
import pickle
import struct
import sys
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinoprobe.errors import ImageError
from dinoprobe.preprocess import Preprocessing, decode, has_more_frames, prepare
from dinoprobe.preprocess.orientation import orientation_of, upright

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
KINDS = {
    "empty", "not-an-image", "unsupported-format", "truncated", "too-large", "bands", "values",
    "broken",
}  # fmt: skip


def encoded(image, name="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def picture(mode="RGB", size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize(size).convert(mode)


def failure(data, **options):
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    error = caught.value
    assert error.kind in KINDS
    assert "expected" in str(error)
    assert pickle.loads(pickle.dumps(error)).kind == error.kind
    return error


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_the_allow_list(name):
    data = encoded(picture(), name)
    decoded = decode(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded.pixels, expected)
    assert decoded.pixels.flags.writeable
    assert not decoded.more_frames
    assert prepare(data, Preprocessing(size=(16, 16))).shape == (3, 16, 16)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_are_failures(name):
    data = encoded(picture(size=(200, 150)), name)
    for share in (0.3, 0.6, 0.9):
        failure(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "empty", "an empty file"),
        (b"\n<!DOCTYPE html><html>not found</html>", "not-an-image", "web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "not-an-image", "SVG"),
        (b"<?xml version='1.0'?><rss/>", "not-an-image", "XML"),
        (b"hello\n", "not-an-image", "a text file"),
        (b'{"error": 404}', "not-an-image", "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not-an-image", "git lfs pull"),
        (b"PK\x03\x04" + b"\0" * 30, "not-an-image", "zip"),
        (b"%PDF-1.7", "not-an-image", "PDF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "not-an-image", "video"),
        (b"RIFF\0\0\0\0WAVE", "not-an-image", "RIFF"),
        (b"\0" * 100, "not-an-image", "00 00 00 00"),
        (b"P6\n1 1\n255\n\0\0\0", "unsupported-format", "Netpbm"),
        (b"8BPS\0\1", "unsupported-format", "Photoshop"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "unsupported-format", "JPEG 2000"),
        (b"\xff\xd8\xff", "broken", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "truncated", "PNG"),
    ],
)
def test_what_is_no_image_is_named(data, kind, words):
    error = failure(data)
    assert (error.kind, words in str(error)) == (kind, True)


def test_heif_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    error = failure(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert (error.kind, "dinoprobe[heif]" in str(error)) == ("unsupported-format", True)


def test_heif_with_its_library():
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(picture(size=(64, 48))).save(buffer, quality=95)
    expected = heif.open_heif(buffer).to_pillow().convert("RGB")
    assert np.array_equal(decode(buffer.getvalue()).pixels, np.asarray(expected))
    assert failure(buffer.getvalue(), max_pixels=64 * 48 - 1).kind == "too-large"
    failure(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def test_16_bit_is_divided_by_257_in_either_order_of_bytes():
    expected = np.round(RAMP / 257).astype(np.uint8)[:, :, None].repeat(3, 2)
    grey = Image.fromarray(RAMP)
    for data in (encoded(grey, "PNG"), encoded(grey, "TIFF"), big_endian_tiff(RAMP)):
        assert np.array_equal(decode(data).pixels, expected)


def big_endian_tiff(values):
    height, width = values.shape
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1),
        (273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1), (278, 3, height), (279, 4, values.size * 2),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + struct.pack(">HH" if kind == 3 else ">I", *value)
        for tag, kind, number in tags
        for value in [(number, 0) if kind == 3 else (number,)]
    )
    header = b"MM\0*" + struct.pack(">IH", 8, len(tags))
    return header + entries + b"\0\0\0\0" + values.astype(">u2").tobytes()


def test_8_bits_stored_in_16_come_back():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(
        decode(encoded(Image.fromarray(values * 257))).pixels[:, :, 1], values.astype(np.uint8)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([7, 7, 7], [7, 7, 7]),
        ([-7, -7, -7], [0, 0, 0]),
    ],
)
def test_32_bit_integers(values, expected):
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert decode(data).pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 100.4, 255], [0, 100, 255]),
        ([0, 2570.0, 65535], [0, 10, 255]),
        ([-1, 0, 1], [0, 128, 255]),
        ([-1e38, 0, 3e38], [0, 64, 255]),
    ],
)
def test_floats(values, expected):
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert decode(data).pixels[0, :, 0].tolist() == expected


def test_scaling_never_turns_an_order_round():
    values = np.sort(np.random.default_rng(0).normal(0, 1e5, 500)).astype(np.float32)[None]
    grey = decode(encoded(Image.fromarray(values), "TIFF")).pixels[0, :, 0].astype(int)
    assert (np.diff(grey) >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    data = encoded(Image.fromarray(np.array([[0, bad]], np.float32)), "TIFF")
    assert failure(data).kind == "values"


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("1", "PNG"), ("1", "TIFF"), ("L", "PNG"), ("P", "PNG"), ("P", "BMP"), ("RGB", "TIFF"),
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"), ("LAB", "TIFF"),
        ("L", "JPEG"), ("RGBX", "TIFF"),
    ],
)  # fmt: skip
def test_modes_convert_as_pillow_does(mode, name):
    image = picture("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    if mode == "RGBX":
        assert failure(encoded(image, name)).kind == "bands"
        return
    data = encoded(image, name)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data).pixels, expected)


def test_alpha_is_laid_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [0, 128, 255]
    rgba = Image.fromarray(pixels, "RGBA")
    for data in (encoded(rgba), encoded(rgba, "WEBP", lossless=True), encoded(rgba, "TIFF")):
        assert decode(data).pixels[0, :, 0].tolist() == [255, 127, 0]
    assert decode(encoded(rgba.convert("LA"))).pixels[0, :, 0].tolist() == [255, 127, 0]


def test_transparency_of_palettes_and_of_one_colour():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for data in (
        encoded(palette, transparency=0),
        encoded(palette, transparency=bytes([0, 255])),
        encoded(palette, "GIF", transparency=0),
    ):
        assert decode(data).pixels[0].tolist() == [[255, 255, 255], [200, 100, 50]]
    red = Image.new("RGB", (1, 1), "red")
    assert decode(encoded(red, transparency=(255, 0, 0))).pixels[0, 0].tolist() == [255] * 3
    grey = Image.new("L", (1, 1), 9)
    assert decode(encoded(grey, transparency=9)).pixels[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(value, name):
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(picture(), name, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decode(data).pixels, np.asarray(expected))


def test_orientation_in_odd_places():
    raw = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    assert orientation_of({"exif": raw}) == 6
    hex_lines = "\nexif\n26\n" + raw.hex()
    assert orientation_of({"Raw profile type exif": hex_lines}) == 6
    assert orientation_of({"Raw profile type exif": "\n\n\nxyz"}) == 1
    assert orientation_of({"xmp": b'<x tiff:Orientation="8"/>'}) == 8
    assert orientation_of({"XML:com.adobe.xmp": "<tiff:Orientation>3</tiff:Orientation>"}) == 3
    for broken in (b"", b"Exif\0\0", raw[:-8], raw[:12], b"II*\0\xff\xff\xff\xff", b"junk"):
        assert orientation_of({"exif": broken}) == 1


@pytest.mark.parametrize("value", range(1, 9))
def test_upright_is_contiguous(value):
    assert upright(np.zeros((2, 3, 3), np.uint8), value).flags.c_contiguous


def frames(name):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    return encoded(first, name, save_all=True, append_images=[second])


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames(name):
    data = frames(name)
    decoded = decode(data)
    assert decoded.more_frames
    assert has_more_frames(data)
    assert decoded.pixels[0, 0, 0] > 250
    assert not has_more_frames(encoded(picture(), name))


def test_has_more_frames_never_fails():
    assert not has_more_frames(b"")
    assert not has_more_frames(b"GIF89a")
    assert not has_more_frames(encoded(picture(), "JPEG"))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_too_many_pixels_are_refused_from_the_header(name):
    error = failure(encoded(picture(), name), max_pixels=1199)
    assert error.kind == "too-large"
    assert "40x30" in str(error)
    assert decode(encoded(picture(), name), max_pixels=1200).pixels.shape == (30, 40, 3)
    assert failure(np.zeros((30, 40), np.uint8), max_pixels=1199).kind == "too-large"


def test_a_header_that_lies_about_its_size_costs_nothing():
    data = bytearray(encoded(picture("L"), "PNG"))
    data[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    assert failure(bytes(data)).kind in ("too-large", "broken")
    assert failure(b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0)
                   + b"\0" * 20).kind == "too-large"  # fmt: skip


def test_pillows_own_limit_and_warnings_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    filters = list(warnings.filters)
    assert decode(encoded(picture())).pixels.shape == (30, 40, 3)
    assert decode(encoded(picture(), "JPEG")).pixels.shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert list(warnings.filters) == filters


def test_no_warning_leaves_and_no_filter_stays_in_threads():
    data = bytearray(encoded(picture(), "TIFF", dpi=(72, 72)))
    at = data.index(struct.pack("<HHI", 296, 3, 1))
    data[at + 4] = 2  # two units where one is expected
    with pytest.warns(UserWarning, match="too many entries"):
        Image.open(io.BytesIO(data)).load()
    before = list(warnings.filters)
    outcomes = []

    def work():
        outcomes.extend(decode(bytes(data)).pixels.shape for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [(30, 40, 3)] * 80
    assert list(warnings.filters) == before


def test_libtiff_prints_nothing(capfd):
    data = bytearray(encoded(picture(), "TIFF", compression="tiff_lzw"))
    data[8:200] = b"\xff" * 192
    for end in range(60, len(data), 50):
        for file in (bytes(data), encoded(picture(), "TIFF", compression="tiff_lzw")[:end]):
            with pytest.raises(ImageError):
                decode(file)
    assert capfd.readouterr() == ("", "")


def test_every_kind_of_exception_becomes_the_one(monkeypatch):
    types = (
        OSError, ValueError, IndexError, TypeError, SyntaxError, EOFError, MemoryError,
        NotImplementedError, KeyError, struct.error, RecursionError, Image.DecompressionBombError,
    )  # fmt: skip
    for kind in types:

        def load(self, kind=kind):
            raise kind

        monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", load)
        failure(encoded(picture(), "BMP"))
    assert failure(encoded(picture(), "BMP")).kind == "too-large"


def multi_band(count, dtype=np.uint16):
    tifffile = pytest.importorskip("tifffile")
    values = (np.arange(count) * 257 * 10).astype(dtype)[None, None, :].repeat(6, 0).repeat(5, 1)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


def test_bands_have_to_be_named():
    data = multi_band(6)
    error = failure(data)
    assert (error.kind, "1 to 6" in str(error)) == ("bands", True)
    assert decode(data, bands=(4, 3, 2)).pixels[0, 0].tolist() == [30, 20, 10]
    assert decode(data, bands=(1, 6, 1)).pixels.shape == (6, 5, 3)
    assert "9" in str(failure(data, bands=(9, 1, 1)))
    preprocessing = Preprocessing(size=(4, 4), bands=(4, 3, 2))
    assert prepare(data, preprocessing)[:, 0, 0].tolist() == [30, 20, 10]


def test_four_8_bit_bands_are_not_taken_for_alpha():
    rgbx = np.zeros((4, 4, 4), np.uint8)
    rgbx[..., 3] = 77
    data = encoded(Image.frombytes("RGBX", (4, 4), rgbx.tobytes()), "TIFF")
    assert failure(data).kind == "bands"
    assert decode(data, bands=(4, 4, 1)).pixels[0, 0].tolist() == [77, 77, 0]


def test_bands_do_not_touch_photographs():
    data = encoded(picture())
    assert np.array_equal(decode(data, bands=(3, 2, 1)).pixels, decode(data).pixels)


def test_planes_and_single_bands_that_pillow_does_not_open():
    tifffile = pytest.importorskip("tifffile")
    planes = np.stack([np.full((6, 5), 257 * level, np.uint16) for level in (1, 2, 3, 4)])
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, photometric="minisblack", planarconfig="separate")
    assert decode(buffer.getvalue(), bands=(3, 2, 1)).pixels[0, 0].tolist() == [3, 2, 1]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.linspace(0, 1, 30).reshape(5, 6))  # float64
    assert decode(buffer.getvalue()).pixels[4, 5].tolist() == [255] * 3
    assert failure(buffer.getvalue(), max_pixels=29).kind == "too-large"


def test_without_tifffile_the_message_names_the_extra(monkeypatch):
    data = multi_band(6)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    error = failure(data, bands=(1, 2, 3))
    assert (error.kind, "dinoprobe[geo]" in str(error)) == ("unsupported-format", True)


def test_orientation_of_a_multi_band_tiff():
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((6, 5, 6), np.uint16), photometric="minisblack", planarconfig="contig",
        extratags=[(274, "H", 1, 6, True)],
    )  # fmt: skip
    assert decode(buffer.getvalue(), bands=(1, 2, 3)).pixels.shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 4), [0, 0, 0, 128], np.uint8), [127, 127, 127]),
        (np.full((2, 3), 257 * 7, np.uint16), [7, 7, 7]),
        (np.full((2, 3), 257 * 7, ">u2"), [7, 7, 7]),
        (np.full((2, 3), 0.5, np.float16), [128, 128, 128]),
        (np.full((2, 3, 3), 1.0), [255, 255, 255]),
        (np.ones((2, 3), bool), [255, 255, 255]),
        (np.asfortranarray(np.full((2, 3, 3), 7, np.uint8))[:, ::-1], [7, 7, 7]),
    ],
)
def test_arrays(array, expected):
    array.flags.writeable = False
    pixels = decode(array).pixels
    assert pixels.shape == (2, 3, 3)
    assert pixels[1, 2].tolist() == expected
    assert pixels.flags.c_contiguous
    assert prepare(array, Preprocessing(size=(8, 8))).shape == (3, 8, 8)


def test_an_array_is_never_changed():
    array = np.full((4, 4, 3), 9, np.uint8)
    decode(array).pixels[:] = 0
    assert (array == 9).all()


def test_an_array_with_bands():
    array = np.arange(6, dtype=np.uint8)[None, None].repeat(4, 0).repeat(4, 1)
    assert decode(array, bands=(6, 1, 2)).pixels[0, 0].tolist() == [5, 0, 1]
    assert failure(array).kind == "bands"
    assert decode(array[:, :, :4], bands=(4, 1, 2)).pixels[0, 0].tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (np.zeros((0, 4), np.uint8), "empty", "(0, 4)"),
        (np.zeros(4, np.uint8), "broken", "(4,)"),
        (np.zeros((1, 2, 3, 4), np.uint8), "broken", "(1, 2, 3, 4)"),
        (np.zeros((3, 20, 30), np.uint8), "bands", "moveaxis"),
        (np.zeros((4, 4, 2), np.uint8), "bands", "2 bands"),
        (np.zeros((4, 4), np.int64), "values", "int64"),
        (np.zeros((4, 4), "U1"), "values", "U1"),
        (np.zeros((4, 4), object), "values", "object"),
        (np.zeros((4, 4), complex), "values", "complex"),
        (np.full((4, 4), 255.0), "values", "255"),
        (np.full((4, 4), np.nan), "values", "nan"),
    ],
)
def test_arrays_that_are_refused(array, kind, words):
    error = failure(array)
    assert (error.kind, words in str(error)) == (kind, True)


def test_large_images_are_copied_in_strips(monkeypatch):
    monkeypatch.setattr("dinoprobe.preprocess.colour._STRIP_PIXELS", 100)
    assert np.array_equal(decode(encoded(picture())).pixels, np.asarray(picture()))
    monkeypatch.setattr("dinoprobe.preprocess.colour._STRIP_PIXELS", 1)
    assert np.array_equal(decode(encoded(picture())).pixels, np.asarray(picture()))


@pytest.mark.parametrize("name", [*FORMATS, "HEIF"])
def test_damaged_files_give_pixels_or_the_one_error(name, capfd):
    if name == "HEIF":
        heif = pytest.importorskip("pillow_heif")
        buffer = io.BytesIO()
        heif.from_pillow(picture()).save(buffer)
        data = buffer.getvalue()
    else:
        data = encoded(picture(), name)
    rng = np.random.default_rng(1)
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), rng.choice([64, 400, 10**6])), 3):
            broken[at] = rng.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert decode(bytes(broken), max_pixels=10**6).pixels.shape[2] == 3
    assert capfd.readouterr() == ("", "")
