"""Says what a file is by its first bytes, before any decoder sees it.

Only formats on the allow-list reach a decoder: rare formats are where decoders break (the release
notes of Pillow 13.0.0 list five). The name of a file is never asked.
"""

from __future__ import annotations

import re

ALLOWED = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"II\0*", "TIFF"),  # broken writers, which Pillow accepts
    (b"MM*\0", "TIFF"),
)
_IMAGES = (
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "a cursor"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI image"),
    (b"SIMPLE  =", "a FITS image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"%!PS", "a PostScript file"),
)
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, to be replaced by: git lfs pull"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"RIFF", "a RIFF file, such as WAV or AVI"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
)
_NETPBM = re.compile(rb"P[1-7fF]\s")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif"}
_AVIF_BRANDS = {b"avif", b"avis"}
_TEXT_SAMPLE_BYTES = 512


def image_format(data: bytes) -> str | None:
    """One of `ALLOWED`, or None for anything else."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return _iso_media(data)


def _iso_media(data: bytes) -> str | None:
    """AVIF and HEIF share a container; its brands tell them apart."""
    if data[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def looks_like(data: bytes) -> tuple[str, str]:
    """What a file outside the allow-list seems to be: words for a message, a kind of failure."""
    for signature, words in _IMAGES:
        if data.startswith(signature):
            return words, "unsupported-format"
    if _NETPBM.match(data):
        return "a Netpbm image (PPM, PGM, PBM)", "unsupported-format"
    for signature, words in _OTHERS:
        if data.startswith(signature):
            return words, "not-an-image"
    if data[4:8] == b"ftyp":
        return "a video or another ISO media file", "not-an-image"
    words = _text(data) or f"unknown data, beginning with {data[:8].hex(' ')}"
    return words, "not-an-image"


def _text(data: bytes) -> str | None:
    sample = data[:_TEXT_SAMPLE_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if sample.startswith(b"<!doctype html") or b"<html" in sample:
        return "a web page (HTML), perhaps an error page that was saved under an image's name"
    if b"<svg" in sample:
        return "an SVG drawing"
    if sample.startswith(b"<"):
        return "an XML file"
    control = sum(byte < 9 or 13 < byte < 32 for byte in sample)
    if sample and not control:
        return "JSON" if sample[:1] in (b"{", b"[") else "a text file"
    return None
