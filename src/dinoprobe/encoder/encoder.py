"""`Encoder`: the frozen model, its preprocessing and the fingerprint of what it computes."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, final

from dinoprobe.catalog import SAT493M_MEAN, SAT493M_STD, is_satellite
from dinoprobe.encoder.load import load_model, read_json, weights_digest
from dinoprobe.encoder.placement import choose_device, choose_dtype
from dinoprobe.encoder.pooling import Pooling, choose_pooling, pool
from dinoprobe.encoder.reference import EncoderReference, locate
from dinoprobe.errors import EncoderError, FormatError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.preprocess import Preprocessing

_FINGERPRINT_VERSION = 1
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
)


@final
class Encoder:
    """A frozen DINOv3 model. Make one with `Encoder.from_pretrained`.

    `notes` are sentences for the user, such as a correction of the checkpoint's statistics.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocessing: Preprocessing,
        *,
        reference: EncoderReference,
        digest: str,
        pooling: Pooling,
    ) -> None:
        config: Any = model.config
        parameter = next(model.parameters())
        self.model = model
        self.preprocessing = preprocessing
        self.reference = reference
        self.weights_digest = digest
        self.pooling = pooling
        self.model_type = str(config.model_type)
        self.device = parameter.device
        self.dtype = parameter.dtype
        self.notes: tuple[str, ...] = ()
        self._skip = 1 + int(getattr(config, "num_register_tokens", 0))
        width = config.hidden_sizes[-1] if self._is_convnext else config.hidden_size
        self.dimension = int(width) * (2 if pooling == "cls+mean" else 1)

    @classmethod
    def from_pretrained(
        cls,
        name: str | EncoderReference,
        *,
        pooling: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        preprocessing: Preprocessing | None = None,
    ) -> Encoder:
        """The encoder of this name: a short name, a hub id (`owner/name@revision`), a folder, or
        `builtin`.

        `preprocessing` replaces the checkpoint's own (see `default_preprocessing`). Raises
        EncoderNotFoundError, AccessError, EncoderError or ConfigurationError.
        """
        reference = name if isinstance(name, EncoderReference) else locate(name)
        config = read_json(reference.folder / "config.json")
        target = choose_device(device)
        own, notes = default_preprocessing(reference)
        model = load_model(reference.folder, choose_dtype(dtype, target))
        encoder = cls(
            move(model, target),
            preprocessing or own,
            reference=reference,
            digest=weights_digest(reference.folder),
            pooling=choose_pooling(pooling, str(config["model_type"])),
        )
        encoder.notes = notes
        return encoder

    @property
    def _is_convnext(self) -> bool:
        return self.model_type == "dinov3_convnext"

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

        from dinoprobe.preprocess import to_pixel_values

        with torch.inference_mode(), _full_float32(self.device):
            pixels = to_pixel_values(
                images, self.preprocessing, dtype=self.dtype, device=self.device
            )
            output = self.model(pixel_values=pixels)
            rows = pool(output.last_hidden_state, output.pooler_output, self._skip, self.pooling)
            features: npt.NDArray[np.float32] = rows.cpu().numpy()
        return features

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


def default_preprocessing(
    reference: EncoderReference,
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The checkpoint's own preprocessing, corrected where the hub's file is known to be wrong.

    A folder without preprocessor_config.json gets the DINOv3 processor's defaults.
    """
    from dataclasses import replace

    from dinoprobe.preprocess import Preprocessing

    path = reference.folder / "preprocessor_config.json"
    config = read_json(path) if path.exists() else {}
    own = Preprocessing.from_config(config, patch_size=patch_size(reference))
    notes = [] if config else [f"{reference.name}: no preprocessor_config.json; DINOv3's defaults."]
    if is_satellite(reference.name):
        own = replace(own, mean=SAT493M_MEAN, std=SAT493M_STD)
        notes.append(f"{reference.name}: normalised with the SAT-493M statistics.")
    return own, tuple(notes)


def patch_size(reference: EncoderReference) -> int:
    """Pixels that one patch covers on a side: sizes are multiples of it. 32 for ConvNeXt."""
    config = read_json(reference.folder / "config.json")
    size = config.get("patch_size", 32)
    size = size[0] if isinstance(size, list) and size else size
    if not isinstance(size, int) or size < 1:
        msg = f"{reference.folder}/config.json: patch_size is {size!r}, expected a whole number."
        raise FormatError(msg)
    return size
