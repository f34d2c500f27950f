"""How a user asks for an encoder: plain values that a run directory keeps and repeats."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.encoder.defaults import default_preprocessing, patch_size
from dinoprobe.encoder.encoder import Encoder, Int8
from dinoprobe.encoder.load import open_source
from dinoprobe.encoder.placement import Spread, parse_memory
from dinoprobe.encoder.reference import locate

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.encoder.reference import EncoderReference


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """Name and options of an encoder. `size_px`, `resize`, `bands` and `normalize` replace the
    checkpoint's own preprocessing where they are given; `exact` takes the processor's float
    arithmetic. `device_map` and `max_memory` (as on the command line) spread it over devices.
    `compiled` has torch compile each layer, which takes up to a minute and pays on a GPU.
    """

    name: str
    pooling: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    size_px: int | None = None
    resize: str | None = None
    exact: bool = False
    bands: tuple[int, ...] | None = None
    normalize: str | None = None
    rope: str = "float32"
    device_map: str | None = None
    max_memory: str | None = None
    compiled: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderSettings:
        """The inverse of `to_dict`."""
        bands = values.get("bands")
        return cls(**{**values, "bands": tuple(bands) if bands else None})


@dataclass(frozen=True, slots=True)
class EncoderPlace:
    """Where a saved classifier's encoder is to run, and where its weights are now if they moved."""

    name: str | None = None
    device: str = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    backend: str = "auto"


def spread_of(device_map: str | None, max_memory: str | None) -> Spread | None:
    """What `--device-map` and `--max-memory` ask for; None for one device.

    Raises ConfigurationError, and MissingExtraError without accelerate.
    """
    if device_map is None and max_memory is None:
        return None
    return Spread(device_map or "auto", parse_memory(max_memory) if max_memory else None)


def open_encoder(
    settings: EncoderSettings,
    *,
    say: Callable[[str], None] = lambda _: None,
    transfer: Transfer | None = None,
    int8: Int8 | None = None,
    reference: EncoderReference | None = None,
) -> Encoder:
    """The encoder with its preprocessing overridden, and for that precision the graph `int8`.

    `reference` is where its weights are, where they were looked for before. Raises what
    `Encoder.from_pretrained` does.
    """
    spread = spread_of(settings.device_map, settings.max_memory)
    reference = reference or locate(settings.name, say=say, transfer=transfer)
    source = open_source(reference)
    own, notes = default_preprocessing(reference, source, normalize=settings.normalize)
    preprocessing = own.with_options(
        size=settings.size_px,
        resize=settings.resize,
        exact=settings.exact or None,
        bands=settings.bands,
        patch_size=patch_size(source),
    )
    encoder = Encoder.from_source(
        source,
        reference,
        preprocessing,
        pooling=settings.pooling,
        device=settings.device,
        dtype=settings.dtype,
        precision=settings.precision,
        backend=settings.backend,
        spread=spread,
        rope=settings.rope,
        int8=int8,
        compiled=settings.compiled,
        say=say,
    )
    encoder.notes = (*notes, *encoder.notes)
    return encoder
