"""The frozen image model with its preprocessing: load, place, encode, pool."""

from dinoprobe.encoder.encoder import Encoder
from dinoprobe.encoder.reference import EncoderReference, locate
from dinoprobe.encoder.settings import EncoderSettings, open_encoder

__all__ = ["Encoder", "EncoderReference", "EncoderSettings", "locate", "open_encoder"]
