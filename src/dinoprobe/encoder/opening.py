"""From the options of an encoder to a model on its device, and to what may run it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dinoprobe.encoder.backends.choice import (
    DTYPE_OF_CLASS,
    Choice,
    candidates,
    check_options,
    refuse_unfolded,
)
from dinoprobe.encoder.forward import bytes_in_memory, can_fold, may_fold
from dinoprobe.encoder.load import Source, load_model
from dinoprobe.encoder.placement import (
    Spread,
    choose_device,
    choose_dtype,
    gigabytes,
    refuse_too_large,
)
from dinoprobe.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

_SAID_BYTES = 1_000_000_000  # models above this size say what they need before they are loaded


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user named of backend, precision and type; and whether layers are compiled."""

    backend: str
    precision: str
    dtype: str
    compiled: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Asked:
        """From the options of `Encoder.from_source`. Raises ConfigurationError."""
        asked = cls(
            backend=str(options.get("backend", "auto")),
            precision=str(options.get("precision", "auto")),
            dtype=str(options.get("dtype", "auto")),
            compiled=bool(options.get("compiled", False)),
        )
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
            return [Choice("torch", str(dtype).removeprefix("torch."), self.compiled)]
        found = candidates(
            self.backend,
            self.precision,
            self.dtype,
            parameters=source.parameters,
            is_convnext=source.family.is_convnext,
            on_cpu=device.type == "cpu",
            has_int8=has_int8,
        )
        return [replace(choice, compiled=self.compiled) for choice in found]


def placed(
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


def move(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model on the device. Raises EncoderError where its memory does not suffice."""
    try:
        return model.to(device)
    except RuntimeError as error:
        size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
        msg = f"the model ({size:.1f} GB) can not be put on {device} ({error}). Use --device cpu."
        raise EncoderError(msg) from error
