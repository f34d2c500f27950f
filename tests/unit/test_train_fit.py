"""What the recipe says of a head, and how it fixes a head's choice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.unit.test_train_calibration import config

from dinoprobe.heads import frozen_choice, head_from_name
from dinoprobe.heads.names import HEADS
from dinoprobe.partition import partition
from dinoprobe.train.candidates import fit_head
from dinoprobe.train.fit import chosen, fit, protocol
from dinoprobe.types import Features

CHOICES = {"lda": "shrinkage", "knn": "k"}
CHOSEN = {
    "linear": set(),
    "linear-grid": {"lr", "weight_decay", "selection"},
    "logistic": {"strength", "selection"},
    "knn": {"k", "selection"},
    "lda": {"shrinkage", "temperature", "selection"},
    "ridge": {"alpha", "temperature", "selection"},
    "prototype": {"temperature", "selection"},
}


def features() -> Features:
    rng = np.random.default_rng(0)
    codes = np.arange(90) % 3
    X = (2 * rng.normal(size=(3, 6))[codes] + rng.normal(size=(90, 6))).astype(np.float32)
    keys = tuple(str(row) for row in range(90))
    return Features(
        keys=keys,
        X=X,
        y=np.array(["a", "b", "c"], dtype=object)[codes],
        classes=("a", "b", "c"),
        fingerprint="f",
        hashes=keys,
        splits=(None,) * 90,
        groups=(None,) * 90,
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_selects_gets_the_folds_and_keeps_its_choice(name: str) -> None:
    head = head_from_name(name, **({"k": "auto"} if name == "knn" else {}))
    fitted = fit_head(head, features(), np.arange(90) % 4)
    found = chosen(fitted)
    assert set(found) == CHOSEN[name]
    assert "given folds" in found.get("selection", "given folds")  # linear selects nothing
    copy = frozen_choice(fitted)
    assert not hasattr(copy, "classes_")
    refitted = copy.fit(features().X, features().y)
    assert getattr(refitted, "selection_", "given") == "given"
    np.testing.assert_allclose(
        refitted.predict_proba(features().X), fitted.predict_proba(features().X), atol=1e-9
    )


@pytest.mark.parametrize("plan", [{"head": "lda"}, {"protocol": "dinov3-knn"}])
@pytest.mark.parametrize("has_validation", [True, False])
def test_the_protocol_says_where_a_choice_was_made(
    plan: dict[str, str], *, has_validation: bool
) -> None:
    name = "knn" if "protocol" in plan else "lda"
    folds = np.where(np.arange(90) < 60, -1, 0) if has_validation else np.arange(90) % 4
    head = fit_head(
        head_from_name(name, **({"k": "auto"} if name == "knn" else {})), features(), folds
    )
    parts = SimpleNamespace(splits=("train", "val" if has_validation else "train"), given=True)
    fitted = SimpleNamespace(name=name, head=head, candidates=[])
    where = "the validation part" if has_validation else "4 folds of the training part"
    assert f"{CHOICES[name]} chosen on {where}" in protocol(config(**plan), parts, fitted)  # type: ignore[arg-type]


def test_the_protocol_of_one_fold_of_the_training_part() -> None:
    """As a grid on augmented images has it, which can not be fitted anew for each fold."""
    head = SimpleNamespace(selects=("lr",), selection_="1 given fold, at the edge of the rates")
    parts = SimpleNamespace(splits=("train", "test"), given=True)
    fitted = SimpleNamespace(name="linear-grid", head=head, candidates=[])
    found = protocol(config(protocol="dinov3-linear"), parts, fitted)  # type: ignore[arg-type]
    assert "learning rate chosen on 1 fold of the training part, at the edge" in found


@pytest.mark.parametrize(("name", "option"), [("ridge", "alpha"), ("lda", "shrinkage")])
def test_a_choice_that_would_profit_from_the_test_part_does_not(name: str, option: str) -> None:
    """The test part repeats the training rows, so that it asks for the weakest strength."""
    rng = np.random.default_rng(0)
    codes = np.arange(120) % 3
    X = (0.5 * rng.normal(size=(3, 60))[codes] + rng.normal(size=(120, 60))).astype(np.float32)
    labels = np.array(["a", "b", "c"], dtype=object)[rng.permutation(codes)]
    labels[::2] = np.array(["a", "b", "c"], dtype=object)[codes][::2]  # half of them are noise
    both = replace(
        features(),
        keys=tuple(map(str, range(240))),
        X=np.concatenate([X, X]),
        y=np.concatenate([labels, labels]),
        hashes=tuple(map(str, range(240))),
        splits=("train",) * 120 + ("test",) * 120,
        groups=(None,) * 240,
    )
    parts = partition(both, seed=0, test_fraction=0.2)
    training = both.select(parts.rows("train", "val"))
    fitted = fit(config(head=name), None, None, training, parts, print)  # type: ignore[arg-type]
    peeking = fit_head(head_from_name(name), both, np.repeat([-1, 0], 120))
    assert getattr(peeking, f"{option}_") < getattr(fitted.head, f"{option}_")
    garbage = replace(both, X=np.concatenate([X, 9 * rng.normal(size=X.shape).astype(np.float32)]))
    again = partition(garbage, seed=0, test_fraction=0.2)
    other = fit(config(head=name), None, None, training, again, print)  # type: ignore[arg-type]
    assert chosen(other.head) == chosen(fitted.head)
    assert np.array_equal(other.head.coef_, fitted.head.coef_)  # type: ignore[attr-defined]
