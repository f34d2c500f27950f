"""Patch tokens of many images, for heads that look at all of them; nothing is kept in the store.

An image of 196 tokens of ViT-S takes 0.15 MB in float16, 200 times its pooled features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.engine.pipeline import encode
from dinoprobe.errors import ConfigurationError
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.encoder import Encoder
    from dinoprobe.types import Dataset

MEMORY_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class TokenSet:
    """Patch tokens `X` `(n, t, d)` float16 of the images that could be used, with key and label."""

    keys: tuple[str, ...]
    X: npt.NDArray[np.float16]
    y: npt.NDArray[Any]
    failures: tuple[Failure, ...]


class PatchTokens:
    """An encoder whose rows are all patch tokens of an image, one after the other."""

    def __init__(self, encoder: Encoder) -> None:
        import torch

        self.encoder = encoder
        self.preprocessing = encoder.preprocessing
        self.device = encoder.device
        self.is_spread = encoder.is_spread
        height, width = encoder.preprocessing.size
        blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        self.count, self.width = self._tokens(blank).shape[1:]

    @property
    def dimension(self) -> int:
        """Numbers in a row."""
        return self.count * self.width

    @property
    def fingerprint(self) -> str:
        """The encoder's: no store keeps tokens."""
        return self.encoder.fingerprint

    @property
    def description(self) -> dict[str, Any]:
        """The encoder's."""
        return self.encoder.description

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """Rows `(n, tokens * width)` float32 of images as `prepare` gives them."""
        rows: npt.NDArray[np.float32] = self._tokens(images).flatten(1).cpu().numpy()
        return rows

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        import torch

        from dinoprobe.preprocess import to_pixel_values

        with torch.inference_mode():
            dtype = next(self.encoder.model.parameters()).dtype
            pixels = to_pixel_values(
                images, self.preprocessing, dtype=dtype, device=self.encoder.device
            )
            tokens = self.encoder.tokens(pixels)
        return tokens[:, self.encoder.tokens_before_patches :].float()


def embed_tokens(
    dataset: Dataset,
    encoder: Encoder,
    *,
    file: str | Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> TokenSet:
    """Patch tokens of all images of a dataset, by transformers' own model.

    They are held in memory up to `memory_bytes`, or written to `file`, a .npy that is mapped.
    Raises ConfigurationError where they are more, and what `engine.encode` raises.
    """
    import numpy as np

    source = PatchTokens(encoder)
    shape = (len(dataset), source.count, source.width)
    size = 2 * shape[0] * shape[1] * shape[2]
    if file is None and size > memory_bytes:
        raise ConfigurationError(
            f"The patch tokens of {shape[0]:,} images take {size / 2**20:,.0f} MiB ({source.count} "
            f"tokens of {source.width} float16 each); expected at most "
            f"{memory_bytes / 2**20:,.0f}. Give file=, a place for them on disk, or memory_bytes=, "
            f"or take fewer images."
        )
    X = (
        np.empty(shape, np.float16)
        if file is None
        else np.lib.format.open_memmap(str(file), mode="w+", dtype=np.float16, shape=shape)
    )
    labels = {sample.key: sample.label for sample in dataset.samples}
    keys: list[str] = []
    failures: list[Failure] = []
    for found in encode(dataset.samples, source):
        if isinstance(found, Failure):
            failures.append(found)
            continue
        X[len(keys)] = found.row.reshape(shape[1:])
        keys.append(found.key)
    y = np.array([labels[key] for key in keys], dtype=object)
    return TokenSet(tuple(keys), X[: len(keys)], y, tuple(failures))
