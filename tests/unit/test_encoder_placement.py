"""Devices, precisions, and memory that is counted before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dinoprobe.encoder import placement
from dinoprobe.encoder.placement import (
    Spread,
    gigabytes,
    model_bytes,
    parse_memory,
    refuse_too_large,
)
from dinoprobe.errors import ConfigurationError, EncoderError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

SEVEN_BILLION = 6_716_035_072


def test_what_the_7b_needs() -> None:
    assert gigabytes(model_bytes(SEVEN_BILLION, "bfloat16")) == "13.4 GB"
    assert gigabytes(model_bytes(SEVEN_BILLION, "float32")) == "26.9 GB"
    assert gigabytes(86_386_176) == "86.4 MB"


@pytest.mark.parametrize(
    ("dtype", "free", "says"),
    [
        ("bfloat16", 8_000_000_000, "needs 13.4 GB in bfloat16; cpu has 8.0 GB free"),
        ("float32", 14_000_000_000, "--dtype bfloat16"),
        ("float32", 8_000_000_000, "--device-map auto"),
    ],
)
def test_too_large_is_said_before_loading(
    monkeypatch: pytest.MonkeyPatch, dtype: str, free: int, says: str
) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda _: free)
    with pytest.raises(EncoderError) as caught:
        refuse_too_large("vit7b16", SEVEN_BILLION, dtype, torch.device("cpu"))
    assert says in str(caught.value)
    assert "smaller encoder" in str(caught.value)


def test_half_precision_is_only_advised_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda _: 8_000_000_000)
    with pytest.raises(EncoderError) as caught:
        refuse_too_large("vit7b16", SEVEN_BILLION, "float32", torch.device("cpu"))
    assert "--dtype bfloat16" not in str(caught.value)


@pytest.mark.parametrize("free", [None, 20_000_000_000])
def test_what_fits_or_can_not_be_told_passes(
    monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    monkeypatch.setattr(placement, "free_bytes", lambda _: free)
    refuse_too_large("vit7b16", SEVEN_BILLION, "bfloat16", torch.device("cpu"))


def test_free_memory_of_this_machine_is_a_sane_number() -> None:
    free = placement.free_bytes(torch.device("cpu"))
    assert free is None or 1e8 < free < 1e14


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0=8GB,cpu=30GB", {0: 8_000_000_000, "cpu": 30_000_000_000}),
        ("cpu=500MB", {"cpu": 500_000_000}),
        ("1=1.5GiB", {1: 1_610_612_736}),
        ("0=100kb", {0: 100_000}),
    ],
)
def test_memory_of_devices(text: str, expected: dict[int | str, int]) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["8GB", "0=8", "gpu=8GB", "0=eight", "0=8GB,,", ""])
def test_memory_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected such as 0=8GB,cpu=30GB"):
        parse_memory(text)


def test_the_cache_of_files_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 7400\nactive_file 9\n")
    assert placement._reclaimable(tmp_path / "memory.stat") == 7400


def test_an_unknown_device_map_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match="Use one of auto, balanced"):
        Spread("everywhere")


def test_memory_of_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"names device 63, and .* CUDA devices are here"):
        Spread("auto", {63: 8_000_000_000})


def test_without_accelerate_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"dinoprobe\[big\]"):
        Spread("auto")
