"""What the pipeline holds at most, and batches within the memory there is.

At its peak the pipeline holds, beside the encoder's weights and activations and whatever the number
of images,

    workers x (file + 8 p + 10 min(p, 4 million))           what decodes
    + ((3 + lanes) x batch + 2 x workers) x prepared        what is ready, or in a batch
    + lanes x batch x prepared                              batches as the encoder takes them
    + 2 x (workers + lanes) x min(max(file, 4 p), 32 MiB)   what malloc keeps free

bytes: p is the number of pixels of the largest image as it is decoded, `prepared` one image as the
encoder takes it (0.15 MB at 224 x 224), a lane a thread that encodes. glibc's malloc keeps up to
twice the largest block of at most 32 MiB for each thread. One that hangs and was given up keeps the
share of one worker. benchmarks/memory.py measures it.

Where memory runs out in an encoder, the same rows run in smaller batches.
"""

from __future__ import annotations

from threading import Condition
from typing import TYPE_CHECKING, Literal

from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.engine.pipeline import EncoderLike
    from dinoprobe.engine.readers import Loaded
    from dinoprobe.preprocess import Preprocessing

Kind = Literal["jpeg", "progressive", "other"]
# Decoded 3, and 4 of Pillow's own or of the resize (RGBA, a channel as float32); 1 for its pass.
_BYTES_PER_PIXEL = 8
_EXPORT_BYTES = 10  # a strip of Pillow's pixels: 4, 3 as bytes, 3 joined
_STRIP_PIXELS = 4_000_000
_LARGEST_KEPT = 32 << 20  # glibc's DEFAULT_MMAP_THRESHOLD_MAX
_COEFFICIENT_BYTES = 6  # 16 bits a colour, of the whole file at whatever scale, where progressive


def images_ahead(batch_size: int, workers: int) -> int:
    """Images that reader threads may have prepared, or under way, before a batch takes them."""
    return 2 * batch_size + 2 * workers


def images_in_flight(batch_size: int, workers: int, lanes: int) -> int:
    """Prepared images that exist at one time at most: read ahead, or in a batch."""
    return images_ahead(batch_size, workers) + (lanes + 1) * batch_size


def memory_bound(
    preprocessing: Preprocessing,
    largest: tuple[int, int],
    *,
    file_bytes: int,
    batch_size: int,
    workers: int,
    lanes: int,
    kind: Kind = "jpeg",
) -> int:
    """Bytes by the formula above, for images of up to `largest` (height, width) in 8-bit colour.

    Formats other than JPEG are not decoded at a reduced scale; transparency, palettes, more bits
    and more bands take up to 32 bytes a pixel.
    """
    from dinoprobe.preprocess.resize import shrink_factor

    height, width = largest
    scale = 1 if kind == "other" else shrink_factor(height, width, preprocessing)
    pixels = -(-height // scale) * -(-width // scale)
    decoding = file_bytes + _BYTES_PER_PIXEL * pixels + _EXPORT_BYTES * min(pixels, _STRIP_PIXELS)
    if kind == "progressive":
        decoding += _COEFFICIENT_BYTES * height * width
    prepared = 3 * preprocessing.size[0] * preprocessing.size[1]
    if preprocessing.arithmetic == "exact":
        prepared *= 4
    count = images_in_flight(batch_size, workers, lanes) + lanes * batch_size
    kept = 2 * (workers + lanes) * min(max(file_bytes, 4 * pixels), _LARGEST_KEPT)
    return workers * decoding + count * prepared + kept


class Batcher:
    """Encodes batches, also from several threads. The size that memory allowed is kept.

    Threads share the memory: where one image alone is too much, the batch waits until no other
    thread encodes, and from then on batches are encoded one after the other.
    """

    def __init__(self, encoder: EncoderLike, size: int) -> None:
        self.encoder = encoder
        self.size = size
        self._alone = False
        self._running = 0
        self._change = Condition()

    def __call__(self, batch: Sequence[Loaded]) -> npt.NDArray[np.float32]:
        """The rows of a batch's images. Raises EncoderError where one image alone is too much."""
        images = [item.image for item in batch if item.image is not None]
        was_alone = self._alone
        try:
            return self._encode(images)
        except EncoderError:
            if was_alone:
                raise
        with self._change:
            self._alone = True
        return self._encode(images)

    def _encode(self, images: list[torch.Tensor]) -> npt.NDArray[np.float32]:
        with self._change:
            self._change.wait_for(lambda: not (self._alone and self._running))
            self._running += 1
            size = self.size
        try:
            rows, allowed = encode_within_memory(self.encoder, images, size)
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()
        with self._change:
            self.size = min(self.size, allowed)
        return rows


def encode_within_memory(
    encoder: EncoderLike, images: Sequence[torch.Tensor], size: int
) -> tuple[npt.NDArray[np.float32], int]:
    """The rows of all images, and the batch size that memory allowed.

    Raises EncoderError when one image alone is too much, or when the encoder's rows have another
    shape than it says.
    """
    import numpy as np
    import torch

    rows = [np.empty((0, encoder.dimension), dtype=np.float32)]
    start = 0
    while start < len(images):
        chunk = images[start : start + size]
        result = _try_encode(encoder, torch.stack(list(chunk)))
        if result is None:
            size = _halved(len(chunk), chunk[0])
            continue
        if result.shape != (len(chunk), encoder.dimension):
            raise EncoderError(
                f"the encoder gave features of shape {result.shape}, expected "
                f"{(len(chunk), encoder.dimension)}. Check its pooling."
            )
        rows.append(np.asarray(result, dtype=np.float32))
        start += len(chunk)
    return np.concatenate(rows), size


def _try_encode(encoder: EncoderLike, batch: torch.Tensor) -> npt.NDArray[np.float32] | None:
    """The rows, or None where memory ran out. The error is dropped here with all it holds on to."""
    try:
        return encoder.encode(batch)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return None


def _halved(count: int, image: torch.Tensor) -> int:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if count > 1:
        return count // 2
    height, width = image.shape[-2:]
    raise EncoderError(
        f"out of memory with a single image of {height} x {width} pixels. Expected room for at "
        "least one. Use a smaller encoder or image size, dtype bfloat16, or a machine with more "
        "memory."
    )


def _out_of_memory(error: BaseException) -> bool:
    """torch says it with a class on CUDA and only in words on CPU."""
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in text for word in words)
