"""Which published checkpoint a file is, and what is said where that is not certain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dinoprobe.catalog import CHECKPOINTS
from dinoprobe.encoder.identity import check_name, identify
from dinoprobe.encoder.pth import import_pth
from dinoprobe.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from pathlib import Path

OFFICIAL = {name: entry for name, entry in CHECKPOINTS.items() if entry.meta_file}


def settings(name: str) -> dict[str, Any]:
    """What a conversion says of this checkpoint."""
    entry = CHECKPOINTS[name]
    return {"model_type": entry.model_type, **entry.config}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_digest_tells_whatever_the_name_is(name: str) -> None:
    digest = str(OFFICIAL[name].meta_hash) + "0" * 56
    assert identify("model.pth", digest, settings(name), None) == (OFFICIAL[name], ())
    official = str(OFFICIAL[name].meta_file)
    assert identify(official, digest, settings(name), None) == (OFFICIAL[name], ())


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_name_of_the_file_tells_and_its_digits_are_checked(name: str) -> None:
    official = str(OFFICIAL[name].meta_file)
    found, notes = identify(official, "f" * 64, settings(name), None)
    assert found is OFFICIAL[name]
    assert "its SHA-256 begins with ffffffff, and its name says" in notes[0]
    renamed = f"my_{official.rpartition('-')[0].upper()} (1).pth"
    assert identify(renamed, "f" * 64, settings(name), None) == (OFFICIAL[name], ())


@pytest.mark.parametrize("name", ["vitl16", "vit7b16"])
def test_satellite_weights_can_not_be_told_by_shape(name: str) -> None:
    found, notes = identify("x.pth", "f" * 64, settings(name), None)
    assert found is CHECKPOINTS[name]
    assert f"taken for {name} by its shapes alone" in notes[0]
    assert f"--as {name}-sat493m says so, and changes the statistics" in notes[0]
    satellite = CHECKPOINTS[f"{name}-sat493m"]
    assert identify("x.pth", "f" * 64, settings(name), satellite.name) == (satellite, ())


def test_a_single_shape_is_said_to_be_no_proof() -> None:
    found, notes = identify("x.pth", "f" * 64, settings("vits16"), None)
    assert found is CHECKPOINTS["vits16"]
    assert len(notes) == 1
    assert notes[0].startswith("x.pth: taken for vits16 by its shapes alone; neither its name nor")


def test_a_name_that_the_shapes_contradict_is_said() -> None:
    file = "dinov3_vitb16_pretrain_lvd1689m.pth"
    found, notes = identify(file, "f" * 64, settings("vits16"), None)
    assert found is CHECKPOINTS["vits16"]
    assert "by its shapes alone, against its name (vitb16)" in notes[0]


def test_a_wrong_as_is_an_error() -> None:
    with pytest.raises(FormatError, match="its shapes are those of vits16, and not of vitb16"):
        identify("x.pth", "f" * 64, settings("vits16"), "vitb16")
    digest = str(CHECKPOINTS["vitl16"].meta_hash) + "0" * 56
    with pytest.raises(FormatError, match=r"which is vitl16, and not vitl16-sat493m\. Leave"):
        identify("x.pth", digest, settings("vitl16"), "vitl16-sat493m")


def test_as_does_not_silence_the_note_on_the_digest() -> None:
    file = str(CHECKPOINTS["vitl16"].meta_file)
    _, notes = identify(file, "f" * 64, settings("vitl16"), "vitl16")
    assert "its name says 8aa4cbdd" in notes[0]


@pytest.mark.parametrize("name", ["dinov2-small", "vit-s16", "nothing"])
def test_as_takes_what_meta_publishes_as_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a checkpoint that Meta publishes"):
        check_name(name)
    with pytest.raises(ConfigurationError):
        import_pth(tmp_path / "unread.pth", as_name=name)


def test_timms_small_one_without_biases_is_vits16_too() -> None:
    config = {**settings("vits16"), "query_bias": False, "value_bias": False}
    assert identify("x.pth", "f" * 64, config, None)[0] is CHECKPOINTS["vits16"]
