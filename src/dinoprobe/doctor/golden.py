"""Published outputs against what the weights here give for the same picture.

The picture is COCO's val2017/000000039769.jpg, which this package does not carry; it is fetched
only when that is asked for, or read from a file. It goes through the package's own decoder and
resize in the exact mode, so the check covers weights, preprocessing and forward pass together.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.catalog import GOLDEN, GOLDEN_IMAGE_SIZE, GOLDEN_IMAGE_URL
from dinoprobe.catalog.golden import GOLDEN_TOLERANCE
from dinoprobe.errors import ConfigurationError, ImageError
from dinoprobe.files import write_atomic

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from dinoprobe.encoder import Encoder

_TIMEOUT_S = 15
_MAX_BYTES = 5_000_000


class GoldenResult(NamedTuple):
    """The largest difference over ten published numbers, and whether all are within tolerance."""

    difference: float
    agrees: bool


def golden_picture(cache: Path, *, url: str = GOLDEN_IMAGE_URL) -> bytes:
    """The picture, from `cache` or fetched once. Raises ConfigurationError where that fails."""
    path = cache / "golden" / url.rpartition("/")[2]
    if path.is_file():
        return path.read_bytes()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - a constant
            content: bytes = answer.read(_MAX_BYTES + 1)
    except (urllib.error.URLError, OSError) as error:
        msg = (
            f"{url} could not be fetched ({error}). Expected COCO's picture; fetch it elsewhere "
            "and give it with --golden-image FILE."
        )
        raise ConfigurationError(msg) from error
    check_picture(content, url)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return content


def check_picture(content: bytes, place: str | os.PathLike[str]) -> None:
    """Raise ConfigurationError for a picture that can not be the one of the published vectors."""
    from dinoprobe.preprocess import decode

    height, width = GOLDEN_IMAGE_SIZE
    try:
        size = decode(content).pixels.shape[:2]
    except ImageError as error:
        msg = f"{place}: {error} Expected COCO's val2017/000000039769.jpg."
        raise ConfigurationError(msg) from error
    if size != GOLDEN_IMAGE_SIZE:
        msg = (
            f"{place}: {size[1]} x {size[0]} pixels, expected {width} x {height}: COCO's "
            f"val2017/000000039769.jpg. Fetch it from {GOLDEN_IMAGE_URL}"
        )
        raise ConfigurationError(msg)


def compare(encoder: Encoder, name: str, content: bytes) -> GoldenResult:
    """The published numbers of checkpoint `name` against this encoder's, for the picture.

    The encoder must be in float32; its own preprocessing is not used: the vectors have theirs.
    """
    import numpy as np
    import torch

    from dinoprobe.preprocess import Preprocessing, prepare, to_pixel_values

    preprocessing = Preprocessing(arithmetic="exact")
    image = prepare(content, preprocessing)
    with torch.inference_mode():
        pixels = to_pixel_values(
            image[None], preprocessing, dtype=torch.float32, device=encoder.device
        )
        tokens = encoder.tokens(pixels)[0].float().cpu().numpy()
    golden = GOLDEN[name]
    found = np.concatenate([tokens[0, :5], tokens[encoder.tokens_before_patches, :5]])
    expected = np.array([*golden.cls, *golden.patch])
    agrees = np.allclose(found, expected, atol=GOLDEN_TOLERANCE, rtol=GOLDEN_TOLERANCE)
    return GoldenResult(float(np.abs(found - expected).max()), bool(agrees))
