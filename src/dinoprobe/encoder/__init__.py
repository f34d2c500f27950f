"""The frozen image model with its preprocessing: load, place, encode, pool."""

from dinoprobe.encoder.encoder import Encoder, Int8
from dinoprobe.encoder.placement import Spread
from dinoprobe.encoder.reference import EncoderReference, locate
from dinoprobe.encoder.settings import EncoderPlace, EncoderSettings, open_encoder, spread_of

__all__ = [
    "Encoder",
    "EncoderPlace",
    "EncoderReference",
    "EncoderSettings",
    "Int8",
    "Spread",
    "locate",
    "open_encoder",
    "spread_of",
]
