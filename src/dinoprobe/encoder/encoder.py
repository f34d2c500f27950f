"""`Encoder`: the frozen model, its preprocessing and the fingerprint of what it computes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, final

from dinoprobe.catalog import SAT493M_MEAN, SAT493M_STD, is_satellite
from dinoprobe.encoder.load import load_model, read_json, weights_digest
from dinoprobe.encoder.placement import choose_device, choose_dtype
from dinoprobe.encoder.pooling import Pooling, choose_pooling, pool
from dinoprobe.encoder.reference import EncoderReference, locate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.preprocess import Preprocessing

_FINGERPRINT_VERSION = 1


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
        name: str,
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
        reference = locate(name)
        config = read_json(reference.folder / "config.json")
        target = choose_device(device)
        own, notes = default_preprocessing(reference)
        model = load_model(reference.folder, choose_dtype(dtype, target))
        encoder = cls(
            model.to(target),
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

        with torch.inference_mode():
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
    return int(size if isinstance(size, int) else size[0])
