"""Every source of weights, for every architecture, through the encoder to features.

The reference is not transformers where the source is another: Meta's and timm's tensors are run by
forward passes written for their layouts (tests/layouts.py), and pooled here by hand. Tolerance 2e-5
of the largest value: float32 sums in another order measured 1e-6; a swapped tensor, a register
among the patches or a wrong bias gives 1e-2 and more.

`make parity` writes docs/checkpoints.md's table from these checks.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests import layouts
from tests.checkpoints import PREPROCESSOR

from dinoprobe.catalog import CHECKPOINTS, IMAGENET_MEAN, IMAGENET_STD
from dinoprobe.encoder import Encoder
from dinoprobe.encoder.pth import import_pth
from dinoprobe.preprocess import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 2e-5
SIZES = ((224, 224), (256, 256), (160, 256))
# Whole where a forward pass takes a second; the others have the widths of the published ones.
DEPTHS: dict[str, int | tuple[int, ...]] = {
    "vitl16": 2, "vith16plus": 1, "vit7b16": 1,
    "convnext-small": (1, 1, 2, 1), "convnext-base": (1, 1, 2, 1), "convnext-large": (1, 1, 2, 1),
}  # fmt: skip
VITS, CONVNEXTS = tuple(layouts.VITS), tuple(layouts.CONVNEXTS)
UNBIASED = ("vit7b16",)


class Source(NamedTuple):
    """A form that weights come in: `write` puts it on disk and gives what `--encoder` takes."""

    label: str
    layout: str
    write: Callable[[Path, layouts.Tensors], str]


def _pth(folder: Path, tensors: layouts.Tensors) -> str:
    torch.save(tensors, folder / "weights.pth")
    return f"imported:{import_pth(folder / 'weights.pth').slug}"


def _file(folder: Path, tensors: layouts.Tensors) -> str:
    save_file(tensors, folder / "timm.safetensors")
    return str(folder / "timm.safetensors")


def _folder(
    folder: Path, tensors: layouts.Tensors, rename: Callable[[str], str], **more: Any
) -> str:
    """As transformers saves it, from tensors in Meta's layout; keys of either generation."""
    from dinoprobe.encoder.families import FAMILIES
    from dinoprobe.encoder.formats import convert

    converted = convert(tensors, place="here")
    family = FAMILIES[converted.config["model_type"]]
    settings = {k: v for k, v in converted.config.items() if k != "model_type"}
    model = family.model_class()(family.config_class()(**settings))
    model.load_state_dict(converted.tensors)
    model.save_pretrained(folder, **more)
    if not more:
        renamed = {rename(name): tensor for name, tensor in model.state_dict().items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**PREPROCESSOR, "size": {"height": 224, "width": 224}})
    )
    return str(folder)


def _old(name: str) -> str:
    return name.removeprefix("model.")


def _new(name: str) -> str:
    return f"model.{_old(name)}" if _old(name).startswith(("layer.", "stages.")) else name


SOURCES = {
    "hub-5": Source(
        "hub or folder, transformers 5 names", "meta", lambda f, t: _folder(f, t, _new)
    ),
    "hub-4": Source(
        "hub or folder, transformers 4 names", "meta", lambda f, t: _folder(f, t, _old)
    ),
    "hub-shards": Source(
        "hub or folder, sharded", "meta", lambda f, t: _folder(f, t, _new, max_shard_size="20MB")
    ),
    "pth": Source("Meta's .pth, imported", "meta", _pth),
    "timm-none": Source("timm, without q/k/v bias", "none", _file),
    "timm-separate": Source("timm, with q and v bias", "separate", _file),
    "timm-fused": Source("timm, with a fused bias", "fused", _file),
    "timm-convnext": Source("timm, ConvNeXt", "timm", _file),
}
CASES = [
    (source, name)
    for source, entry in SOURCES.items()
    for name in (*VITS, *CONVNEXTS)
    if not (source.startswith("timm") and (name in VITS) == (entry.layout == "timm"))
    and not (name in UNBIASED and entry.layout in {"separate", "fused"})
    and not (source in {"hub-4", "hub-shards"} and name in DEPTHS)
]


@cache
def shape(name: str) -> Any:
    """The shape that is tested: that of the published checkpoint, perhaps with fewer layers."""
    whole = layouts.VITS.get(name) or layouts.CONVNEXTS[name]
    depth = DEPTHS.get(name)
    if depth is None:
        return whole
    return whole.shallow(*depth) if isinstance(depth, tuple) else whole.shallow(depth)


def tensors_of(name: str, layout: str) -> layouts.Tensors:
    if name in VITS:
        if layout == "meta":
            return layouts.meta_vit(shape(name))
        return layouts.timm_vit(shape(name), biases=layout)  # type: ignore[arg-type]
    return (layouts.meta_convnext if layout == "meta" else layouts.timm_convnext)(shape(name))


def tokens_of(name: str, layout: str, tensors: layouts.Tensors, pixels: torch.Tensor) -> Any:
    """By the forward pass of this layout."""
    if name in VITS:
        forward = layouts.meta_vit_tokens if layout == "meta" else layouts.timm_vit_tokens
        return forward(tensors, pixels, shape(name).heads)
    convnext = layouts.meta_convnext_tokens if layout == "meta" else layouts.timm_convnext_tokens
    return convnext(tensors, pixels, shape(name).depths)


def by_hand(name: str, tokens: torch.Tensor) -> np.ndarray:
    """CLS and the mean of the patches, which start at 5 for a ViT and at 1 for a ConvNeXt."""
    first = 5 if name in VITS else 1
    rows: np.ndarray = torch.cat([tokens[:, 0], tokens[:, first:].mean(1)], dim=1).numpy()
    return rows


def record(source: str, name: str, worst: float) -> None:
    """Keep what was measured, where `make parity` asks for it."""
    place = os.environ.get("DINOPROBE_PARITY")
    if place:
        path = Path(place, f"{source}--{name}.json")
        path.write_text(json.dumps({"source": source, "name": name, "difference": worst}))


@pytest.mark.parametrize(("source", "name"), CASES, ids=[f"{s}-{n}" for s, n in CASES])
def test_features_are_those_of_the_source_itself(
    source: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    entry = SOURCES[source]
    tensors = tensors_of(name, entry.layout)
    folder = tmp_path / "weights"
    folder.mkdir()
    encoder = Encoder.from_pretrained(
        entry.write(folder, tensors),
        device="cpu",
        dtype="float32",
        backend="torch",
        pooling="cls+mean",
    )
    generator = torch.Generator().manual_seed(2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    worst = 0.0
    for size in SIZES:
        images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)
        encoder.preprocessing = Preprocessing(size=size)
        pixels = (images.float() / 255 - mean) / std
        expected = by_hand(name, tokens_of(name, entry.layout, tensors, pixels))
        worst = max(worst, np.abs(encoder.encode(images) - expected).max() / np.abs(expected).max())
    record(source, name, float(worst))
    assert worst < TOLERANCE


@pytest.mark.parametrize("name", [*VITS, *CONVNEXTS])
def test_the_shapes_are_the_published_ones(name: str) -> None:
    config = CHECKPOINTS[name].config
    found = layouts.VITS.get(name) or layouts.CONVNEXTS[name]
    if isinstance(found, layouts.ViT):
        expected = (
            config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"],
            config["intermediate_size"], config.get("use_gated_mlp", False),
        )  # fmt: skip
        assert (found.width, found.depth, found.heads, found.inner, found.gated) == expected
    else:
        assert list(found.widths) == config["hidden_sizes"]
        assert list(found.depths) == config["depths"]


def test_the_document_lists_every_source_and_architecture() -> None:
    from tests.parity.table import DOCUMENT, END, START

    section = DOCUMENT.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    header, _, *rows = section.strip().splitlines()
    columns = [cell.strip(" *") for cell in header.strip("|").split("|")][1:]
    assert columns == [*VITS, *CONVNEXTS]
    listed = set()
    by_label = {entry.label: source for source, entry in SOURCES.items()}
    for row in rows:
        if row.startswith("|"):
            label, *cells = [cell.strip() for cell in row.strip("|").split("|")]
            pairs = zip(columns, cells, strict=True)
            found = {(by_label[label], name): float(cell) for name, cell in pairs if cell}
            assert all(value < TOLERANCE for value in found.values())
            listed |= found.keys()
    assert listed == set(CASES)
