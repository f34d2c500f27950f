"""Batches within the memory there is: where it runs out, the same rows run in smaller ones."""

from __future__ import annotations

from threading import Condition
from typing import TYPE_CHECKING

from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.engine.pipeline import EncoderLike
    from dinoprobe.engine.readers import Loaded


def images_ahead(batch_size: int, workers: int) -> int:
    """Images that reader threads may have prepared, or under way, before a batch takes them."""
    return 2 * batch_size + 2 * workers


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
