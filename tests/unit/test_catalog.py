"""The published checkpoints: counts repeated on transformers' own models, names, files, vectors."""

from __future__ import annotations

import re

import pytest
import torch

from dinoprobe.catalog import (
    CHECKPOINTS,
    GOLDEN,
    SAT493M_MEAN,
    SAT493M_STD,
    Checkpoint,
    by_hub_id,
    by_timm_name,
    is_dinov3_licensed,
    nearest_names,
)
from dinoprobe.encoder.families import FAMILIES

DINOV3 = [entry for entry in CHECKPOINTS.values() if entry.family != "dinov2"]
# Counts of the transformers models, as the checkpoints' configurations give them.
PUBLISHED = {
    "vits16": (21_596_544, 211),
    "vits16plus": (28_692_864, 235),
    "vitb16": (85_660_416, 211),
    "vitl16": (303_129_600, 415),
    "vith16plus": (840_592_640, 615),
    "vit7b16": (6_716_035_072, 687),
    "vitl16-sat493m": (303_129_600, 415),
    "vit7b16-sat493m": (6_716_035_072, 687),
    "convnext-tiny": (27_820_128, 180),
    "convnext-small": (49_454_688, 342),
    "convnext-base": (87_566_464, 342),
    "convnext-large": (196_230_336, 342),
}


def model_on_meta(entry: Checkpoint) -> torch.nn.Module:
    """transformers' model of these settings, without memory."""
    family = FAMILIES[entry.model_type]
    with torch.device("meta"):
        return family.model_class()(family.config_class()(**entry.config))


def test_the_twelve_are_there() -> None:
    assert {entry.name for entry in DINOV3} == set(PUBLISHED)


@pytest.mark.parametrize("entry", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_parameters_are_those_of_the_model(entry: Checkpoint) -> None:
    model = model_on_meta(entry)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    if entry.name in PUBLISHED:
        assert (entry.parameters, len(model.state_dict())) == PUBLISHED[entry.name]


@pytest.mark.parametrize("entry", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_the_default_dimension_is_what_the_encoder_gives(entry: Checkpoint) -> None:
    family = FAMILIES[entry.model_type]
    width = family.width(family.config_class()(**entry.config))
    assert entry.width == width
    assert entry.dimension == (width if entry.family == "convnext" else 2 * width)


@pytest.mark.parametrize("entry", DINOV3, ids=lambda entry: entry.name)
def test_every_name_of_a_checkpoint_leads_back_to_it(entry: Checkpoint) -> None:
    assert by_hub_id(entry.hub_id) is entry
    assert all(by_timm_name(name) is entry for name in entry.timm)
    assert all(by_hub_id(f"timm/{name}") is entry for name in entry.timm)
    assert is_dinov3_licensed(entry.hub_id)
    assert entry.gated
    assert entry.licence == "dinov3-license"
    assert re.fullmatch(
        r"dinov3_[a-z0-9_]+_pretrain_(lvd1689m|sat493m)-[0-9a-f]{8}\.pth", entry.meta_file or ""
    )
    assert entry.meta_hash == (entry.meta_file or "")[-12:-4]


def test_files_and_digests_are_each_used_once() -> None:
    assert len({entry.meta_hash for entry in DINOV3}) == 12
    assert len({name for entry in DINOV3 for name in entry.timm}) == sum(
        len(e.timm) for e in DINOV3
    )


def test_satellite_weights_have_their_own_statistics() -> None:
    satellite = [entry for entry in DINOV3 if entry.weights == "sat493m"]
    assert [entry.name for entry in satellite] == ["vitl16-sat493m", "vit7b16-sat493m"]
    assert {(entry.mean, entry.std) for entry in satellite} == {(SAT493M_MEAN, SAT493M_STD)}
    assert CHECKPOINTS["vitl16"].mean == (0.485, 0.456, 0.406)


def test_there_are_vectors_for_each_of_the_twelve() -> None:
    assert set(GOLDEN) == set(PUBLISHED)
    assert {len(numbers) for golden in GOLDEN.values() for numbers in golden} == {5}
    assert len(set(GOLDEN.values())) == 12


def test_dinov2_needs_no_licence_of_meta() -> None:
    small = CHECKPOINTS["dinov2-small"]
    assert (small.gated, small.licence, small.patch_size) == (False, "apache-2.0", 14)
    assert not is_dinov3_licensed(small.hub_id)
    assert small.meta_hash is None


def test_names_that_look_alike() -> None:
    assert nearest_names("vit-s16")[0] == "vits16"
    assert by_hub_id("someone/else") is None
