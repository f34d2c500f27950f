"""`Encoder`: the frozen model, its preprocessing and the fingerprint of what it computes."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from dinoprobe.encoder.backends.choice import (
    DTYPE_OF_CLASS,
    Choice,
    candidates,
    check_options,
    refuse_unfolded,
)
from dinoprobe.encoder.backends.selftest import first_sound
from dinoprobe.encoder.defaults import default_preprocessing, patch_size
from dinoprobe.encoder.forward import Forward, bytes_in_memory, can_fold, may_fold
from dinoprobe.encoder.load import Source, load_model, open_source
from dinoprobe.encoder.placement import (
    Spread,
    choose_device,
    choose_dtype,
    gigabytes,
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
    from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Int8:
    """A graph that was quantised: its folder, and the SHA-256 over its files."""

    folder: Path
    digest: str


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
        pooling: Pooling,
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
        self._int8 = int8
        self._forward = Forward(
            model,
            self.family,
            pooling,
            is_spread=self.is_spread,
            choice=choice or Choice("torch", own_precision(model)),
            identity=self._identity(),
            int8=int8.folder if int8 else None,
        )
        self.dimension = self.family.width(config) * (2 if pooling == "cls+mean" else 1)

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
        `encoder.rope`). `int8` is a graph that was calibrated before, for that precision. `say`
        gets sentences while it loads. Raises EncoderNotFoundError, AccessError, EncoderError or
        ConfigurationError.
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
        pooling = choose_pooling(options.get("pooling", "auto"), source.family.model_type)
        asked = Asked.of(options)
        model, choices = _placed(source, reference.name, options, asked)
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

        forward = self._forward
        if not forward.is_folded or asked.dtype != "auto":
            return
        with torch.inference_mode(), _full_float32(self.device):
            chosen = first_sound(
                forward.plan(self.preprocessing),
                choices,
                lambda images: forward.plain(images, self.preprocessing),
                asked=asked.backend != "auto" or asked.precision != "auto",
            )
        forward.choice = chosen.choice
        if chosen.built is not None:
            forward.keep(chosen.built, self.preprocessing)
        self.notes = (*self.notes, *chosen.notes)

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
        described = {
            "version": _FINGERPRINT_VERSION,
            **self._identity(),
            "preprocessing": self.preprocessing.to_dict(),
            "pooling": self.pooling,
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

    def int8_folder(self, purpose: str) -> Path:
        """Where this encoder's int8 graph for this purpose is kept. Raises MissingExtraError."""
        from dinoprobe.encoder.backends.int8 import int8_folder

        return int8_folder(self._forward.plan(self.preprocessing), purpose)

    def quantize(self, images: torch.Tensor, folder: Path) -> None:
        """Write the int8 graph into `folder`, calibrated on `images` as `prepare` gives them."""
        from dinoprobe.encoder.backends.int8 import quantize

        quantize(self._forward.plan(self.preprocessing), images, folder)

    @property
    def int8(self) -> Int8 | None:
        """The graph that runs in int8, which a saved classifier takes along."""
        return self._int8

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


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user named of backend, precision and type."""

    backend: str
    precision: str
    dtype: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Asked:
        """From the options of `Encoder.from_source`. Raises ConfigurationError."""
        names = (options.get(name, "auto") for name in ("backend", "precision", "dtype"))
        asked = cls(*map(str, names))
        check_options(asked.backend, asked.precision, asked.dtype)
        return asked

    def choices(
        self, source: Source, device: torch.device, *, folds: bool, has_int8: bool
    ) -> list[Choice]:
        """What to try, the best first. A model that is not folded runs in one way."""
        if self.dtype == "float16" or not folds:
            refuse_unfolded(self.backend, self.precision, device)
            name = DTYPE_OF_CLASS[self.precision] if self.precision != "auto" else self.dtype
            dtype = choose_dtype(name, device)
            return [Choice("torch", str(dtype).removeprefix("torch."))]
        return candidates(
            self.backend,
            self.precision,
            self.dtype,
            parameters=source.parameters,
            on_cpu=device.type == "cpu",
            has_int8=has_int8,
        )


def _placed(
    source: Source, name: str, options: Mapping[str, Any], asked: Asked
) -> tuple[torch.nn.Module, list[Choice]]:
    """The frozen model where it is to run, after checking that its weights fit there; and what may
    run it.

    A model that is to be folded is loaded in float32: the folded weights are rounded once.
    """
    import torch

    spread: Spread | str | None = options.get("spread")
    spread = Spread(spread) if isinstance(spread, str) else spread
    say: Callable[[str], None] = options.get("say", lambda _: None)
    device = choose_device(options.get("device", "auto"))
    choose_dtype(asked.dtype, device)
    folds = spread is None and may_fold(source.parameters, source.family, device)
    has_int8 = options.get("int8") is not None
    choices = asked.choices(source, device, folds=folds, has_int8=has_int8)
    precision = choices[0].precision
    needed, twice = bytes_in_memory(
        source.parameters, source.family, device if spread is None else torch.device("meta"),
        precision,
    )  # fmt: skip
    if needed >= _SAID_BYTES:
        where = "several devices" if spread is not None else str(device)
        millions = f"{source.parameters / 1e6:,.0f} million parameters"
        copies = " for two copies" if twice else ""
        say(f"{name}: {millions}, {gigabytes(needed)} in {precision}{copies}, on {where}")
    dtype = getattr(torch, precision) if not folds else torch.float32
    if spread is not None:
        return load_model(source, dtype, spread), choices
    refuse_too_large(name, source.parameters, precision, device, needed=needed if twice else None)
    model = move(load_model(source, dtype), device)
    if folds and not can_fold(model, source.family):  # for a setting of its config.json
        choices = asked.choices(source, device, folds=False, has_int8=has_int8)
        model = model.to(getattr(torch, choices[0].precision))
    return model, choices


def own_precision(model: torch.nn.Module) -> str:
    """The type of its parameters: `float32`, `bfloat16`, `float16`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


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
