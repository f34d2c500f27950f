"""Tensors named as Meta or timm name them, to transformers' names: pure functions on a mapping.

The configuration comes from the tensors and not from a file's name. Strict: each tensor is mapped,
or left out for a stated reason; one that is unknown, missing or misshapen is an error, for a model
with one wrong tensor still gives features.

    meta          facebookresearch/dinov3's files: blocks.N.attn.qkv, storage_tokens, ls1.gamma
    timm          timm's copies: blocks.N.attn.qkv, reg_token, gamma_1; stem.0, stages.N.blocks.M
    transformers  embeddings.cls_token, model.layer.N (before 5.0: layer.N), model.stages.N
"""

from dinoprobe.encoder.formats.convert import Converted, convert
from dinoprobe.encoder.formats.layouts import Format, canonical_name, detect
from dinoprobe.encoder.formats.timm_model import TimmModel, to_timm

__all__ = ["Converted", "Format", "TimmModel", "canonical_name", "convert", "detect", "to_timm"]
