"""`Encoder`: the frozen model, its preprocessing and the fingerprint of what it computes."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, final

from dinoprobe.encoder.defaults import default_preprocessing, patch_size
from dinoprobe.encoder.forward import Forward, copies_of_weights
from dinoprobe.encoder.load import Source, load_model, open_source
from dinoprobe.encoder.placement import (
    Spread,
    choose_device,
    choose_dtype,
    gigabytes,
    model_bytes,
    refuse_too_large,
)
from dinoprobe.encoder.pooling import Pooling, choose_pooling
from dinoprobe.encoder.reference import EncoderReference, locate
from dinoprobe.encoder.rope import ROPES, set_rope
from dinoprobe.errors import ConfigurationError, EncoderError
from dinoprobe.preprocess.contract import check_patches

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.preprocess import Preprocessing

_FINGERPRINT_VERSION = 2
_SAID_BYTES = 1_000_000_000  # models above this size say what they need before they are loaded
# What of config.json changes a feature without changing a tensor's name or shape.
_ARCHITECTURE = (
    "depths",
    "hidden_act",
    "hidden_sizes",
    "hidden_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "num_register_tokens",
    "patch_size",
    "rope_theta",
    "use_gated_mlp",
    "use_swiglu_ffn",
)


@final
class Encoder:
    """A frozen image model. Make one with `Encoder.from_pretrained`.

    `notes` are sentences for the user, such as a correction of the checkpoint's statistics.
    `is_spread` says that accelerate moves its weights while it runs: one batch at a time then.
    `tokens_before_patches` counts CLS and registers: the patch tokens start at this position.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocessing: Preprocessing,
        *,
        source: Source,
        reference: EncoderReference,
        pooling: Pooling,
        rope: str = "float32",
    ) -> None:
        config: Any = model.config
        self.model = model
        self.preprocessing = preprocessing
        self.reference = reference
        self.family = source.family
        self.weights_digest = source.digest
        self.pooling = pooling
        self.rope = rope
        self.device, self.is_spread = input_device(model)
        self.dtype = next(model.parameters()).dtype
        self.notes: tuple[str, ...] = ()
        self.tokens_before_patches = self.family.tokens_before_patches(config)
        self._forward = Forward(model, self.family, pooling, is_spread=self.is_spread)
        self.dimension = self.family.width(config) * (2 if pooling == "cls+mean" else 1)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] | EncoderReference,
        *,
        pooling: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        preprocessing: Preprocessing | None = None,
        spread: Spread | str | None = None,
        rope: str = "float32",
        say: Callable[[str], None] = lambda _: None,
    ) -> Encoder:
        """The encoder of this name: a short name, a hub id (`owner/name@revision`), `timm:NAME`, a
        folder, a .safetensors file, a .pth file that was imported, or `builtin`.

        `preprocessing` replaces the checkpoint's own (see `default_preprocessing`). `spread` puts a
        large model on several devices, in place of `device`: `"auto"`, or a `Spread` with limits.
        `rope` is `meta-bf16` for the rounded position frequencies of Meta's own files (see
        `encoder.rope`). `say` gets sentences while it loads. Raises EncoderNotFoundError,
        AccessError, EncoderError or ConfigurationError.
        """
        reference = name if isinstance(name, EncoderReference) else locate(name, say=say)
        source = open_source(reference)
        notes = source.notes
        if preprocessing is None:
            preprocessing, notes = default_preprocessing(reference, source)
        encoder = cls.from_source(
            source,
            reference,
            preprocessing,
            pooling=pooling,
            device=device,
            dtype=dtype,
            spread=spread,
            rope=rope,
            say=say,
        )
        encoder.notes = notes
        return encoder

    @classmethod
    def from_source(
        cls,
        source: Source,
        reference: EncoderReference,
        preprocessing: Preprocessing,
        **options: Any,
    ) -> Encoder:
        """As `from_pretrained`, for a checkpoint that was opened, with the same options."""
        check_patches(preprocessing.size, patch_size(source))
        rope = options.get("rope", "float32")
        if rope not in ROPES or (rope != "float32" and source.family.model_type != "dinov3_vit"):
            msg = (
                f"rope '{rope}' can not be used here. Use {' or '.join(ROPES)} (the latter: ViTs)."
            )
            raise ConfigurationError(msg)
        pooling = choose_pooling(options.get("pooling", "auto"), source.family.model_type)
        model = _placed(source, reference.name, options)
        set_rope(model, rope)
        return cls(
            model, preprocessing, source=source, reference=reference, pooling=pooling, rope=rope
        )

    @property
    def model_type(self) -> str:
        """The architecture, by transformers' word for it."""
        return self.family.model_type

    @property
    def precision(self) -> str:
        """`float32`, `bfloat16` or `float16`: part of the fingerprint."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """What loads the same weights again: a name, or a hub id with the commit."""
        reference = self.reference
        return f"{reference.name}@{reference.commit}" if reference.commit else reference.name

    @property
    def description(self) -> dict[str, Any]:
        """Everything that changes the numbers of a feature, as JSON values."""
        return {
            "version": _FINGERPRINT_VERSION,
            "model_type": self.model_type,
            "architecture": architecture(self.model.config),
            "weights_digest": self.weights_digest,
            "rope": self.rope,
            "preprocessing": self.preprocessing.to_dict(),
            "pooling": self.pooling,
            "precision": self.precision,
        }

    @property
    def fingerprint(self) -> str:
        """32 hex digits over `description`."""
        canonical = json.dumps(self.description, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """Features `(n, dimension)` float32 of images `(n, 3, height, width)` as `prepare` gives
        them: uint8, or float32 in the exact mode.
        """
        import torch

        with torch.inference_mode(), _full_float32(self.device):
            images = images.to(self.device, non_blocking=True)
            rows = self._forward(images, self.preprocessing)
            features: npt.NDArray[np.float32] = rows.cpu().numpy()
        return features

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """All tokens `(n, before + patches, width)` after the last norm, by transformers' model."""
        with _full_float32(self.device):
            return self._forward.tokens(pixel_values)

    def parameters_digest(self) -> str:
        """SHA-256 in hex over all parameters and buffers: unchanged for as long as it is frozen."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()


def _placed(source: Source, name: str, options: Mapping[str, Any]) -> torch.nn.Module:
    """The frozen model where it is to run, after checking that its weights fit there."""
    spread: Spread | str | None = options.get("spread")
    spread = Spread(spread) if isinstance(spread, str) else spread
    say: Callable[[str], None] = options.get("say", lambda _: None)
    device = choose_device(options.get("device", "auto"))
    dtype = choose_dtype(options.get("dtype", "auto"), device)
    precision = str(dtype).removeprefix("torch.")
    once = model_bytes(source.parameters, precision)
    copies = 1 if spread is not None else copies_of_weights(once, source.family, device)
    if copies * once >= _SAID_BYTES:
        where = "several devices" if spread is not None else str(device)
        millions = f"{source.parameters / 1e6:,.0f} million parameters"
        twice = " for two copies" if copies == 2 else ""
        say(f"{name}: {millions}, {gigabytes(copies * once)} in {precision}{twice}, on {where}")
    if spread is not None:
        return load_model(source, dtype, spread)
    refuse_too_large(name, source.parameters, precision, device, copies=copies)
    return move(load_model(source, dtype), device)


def input_device(model: torch.nn.Module) -> tuple[torch.device, bool]:
    """Where pixel values go, and whether accelerate has spread the model over several places."""
    import torch

    places = getattr(model, "hf_device_map", None)
    if not places or (set(places) == {""} and places[""] != "disk"):
        return next(model.parameters()).device, False
    first = next((place for place in places.values() if place not in {"cpu", "disk"}), "cpu")
    return torch.device(first), True


def architecture(config: object) -> dict[str, Any]:
    """The settings of the model that change its features, as JSON values."""
    values = {name: getattr(config, name, None) for name in _ARCHITECTURE}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def move(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model on the device. Raises EncoderError where its memory does not suffice."""
    try:
        return model.to(device)
    except RuntimeError as error:
        size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
        msg = f"the model ({size:.1f} GB) can not be put on {device} ({error}). Use --device cpu."
        raise EncoderError(msg) from error


def _full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions without TF32 on CUDA, where it is cuDNN's default: float32 means float32."""
    import torch

    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags
