"""The conversion: rename, split, infer the settings, and compare with the model that they make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dinoprobe.encoder.formats.attention import split_attention
from dinoprobe.encoder.formats.configuration import convnext_config, head_width, vit_config
from dinoprobe.encoder.formats.layouts import LAYOUTS, Layout, detect, find_layout
from dinoprobe.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch

    Original = Callable[[str], str]

_PERIODS = ("rope_embed.periods", "rope.periods")
_SECOND_NORM = "norms."
_FETCH = "Fetch the file again, or give the checkpoint in the transformers format."


@dataclass(frozen=True, slots=True)
class Converted:
    """A checkpoint in transformers' terms.

    `config` holds JSON values for config.json, `tensors` views of those that came in wherever that
    is possible, `notes` sentences on what was left out.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def convert(
    tensors: Mapping[str, torch.Tensor], *, place: str, heads: int | None = None
) -> Converted:
    """The checkpoint with transformers' names. Each tensor is read once.

    `place` is for messages. `heads` is how many heads of attention a ViT has, where that is known:
    only Meta's files tell. Raises FormatError that names the tensor, what was found and what was
    expected.
    """
    layout = find_layout(tensors.keys())
    if layout is None:
        _refuse_unknown(tensors.keys(), place)
    names = list(tensors)
    original = partial(layout.original, present=names)
    if layout.is_convnext:
        converted = _convnext(tensors, layout, place, original)
    else:
        converted = _vit(tensors, layout, place, original, heads)
    _verify(converted, layout, place, original)
    return converted


def _vit(
    tensors: Mapping[str, torch.Tensor],
    layout: Layout,
    place: str,
    original: Original,
    heads: int | None,
) -> Converted:
    attention = split_attention(tensors, place)
    periods = [name for name in _PERIODS if name in tensors]
    skipped = {*attention.consumed, *periods}
    renamed, notes = _rename(tensors, layout, place, skipped=skipped)
    renamed |= attention.tensors
    notes += attention.notes
    head = None
    for name in periods:
        head = head_width(tensors[name], name, place)
        notes.append(f"{place}: left out {name}: transformers computes it anew, in float32.")
    _add_mask_token(renamed)
    if head is None and heads and "embeddings.cls_token" in renamed:
        head = renamed["embeddings.cls_token"].shape[-1] // heads
    return Converted(vit_config(renamed, head, place, original), renamed, tuple(notes))


def _convnext(
    tensors: Mapping[str, torch.Tensor], layout: Layout, place: str, original: Original
) -> Converted:
    second = {name: tensors[name] for name in tensors if name.startswith(_SECOND_NORM)}
    renamed, notes = _rename(tensors, layout, place, skipped=second.keys())
    config = convnext_config(renamed, place, original)
    last = f"{_SECOND_NORM}{len(config['depths']) - 1}."
    for name, tensor in second.items():
        if not name.startswith(last):
            _refuse_superfluous(name, tensor, layout, place)
        _merge_norm(renamed, name, tensor, place)
    return Converted(config, renamed, tuple(notes))


def _rename(
    tensors: Mapping[str, torch.Tensor], layout: Layout, place: str, *, skipped: Collection[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    found: dict[str, torch.Tensor] = {}
    dropped: dict[str, int] = {}
    for name in tensors:
        if name in skipped:
            continue
        new = layout.renamed(name)
        if new in found:
            msg = f"{place}: {name} is a second tensor for {new}, expected one. {_FETCH}"
            raise FormatError(msg)
        if new is not None:
            found[new] = _shaped(new, tensors[name])
        elif why := layout.reason_to_drop(name):
            dropped[why] = dropped.get(why, 0) + 1
        else:
            _refuse_superfluous(name, tensors[name], layout, place)
    notes = [f"{place}: left out {n} tensors: {why}." for why, n in dropped.items()]
    return found, notes


def _shaped(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Shapes that differ between layouts and mean the same: `(1, D)` masks, 1 x 1 convolutions."""
    if name == "embeddings.mask_token" and tensor.ndim == 2:
        return tensor[None]
    if ".pointwise_conv" in name and tensor.ndim == 4 and tensor.shape[-2:] == (1, 1):
        return tensor.flatten(1)
    return tensor


def _add_mask_token(renamed: dict[str, torch.Tensor]) -> None:
    """timm leaves it out: only pre-training reads it, and transformers wants it to be there."""
    if "embeddings.mask_token" not in renamed and "embeddings.cls_token" in renamed:
        import torch

        renamed["embeddings.mask_token"] = torch.zeros_like(renamed["embeddings.cls_token"])


def _merge_norm(
    renamed: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, place: str
) -> None:
    """Meta's ConvNeXt lists its last norm twice; the second stands in, or equals the first."""
    import torch

    part = name.rpartition(".")[2]
    first = renamed.setdefault(f"layer_norm.{part}", tensor)
    if not torch.equal(first, tensor):
        msg = f"{place}: {name} differs from norm.{part}; expected the same norm twice. {_FETCH}"
        raise FormatError(msg)


def _refuse_unknown(names: Collection[str], place: str) -> NoReturn:
    first = next(iter(names), "nothing")
    if detect(names) == "transformers":
        msg = (
            f"{place}: tensors are named as transformers does ({first}), expected Meta's or timm's "
            "names. Save them as model.safetensors beside a config.json, and give that folder."
        )
        raise FormatError(msg)
    nearest = max(LAYOUTS, key=lambda layout: len(set(layout.marks) & set(names)))
    absent = [mark for mark in nearest.marks if mark not in names]
    if 2 * len(absent) <= len(nearest.marks):
        msg = (
            f"{place}: no tensor {absent[0]}, expected in DINOv3 as {nearest.format} names it. "
            f"It is damaged, or another model. {_FETCH}"
        )
        raise FormatError(msg)
    marks = "; ".join(f"{entry.format}: {entry.marks[-1]}" for entry in LAYOUTS)
    msg = (
        f"{place}: {len(names)} tensors, first {first}, in no layout of DINOv3 that is known "
        f"here (they hold {marks}). {_FETCH}"
    )
    raise FormatError(msg)


def _refuse_superfluous(name: str, tensor: torch.Tensor, layout: Layout, place: str) -> NoReturn:
    msg = (
        f"{place}: tensor {name} {tuple(tensor.shape)} is not part of DINOv3 as {layout.format} "
        f"names it, expected such as {layout.marks[-1]}. {_FETCH}"
    )
    raise FormatError(msg)


def _verify(converted: Converted, layout: Layout, place: str, original: Original) -> None:
    """Compare names, shapes and types with transformers' own model of these settings."""
    expected, tensors = _expected(converted.config, place), converted.tensors
    if missing := sorted(expected.keys() - tensors.keys()):
        name = original(missing[0])
        shape = tuple(expected[missing[0]].shape)
        msg = (
            f"{place}: {len(missing)} tensors are missing, first {name}; expected one that gives "
            f"{missing[0]} {shape}. {_FETCH}"
        )
        raise FormatError(msg)
    if superfluous := sorted(tensors.keys() - expected.keys()):
        first = superfluous[0]
        _refuse_superfluous(original(first), tensors[first], layout, place)
    for name, tensor in tensors.items():
        found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
        if found != wanted or not tensor.is_floating_point():
            msg = (
                f"{place}: {original(name)} is {found} of {tensor.dtype} (as {name}), "
                f"expected {wanted} of floats. {_FETCH}"
            )
            raise FormatError(msg)


def _expected(config: dict[str, Any], place: str) -> dict[str, torch.Tensor]:
    """What transformers' model of these settings holds, without memory for its values."""
    import torch

    from dinoprobe.encoder.families import FAMILIES

    family = FAMILIES[config["model_type"]]
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with torch.device("meta"):
            model = family.model_class()(family.config_class()(**settings))
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        msg = f"{place}: its tensors make no DINOv3 ({reason}). {_FETCH}"
        raise FormatError(msg) from error
    state: dict[str, torch.Tensor] = model.state_dict()
    return state
