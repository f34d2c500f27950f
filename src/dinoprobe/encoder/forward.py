"""Images to features by the folded model where there is one, else by transformers' own.

The folded model is made at the first batch, for the size and type of its images, and shared by all
threads. It is a second copy of the weights, so models above 4 GB run as transformers has them.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from dinoprobe.encoder.backends.graphs import Built, Plan, build, compile_layers
from dinoprobe.encoder.blocks import kept_cls
from dinoprobe.encoder.pooling import pool
from dinoprobe.errors import EncoderError
from dinoprobe.pooling import blocks_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from dinoprobe.encoder.backends.choice import Choice
    from dinoprobe.encoder.families import Family
    from dinoprobe.preprocess import Preprocessing

MAX_FOLDED_BYTES = 4_000_000_000  # of float32
# Architectures that it is written for, with the activations that it knows.
_ACTIVATIONS = {
    "dinov3_vit": frozenset({"gelu", "silu"}),
    "dinov3_convnext": frozenset({"gelu"}),
}
_FOLDING_DEVICES = frozenset({"cpu", "cuda"})


@final
class Forward:
    """Called with images as `prepare` gives them, on the model's device, from several threads.

    `choice` says what runs the folded model; `identity` names its weights, for graphs on disk.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family,
        pooling: str,
        *,
        is_spread: bool,
        choice: Choice,
        identity: Mapping[str, Any],
        int8: Path | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.pooling = pooling
        self.choice = choice
        self.identity = identity
        self.int8 = int8
        self.is_folded = not is_spread and can_fold(model, family)
        if choice.compiled and not self.is_folded:
            compile_layers(model)
        self._made: dict[Any, Built] = {}
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
            return self._built(images, preprocessing)(images)
        return self.plain(images, preprocessing)

    def tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """All tokens `(n, before + patches, width)` by transformers' own model, after the last
        norm.
        """
        output = self.model(pixel_values=pixel_values, **self.family.forward_options)
        tokens: torch.Tensor = output.last_hidden_state
        return tokens

    def plain(self, images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
        """The same features by transformers' own model, in the precision of its parameters."""
        from dinoprobe.preprocess import to_pixel_values

        parameter = next(self.model.parameters())
        pixels = to_pixel_values(images, preprocessing, dtype=parameter.dtype, device=images.device)
        return self.pooled(pixels)

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of pixel values that are normalised, by transformers' own model."""
        before = self.family.tokens_before_patches(self.model.config)
        earlier = max(blocks_of(self.pooling) - 1, 0)
        if not earlier:
            return pool(self.tokens(pixel_values), before, self.pooling)
        with kept_cls(self.model) as kept:
            tokens = self.tokens(pixel_values)
        norm = getattr(self.model, self.family.norm)
        if len(kept) <= earlier:
            msg = (
                f"pooling '{self.pooling}': {len(kept)} blocks gave their CLS, expected more than "
                f"{earlier}. Open the encoder with this pooling, or without --compile."
            )
            raise EncoderError(msg)
        rows = [norm(cls).to(tokens.device) for cls in kept[-1 - earlier : -1]]
        return pool(tokens, before, self.pooling, rows)

    def with_pooling(self, pooling: str) -> Forward:
        """The same model with another pooling; what runs it is built at the first batch."""
        other = copy(self)
        other.pooling = pooling
        return other

    def plan(self, preprocessing: Preprocessing) -> Plan:
        """What a backend needs to build its own."""
        return Plan(
            model=self.model,
            model_type=self.family.model_type,
            preprocessing=preprocessing,
            pooling=self.pooling,
            identity=self.identity,
            int8=self.int8,
        )

    def keep(self, built: Built, preprocessing: Preprocessing) -> None:
        """Take what was built for a test of this preprocessing."""
        self._made = {_wanted(preprocessing, preprocessing.size, preprocessing.arithmetic): built}

    def _built(self, images: torch.Tensor, preprocessing: Preprocessing) -> Built:
        """What runs these images; the last one is kept, for a run has one size."""
        import torch

        height, width = images.shape[-2:]
        arithmetic = "uint8" if images.dtype == torch.uint8 else "exact"
        wanted = _wanted(preprocessing, (height, width), arithmetic)
        with self._lock:
            if wanted not in self._made:
                self._made = {wanted: build(self.plan(wanted), self.choice)}
            return self._made[wanted]


def _wanted(preprocessing: Preprocessing, size: tuple[int, int], arithmetic: Any) -> Preprocessing:
    """What of the preprocessing is inside the folded model."""
    return replace(preprocessing, size=size, shortest_edge=None, arithmetic=arithmetic)


def can_fold(model: torch.nn.Module, family: Family) -> bool:
    """Whether the folded forward is written for this model, this device and this size.

    Never a matter of the memory that happens to be free: in half precision the two forwards differ
    by rounding, and one store should hold features of one.
    """
    config: Any = model.config
    if config.hidden_act not in _ACTIVATIONS.get(family.model_type, frozenset()):
        return False
    if not isinstance(getattr(config, "patch_size", 1), int):
        return False
    parameters = list(model.parameters())
    size = 4 * sum(parameter.numel() for parameter in parameters)
    return parameters[0].device.type in _FOLDING_DEVICES and size <= MAX_FOLDED_BYTES


def may_fold(parameters: int, family: Family, device: torch.device) -> bool:
    """The same before the model is loaded, but for settings of its config.json."""
    is_known = family.model_type in _ACTIVATIONS and device.type in _FOLDING_DEVICES
    return is_known and 4 * parameters <= MAX_FOLDED_BYTES


def bytes_in_memory(
    parameters: int, family: Family, device: torch.device, precision: str
) -> tuple[int, bool]:
    """Bytes of the weights as the encoder will hold them, and whether that is two copies: a folded
    model has one in float32 and one in `precision`.
    """
    size = {"float32": 4, "int8": 1}.get(precision, 2)
    if may_fold(parameters, family, device):
        return (4 + size) * parameters, True
    return size * parameters, False
