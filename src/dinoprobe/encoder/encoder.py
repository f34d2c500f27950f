"""`Encoder`: the frozen model, its preprocessing and the fingerprint of what it computes."""

from __future__ import annotations

import hashlib
import json
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

from dinoprobe.encoder.backends.choice import Choice
from dinoprobe.encoder.backends.selftest import first_sound
from dinoprobe.encoder.defaults import default_preprocessing, patch_size
from dinoprobe.encoder.devices import full_float32, input_device, own_stream
from dinoprobe.encoder.forward import Forward
from dinoprobe.encoder.load import Source, open_source
from dinoprobe.encoder.opening import Asked, own_precision, placed
from dinoprobe.encoder.pooling import choose_pooling
from dinoprobe.encoder.reference import EncoderReference, locate
from dinoprobe.encoder.rope import ROPES, set_rope
from dinoprobe.errors import ConfigurationError, EncoderError
from dinoprobe.pooling import columns_of, parts_of, pooled_fingerprint, sub_poolings
from dinoprobe.preprocess.contract import check_patches

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.encoder.placement import Spread
    from dinoprobe.preprocess import Preprocessing

_FINGERPRINT_VERSION = 3
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


@dataclass(frozen=True, slots=True)
class Int8:
    """A graph that was quantised: its folder, the SHA-256 over its files, and the pooling that it
    computes, where that is not the one that was asked for.
    """

    folder: Path
    digest: str
    pooling: str | None = None


@final
class Encoder:
    """A frozen image model. Make one with `Encoder.from_pretrained`.

    `notes` are sentences for the user, such as a correction of the checkpoint's statistics.
    `backend` is what runs it, `dtype` the type it computes in; `model` may hold another one.
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
        pooling: str,
        rope: str = "float32",
        choice: Choice | None = None,
        int8: Int8 | None = None,
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
        self.notes: tuple[str, ...] = ()
        self.tokens_before_patches = self.family.tokens_before_patches(config)
        self._int8 = int8 and replace(int8, pooling=int8.pooling or pooling)
        self._asked: Asked | None = None
        self._forward = Forward(
            model,
            self.family,
            (self._int8 and self._int8.pooling) or pooling,
            is_spread=self.is_spread,
            choice=choice or Choice("torch", own_precision(model)),
            identity=self._identity(),
            int8=int8.folder if int8 else None,
        )

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - each is a choice of the user's
        cls,
        name: str | os.PathLike[str] | EncoderReference,
        *,
        pooling: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        precision: str = "auto",
        backend: str = "auto",
        preprocessing: Preprocessing | None = None,
        spread: Spread | str | None = None,
        rope: str = "float32",
        int8: Int8 | None = None,
        compiled: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> Encoder:
        """The encoder of this name: a short name, a hub id (`owner/name@revision`), `timm:NAME`, a
        folder, a .safetensors file, a .pth file that was imported, or `builtin`.

        `precision` is a class: `exact`, `bf16`, `int8`, or `auto`, which on a CPU with bfloat16
        arithmetic is `bf16` for all but small models. `backend` is `torch`, `openvino`,
        `onnxruntime` or `auto`. Both are tested against plain float32 before they are used;
        `dtype` sets the type itself, without that test.

        `preprocessing` replaces the checkpoint's own (see `default_preprocessing`). `spread` puts a
        large model on several devices, in place of `device`: `"auto"`, or a `Spread` with limits.
        `rope` is `meta-bf16` for the rounded position frequencies of Meta's own files (see
        `encoder.rope`). `int8` is a graph that was calibrated before, for that precision.
        `compiled` has torch compile each layer. `say` gets sentences while it loads. Raises
        EncoderNotFoundError, AccessError, EncoderError or ConfigurationError.
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
            precision=precision,
            backend=backend,
            spread=spread,
            rope=rope,
            int8=int8,
            compiled=compiled,
            say=say,
        )
        encoder.notes = (*notes, *encoder.notes)
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
        family = source.family
        depth = family.depth(source.config)
        pooling = choose_pooling(options.get("pooling", "auto"), family.model_type, depth)
        asked = Asked.of(options)
        model, choices = placed(source, reference.name, options, asked)
        set_rope(model, rope)
        encoder = cls(
            model,
            preprocessing,
            source=source,
            reference=reference,
            pooling=pooling,
            rope=rope,
            choice=choices[0],
            int8=options.get("int8"),
        )
        encoder._settle(choices, asked)
        return encoder

    def _settle(self, choices: list[Choice], asked: Asked) -> None:
        """Run by the first choice that passes its test; with a dtype there is none."""
        import torch

        forward, self._asked = self._forward, asked
        if not forward.is_folded or asked.dtype != "auto":
            return
        with torch.inference_mode(), full_float32(self.device):
            chosen = first_sound(
                forward.plan(self.preprocessing),
                choices,
                lambda images: forward.plain(images.to(self.device), self.preprocessing),
                asked=asked.backend != "auto" or asked.precision != "auto",
            )
        forward.choice = chosen.choice
        if chosen.built is not None:
            forward.keep(chosen.built, self.preprocessing)
        self.notes = (*self.notes, *chosen.notes)

    def with_pooling(self, pooling: str) -> Encoder:
        """The same model with another pooling (see `from_pretrained`), without loading it again.

        Where this encoder computes all parts of it, the other one runs the same and takes columns,
        so its features are those that `Features.pooled` gives. Otherwise it has a forward of its
        own, tested as this one was. Raises ConfigurationError, and EncoderError where the test is
        not passed.
        """
        config: Any = self.model.config
        depth = self.family.depth(config.to_dict())
        other, computed = copy(self), self._forward.pooling
        other.pooling = choose_pooling(pooling, self.model_type, depth)
        if other.pooling in sub_poolings(computed):
            return other
        if self._int8:  # its graph can not compute more: this raises
            columns_of(computed, other.pooling, self.dimension)
        other._begin_anew()  # noqa: SLF001 - of this very class
        return other

    def _begin_anew(self) -> None:
        """A forward for the pooling that was changed, by what ran before, under the same test."""
        self._forward = self._forward.with_pooling(self.pooling)
        if self._asked is not None:
            self._settle([self._forward.choice], self._asked)

    @property
    def dimension(self) -> int:
        """Numbers in a row of features."""
        return self.family.width(self.model.config) * len(parts_of(self.pooling))

    @property
    def model_type(self) -> str:
        """The architecture, by transformers' word for it."""
        return self.family.model_type

    @property
    def precision(self) -> str:
        """`float32`, `bfloat16`, `float16` or `int8`: part of the fingerprint."""
        return self._forward.choice.precision

    @property
    def backend(self) -> str:
        """`torch`, `openvino` or `onnxruntime`: no part of the fingerprint, for the class holds."""
        return self._forward.choice.backend

    @property
    def dtype(self) -> torch.dtype:
        """The type that products are computed in; of an int8 graph, what is left of them."""
        import torch

        name = "bfloat16" if self.precision == "int8" else self.precision
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    @property
    def name(self) -> str:
        """What loads the same weights again: a name, or a hub id with the commit."""
        reference = self.reference
        return f"{reference.name}@{reference.commit}" if reference.commit else reference.name

    @property
    def description(self) -> dict[str, Any]:
        """Everything that changes the numbers of a feature, as JSON values."""
        return {**self._base(), "pooling": self.pooling}

    def _base(self) -> dict[str, Any]:
        described = {
            "version": _FINGERPRINT_VERSION,
            **self._identity(),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": self.precision,
        }
        return {**described, "int8_digest": self._int8.digest} if self._int8 else described

    def _identity(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "architecture": architecture(self.model.config),
            "weights_digest": self.weights_digest,
            "rope": self.rope,
        }

    @property
    def base_fingerprint(self) -> str:
        """32 hex digits over `description` without the pooling: rows of one store's table."""
        canonical = json.dumps(self._base(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    @property
    def fingerprint(self) -> str:
        """32 hex digits over `description`."""
        return pooled_fingerprint(self.base_fingerprint, self.pooling)

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """Features `(n, dimension)` float32 of images `(n, 3, height, width)` as `prepare` gives
        them: uint8, or float32 in the exact mode.
        """
        import torch

        with torch.inference_mode(), full_float32(self.device), own_stream(self.device):
            if self.device.type == "cuda":
                images = images.pin_memory()  # from such memory a copy goes on beside the products
            images = images.to(self.device, non_blocking=True)
            rows = self._own(self._forward(images, self.preprocessing))
            features: npt.NDArray[np.float32] = rows.cpu().numpy()
        return features

    def plain(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of normalised pixel values by transformers' model, in its own precision."""
        with full_float32(self.device):
            return self._own(self._forward.pooled(pixel_values))

    def _own(self, rows: torch.Tensor) -> torch.Tensor:
        """The columns of this pooling, of a forward that may compute more."""
        computed = self._forward.pooling
        if computed == self.pooling:
            return rows
        return rows[:, columns_of(computed, self.pooling, rows.shape[1])].contiguous()

    def portable(self) -> torch.nn.Module:
        """A module in float32 from images as `encode` takes them to features, to trace and export.

        Raises EncoderError for a model that is spread over devices, or held in half precision.
        """
        from dinoprobe.encoder.portable import portable

        held = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        if self.is_spread or self.device.type != "cpu" or held != "float32":
            msg = (
                f"the encoder holds {held} on {self.device}, and an export is made from float32 "
                "in one place. Load the classifier with device='cpu', without --device-map."
            )
            raise EncoderError(msg)
        return portable(self._forward.with_pooling(self.pooling), self.preprocessing)

    def int8_folder(self, purpose: str) -> Path:
        """Where this encoder's int8 graph for this purpose is kept. Raises MissingExtraError."""
        from dinoprobe.encoder.backends.int8 import int8_folder

        return int8_folder(self._forward.plan(self.preprocessing), purpose)

    def quantize(self, images: torch.Tensor, folder: Path) -> Int8:
        """The int8 graph, calibrated on `images` as `prepare` gives them and written to `folder`.

        Nothing judges it here.
        """
        from dinoprobe.encoder.backends.int8 import graph_digest, quantize

        quantize(self._forward.plan(self.preprocessing), images, folder)
        return Int8(folder, graph_digest(folder))

    @property
    def int8(self) -> Int8 | None:
        """The graph that runs in int8, which a saved classifier takes along."""
        return self._int8

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """All tokens `(n, before + patches, width)` after the last norm, by transformers' model."""
        with full_float32(self.device):
            return self._forward.tokens(pixel_values)

    def parameters_digest(self) -> str:
        """SHA-256 in hex over all parameters and buffers: unchanged for as long as it is frozen."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()


def architecture(config: object) -> dict[str, Any]:
    """The settings of the model that change its features, as JSON values."""
    values = {name: getattr(config, name, None) for name in _ARCHITECTURE}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
