"""What the pipeline may hold, and batches of images of all sizes, with the real preprocessing."""

import io
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dinoprobe.engine import Encoded, encode, memory_bound
from dinoprobe.engine.readers import Loaded, Reading, load
from dinoprobe.preprocess import Preprocessing
from dinoprobe.types import Failure, Sample, Source

SIZES = [(40, 30), (31, 57), (400, 3), (1, 1), (320, 240), (90, 90), (64, 200)]


@dataclass
class Means:
    """An encoder that gives the means of the channels, and notes the shapes of its batches."""

    preprocessing: Preprocessing
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dimension: int = 3
    fingerprint: str = "ab" * 16
    description: dict[str, Any] = field(default_factory=dict)

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        self.shapes.append(tuple(images.shape))
        return images.float().mean((2, 3)).numpy()


class File(Source):
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self) -> bytes:
        return self.content


def picture(number: int) -> bytes:
    """PNG and JPEG in turn, in sizes of all kinds."""
    pixels = np.random.default_rng(number).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    resized = Image.fromarray(pixels).resize(SIZES[number % len(SIZES)])
    resized.save(buffer, ("PNG", "JPEG")[number % 2])
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("workers", [1, 3])
def test_images_of_all_sizes_make_full_batches(resize: Any, workers: int) -> None:
    """Broken ones in between take no place in a batch."""
    contents = [picture(number) for number in range(61)]
    for place in (3, 4, 5, 30, 50):
        contents.insert(place, b"not an image")
    samples = [Sample(f"{number}", File(content)) for number, content in enumerate(contents)]
    encoder = Means(Preprocessing(size=(32, 48), resize=resize))
    results = list(encode(samples, encoder, batch_size=8, workers=workers))
    assert [result.key for result in results] == [sample.key for sample in samples]
    assert sum(isinstance(result, Encoded) for result in results) == 61
    assert len(encoder.shapes) == math.ceil(61 / 8)
    assert sorted(encoder.shapes) == [(5, 3, 32, 48)] + [(8, 3, 32, 48)] * 7


def test_the_bound_is_the_stated_sum() -> None:
    """A JPEG of 4000 x 3000 is decoded at a quarter for 224 x 224, and whole in the exact mode."""
    fast, exact = Preprocessing(), Preprocessing(arithmetic="exact")
    shape = {"batch_size": 8, "workers": 2, "lanes": 2, "file_bytes": 3_100_000}
    bound = partial(memory_bound, largest=(3000, 4000), **shape)
    prepared = 3 * 224 * 224
    images = (3 + 2) * 8 + 2 * 2 + 2 * 8
    scaled = 2 * (3_100_000 + 18 * 750_000) + images * prepared + 2 * 4 * 3_100_000
    assert bound(fast) == scaled
    assert bound(fast, kind="progressive") == scaled + 2 * 6 * 12_000_000
    whole = 2 * (3_100_000 + 8 * 12_000_000 + 10 * 4_000_000) + 2 * 4 * (32 << 20)
    assert bound(fast, kind="other") == whole + images * prepared
    assert bound(exact) == whole + images * 4 * prepared


def test_a_thread_that_was_given_up_claims_no_image() -> None:
    asked: list[str] = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return True

    decode = partial(torch.zeros, (3, 2, 2))
    for given_up in (True, False):
        reading = Reading(Loaded(Sample("a", File(b"content"))), given_up)
        loaded = load(reading, lambda _: decode(), wanted)
        assert (loaded.image is None, len(asked)) == (given_up, int(not given_up))
        assert reading.known.content_hash == loaded.content_hash is not None


def test_no_memory_for_a_decode_is_a_failure() -> None:
    def decode(image: object) -> torch.Tensor:
        raise MemoryError

    loaded = load(Reading(Loaded(Sample("a", File(b"content")))), decode, lambda _: True)
    reason = "not enough memory to decode it; use fewer workers"
    assert loaded.failure == Failure("a", "too-large", reason)
