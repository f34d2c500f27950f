"""Images to features by the folded model where there is one, else by transformers' own.

The folded model is made at the first batch, for the size and type of its images, and shared by all
threads. It is a second copy of the weights, so models above 4 GB run as transformers has them.
"""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from dinoprobe.encoder.pooling import Pooling, pool

if TYPE_CHECKING:
    import torch

    from dinoprobe.encoder.families import Family
    from dinoprobe.preprocess import Preprocessing

MAX_FOLDED_BYTES = 4_000_000_000
# Architectures that it is written for, with the activations that it knows.
_ACTIVATIONS = {
    "dinov3_vit": frozenset({"gelu", "silu"}),
    "dinov3_convnext": frozenset({"gelu"}),
}


@final
class Forward:
    """Called with images as `prepare` gives them, on the model's device, from several threads."""

    def __init__(
        self, model: torch.nn.Module, family: Family, pooling: Pooling, *, is_spread: bool
    ) -> None:
        self.model = model
        self.family = family
        self.pooling = pooling
        self.is_folded = not is_spread and can_fold(model, family)
        self._made: dict[Any, torch.nn.Module] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made anew: packed weights and locks do not travel."""
        kept = {name: value for name, value in vars(self).items() if name != "_lock"}
        return {**kept, "_made": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def __call__(self, images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
        """Features `(n, dimension)` float32 of `(n, 3, height, width)`: uint8, or float32 from 0 to
        1.
        """
        if self.is_folded:
            rows: torch.Tensor = self._folded(images, preprocessing)(images)
            return rows
        return self._plain(images, preprocessing)

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """All tokens `(n, before + patches, width)` by transformers' own model, after the last
        norm.
        """
        output = self.model(pixel_values=pixel_values, **self.family.forward_options)
        tokens: torch.Tensor = output.last_hidden_state
        return tokens

    def _plain(self, images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
        from dinoprobe.preprocess import to_pixel_values

        parameter = next(self.model.parameters())
        pixels = to_pixel_values(images, preprocessing, dtype=parameter.dtype, device=images.device)
        tokens = self.tokens(pixels)
        before = self.family.tokens_before_patches(self.model.config)
        return pool(tokens, tokens[:, 0], before, self.pooling)

    def _folded(self, images: torch.Tensor, preprocessing: Preprocessing) -> torch.nn.Module:
        """The module for these images; the last one is kept, for a run has one size."""
        import torch

        from dinoprobe.encoder.optimized import can_pack, fold

        height, width = images.shape[-2:]
        exact = images.dtype != torch.uint8
        arithmetic: Any = "exact" if exact else "uint8"
        wanted = replace(
            preprocessing, size=(height, width), shortest_edge=None, arithmetic=arithmetic
        )
        dtype = next(self.model.parameters()).dtype
        with self._lock:
            if wanted not in self._made:
                made = fold(
                    self.model,
                    self.family.model_type,
                    wanted,
                    pooling=self.pooling,
                    dtype=dtype,
                    packed=can_pack(images.device, dtype),
                )
                self._made = {wanted: made}
            return self._made[wanted]


def can_fold(model: torch.nn.Module, family: Family) -> bool:
    """Whether the folded forward is written for this model, on a CPU and of this size.

    Never a matter of the memory that happens to be free: in half precision the two forwards differ
    by rounding, and one store should hold features of one.
    """
    config: Any = model.config
    if config.hidden_act not in _ACTIVATIONS.get(family.model_type, frozenset()):
        return False
    if not isinstance(getattr(config, "patch_size", 1), int):
        return False
    parameters = list(model.parameters())
    size = sum(parameter.nbytes for parameter in parameters)
    return parameters[0].device.type == "cpu" and size <= MAX_FOLDED_BYTES


def copies_of_weights(model_bytes: int, family: Family, device: torch.device) -> int:
    """How many times the weights will be in memory: twice where the model is folded."""
    folds = family.model_type in _ACTIVATIONS and device.type == "cpu"
    return 2 if folds and model_bytes <= MAX_FOLDED_BYTES else 1
