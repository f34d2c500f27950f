"""Names of poolings, their parts and columns."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.encoder.pooling import choose_pooling
from dinoprobe.errors import ConfigurationError
from dinoprobe.pooling import blocks_of, columns_of, parts_of, pooled_fingerprint, sub_poolings
from dinoprobe.types import Features


@pytest.mark.parametrize(
    ("pooling", "parts"),
    [
        ("cls", ("cls",)),
        ("mean", ("mean",)),
        ("cls+mean", ("cls", "mean")),
        ("blocks2", ("cls_2", "cls")),
        ("blocks3+mean", ("cls_3", "cls_2", "cls", "mean")),
    ],
)
def test_parts_are_named_in_the_order_of_their_columns(
    pooling: str, parts: tuple[str, ...]
) -> None:
    assert parts_of(pooling) == parts
    assert blocks_of(pooling) == len(parts) - ("mean" in parts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max", r"'max' is not known\. Use cls, mean, cls\+mean, blocksN or blocksN\+mean"),
        ("mean+cls", "is not known"),
        ("blocks", "is not known"),
        ("blocks-4", "is not known"),
        ("blocks4+cls", "is not known"),
        ("blocks9999999999", "is not known"),
        ("blocks٤", "expected two blocks or more"),
        ("blocks04", "expected two blocks or more"),
        ("blocks1", "expected two blocks or more. Use cls for one"),
        ("blocks0+mean", "expected two blocks or more"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parts_of(name)


def test_blocks_must_be_those_of_the_model() -> None:
    assert choose_pooling("auto", "dinov3_vit", 12) == "cls+mean"
    assert choose_pooling("auto", "dinov3_convnext", 1) == "cls"
    assert choose_pooling("blocks12+mean", "vit", 12) == "blocks12+mean"
    with pytest.raises(ConfigurationError, match="this model has 12 blocks"):
        choose_pooling("blocks13", "vit", 12)
    for name in ("blocks2", "blocks2+mean"):
        with pytest.raises(ConfigurationError, match="Use cls, mean or cls\\+mean"):
            choose_pooling(name, "dinov3_convnext", 1)


def test_sub_poolings_come_with_the_fewest_parts_first() -> None:
    assert sub_poolings("cls") == ("cls",)
    assert sub_poolings("mean") == ("mean",)
    assert sub_poolings("cls+mean") == ("cls", "mean", "cls+mean")
    assert sub_poolings("blocks3") == ("cls", "blocks2", "blocks3")
    assert sub_poolings("blocks3+mean") == (
        "cls", "mean", "blocks2", "cls+mean", "blocks3", "blocks2+mean", "blocks3+mean",
    )  # fmt: skip


@pytest.mark.parametrize("whole", ["cls", "mean", "cls+mean", "blocks4", "blocks4+mean"])
def test_the_columns_of_a_sub_pooling_are_those_of_its_parts(whole: str) -> None:
    columns = np.repeat(parts_of(whole), 3)
    for pooling in sub_poolings(whole):
        chosen = columns[columns_of(whole, pooling, len(columns))]
        assert chosen.tolist() == np.repeat(parts_of(pooling), 3).tolist()


def features(pooling: str | None) -> Features:
    X = np.arange(24, dtype=np.float32).reshape(2, 12)
    y = np.asarray(["a", None], object)
    base = None if pooling is None else "ab" * 16
    return Features(
        ("1", "2"), X, y, ("a",), "cd" * 16, ("00", "11"), (None, "test"), (None, "g"),
        pooling=pooling, base_fingerprint=base,
    )  # fmt: skip


def test_features_of_a_sub_pooling_are_a_view_with_its_fingerprint() -> None:
    whole = features("blocks3+mean")
    part = whole.pooled("cls+mean")
    assert part.X.base is not None
    assert np.shares_memory(part.X, whole.X)
    assert part.X.tolist() == whole.X[:, 6:].tolist()
    assert (part.pooling, part.keys, part.splits) == ("cls+mean", whole.keys, whole.splits)
    assert part.fingerprint == pooled_fingerprint("ab" * 16, "cls+mean") != whole.fingerprint
    again = part.pooled("mean")
    assert again.X.tolist() == whole.X[:, 9:].tolist()
    assert again.fingerprint == whole.pooled("mean").fingerprint
    selected = part.select(np.asarray([1]))
    assert (selected.pooling, selected.base_fingerprint) == ("cls+mean", "ab" * 16)
    assert selected.X.tolist() == whole.X[1:, 6:].tolist()


def test_what_is_not_there_can_not_be_taken() -> None:
    with pytest.raises(ConfigurationError, match="'mean' is not within 'blocks2', which has cls"):
        features("blocks2").pooled("mean")
    with pytest.raises(ConfigurationError, match="not within"):
        features("cls+mean").pooled("blocks2")
    with pytest.raises(ConfigurationError, match="an encoder without a pooling"):
        features(None).pooled("cls")
