"""How a user asks for an encoder: plain values that a run directory keeps and repeats."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dinoprobe.encoder.encoder import Encoder, default_preprocessing, patch_size
from dinoprobe.encoder.reference import locate


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """Name and options of an encoder. `size_px`, `resize` and `bands` replace the checkpoint's own
    preprocessing where they are given; `exact` takes the processor's float arithmetic.
    """

    name: str
    pooling: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    size_px: int | None = None
    resize: str | None = None
    exact: bool = False
    bands: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderSettings:
        """The inverse of `to_dict`."""
        bands = values.get("bands")
        return cls(**{**values, "bands": tuple(bands) if bands else None})


def open_encoder(settings: EncoderSettings) -> Encoder:
    """The encoder with its preprocessing overridden. Raises what `Encoder.from_pretrained` does."""
    preprocessing = None
    reference = locate(settings.name)
    changes = (settings.size_px, settings.resize, settings.exact or None, settings.bands)
    if any(change is not None for change in changes):
        own, _ = default_preprocessing(reference)
        preprocessing = own.with_options(
            size=settings.size_px,
            resize=settings.resize,
            exact=settings.exact or None,
            bands=settings.bands,
            patch_size=patch_size(reference),
        )
    return Encoder.from_pretrained(
        reference,
        pooling=settings.pooling,
        device=settings.device,
        dtype=settings.dtype,
        preprocessing=preprocessing,
    )
