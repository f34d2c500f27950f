"""What a protocol stands for, what refuses it, and how one head is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.test_train_calibration import config

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads import frozen_choice, out_of_fold
from dinoprobe.pooling import pooled_fingerprint
from dinoprobe.train import TrainConfig
from dinoprobe.train.candidates import choose
from dinoprobe.train.checks import check_config
from dinoprobe.train.config import asked_encoder, calibration_method, wants_sets
from dinoprobe.train.few_shot import drawn, few_shot_figures
from dinoprobe.train.protocols import PROTOCOLS, plan_of, protocol_from_name, with_options
from dinoprobe.types import Features

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocols.md"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_documented_and_can_be_asked_for(name: str) -> None:
    protocol = protocol_from_name(name)
    assert f"\n## {protocol.id}\n" in DOCUMENT.read_text(encoding="utf-8")
    given = config(protocol=name)
    check_config(given)
    assert plan_of(given) is plan_of(config(protocol=protocol.id)) is protocol
    assert wants_sets(given) is not protocol.on_the_fly


def test_auto_is_the_default() -> None:
    assert plan_of(config()).id == "auto/1"
    assert calibration_method(config()) == "temperature"
    assert calibration_method(config(protocol="tutorial")) == "none"


def test_a_head_is_a_plan_of_its_own() -> None:
    plan = plan_of(config(head="lda", head_options={"shrinkage": 0.1}))
    assert (plan.id, plan.heads, plan.poolings_within("cls+mean")) == (
        None,
        (("lda", {}),),
        ("cls+mean",),
    )


def test_what_the_documents_say_of_the_originals() -> None:
    (_, options), *_ = protocol_from_name("dinov3-logreg").heads
    assert len(options["Cs"]) == 45
    assert options["Cs"][0] == pytest.approx(1e-6)
    assert options["Cs"][-1] == pytest.approx(1e5)
    assert options["standardize"] is False
    assert protocol_from_name("dinov2-linear").poolings_within("blocks4+mean") == (
        "cls",
        "cls+mean",
        "blocks4",
        "blocks4+mean",
    )
    ridge = protocol_from_name("fewshot-ridge")
    assert (ridge.shots, ridge.draws, ridge.shot_heads) == (
        (1, 5, 10),
        3,
        (("ridge", {"alpha": 1024.0}),),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "dinov3-linaer"}, "Did you mean 'dinov3-linear'"),
        ({"protocol": "auto/9"}, "has version 1 of it"),
        ({"protocol": "auto", "head": "lda"}, "Leave out one of them"),
        ({"protocol": "auto", "on_the_fly": True}, "Leave out --on-the-fly"),
        ({"head_options": {"epochs": 3}}, "tries lda, ridge, logistic too, without an option"),
        ({"head_options": {"C": 0.1}}, "tries lda, ridge too, without an option 'C'"),
        ({"protocol": "dinov3-knn", "select": "one-se"}, "'knn' has no path of strengths"),
        ({"protocol": "dinov3-linear", "target_accuracy": 0.9}, "never has"),
        ({"protocol": "dinov3-knn", "calibrate": "temperature"}, "without logits"),
    ],
)
def test_what_can_not_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_config(config(**options))


def test_options_reach_the_heads_that_have_them() -> None:
    given = config(head_options={"class_weight": "balanced"}, select="one-se")
    check_config(given)
    assert with_options(given, "lda", {}) == {"rule": "one-se", "class_weight": "balanced"}
    assert with_options(given, "prototype", {}) == {}


def test_the_pooling_of_a_protocol_gives_way_to_the_user() -> None:
    assert asked_encoder(config(protocol="dinov3-knn")).pooling == "cls"
    assert asked_encoder(config(protocol="auto")).pooling == "auto"
    named = TrainConfig.from_dict(
        {**config(protocol="dinov3-knn").to_dict(), "encoder": {"name": "x", "pooling": "mean"}}
    )
    assert asked_encoder(named).pooling == "mean"


def features(n: int = 180, d: int = 12, seed: int = 0) -> Features:
    """Three classes, which the second half of the columns tells apart."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    X = rng.normal(size=(n, 2 * d))
    X[:, d:] += 1.5 * np.random.default_rng(9).normal(size=(3, d))[codes]
    keys = tuple(str(row) for row in range(n))
    return Features(
        keys=keys,
        X=X.astype(np.float32),
        y=np.array(["a", "b", "c"], dtype=object)[codes],
        classes=("a", "b", "c"),
        fingerprint=pooled_fingerprint("base", "cls+mean"),
        hashes=keys,
        splits=(None,) * n,
        groups=(None,) * n,
        pooling="cls+mean",
        base_fingerprint="base",
    )


def test_auto_tries_every_pooling_and_keeps_a_good_one() -> None:
    said: list[str] = []
    found = choose(config(), features(), np.arange(180) // 3 % 5, said.append)
    assert [(j.candidate.pooling, j.candidate.name) for j in found.judged] == [
        (pooling, name)
        for pooling in ("cls", "mean", "cls+mean")
        for name in ("lda", "ridge", "logistic")
    ]
    assert found.training.pooling in {"mean", "cls+mean"}
    assert found.training.fingerprint == pooled_fingerprint("base", str(found.training.pooling))
    assert found.head.n_features_in_ == found.training.X.shape[1]
    assert len(said) == 9
    assert {event["event"] for event in found.events} == {"candidate"}
    assert max(j.accuracy for j in found.judged[:3]) < min(j.accuracy for j in found.judged[3:])


def test_predictions_of_the_kept_head_are_those_that_judged_it() -> None:
    folds = np.arange(180) // 3 % 5
    found = choose(config(), features(), folds, lambda _: None)
    again = out_of_fold(frozen_choice(found.head), found.training.X, found.training.y, folds)
    assert found.predictions is not None
    np.testing.assert_array_equal(found.predictions.rows, again.rows)
    np.testing.assert_array_equal(found.predictions.probabilities, again.probabilities)


def test_prototypes_come_in_for_few_images() -> None:
    few = features(24)
    found = choose(config(), few, np.arange(24) // 3 % 4, lambda _: None)
    assert [j.candidate.name for j in found.judged[:4]] == ["lda", "ridge", "logistic", "prototype"]


def test_without_folds_the_first_head_for_few_images() -> None:
    said: list[str] = []
    found = choose(config(), features(3), np.full(3, -1), said.append)
    assert (found.name, found.judged) == ("prototype", ())
    assert "without a choice" in said[0]


def test_the_choice_can_be_repeated() -> None:
    folds = np.arange(180) // 3 % 5
    first, second = (choose(config(seed=s), features(), folds, lambda _: None) for s in (0, 0))
    assert first.name == second.name
    np.testing.assert_array_equal(first.head.coef_, second.head.coef_)


def test_drawn_images() -> None:
    y = np.array(["a"] * 5 + ["b"] * 2 + ["c"] * 9, dtype=object)
    rows = drawn(y, 3, seed=0)
    assert sorted(y[rows].tolist()) == ["a"] * 3 + ["b"] * 2 + ["c"] * 3
    assert not np.array_equal(rows, drawn(y, 3, seed=1))
    np.testing.assert_array_equal(rows, drawn(y, 3, seed=0))


@pytest.mark.parametrize(
    ("name", "heads"), [("fewshot-ridge", {"ridge"}), ("fewshot-k", {"prototype"})]
)
def test_few_shots(name: str, heads: set[str]) -> None:
    training, test = features(150), features(300, seed=1)
    test_part = (test.X, test.y)
    table = few_shot_figures(protocol_from_name(name), (training.X, training.y), test_part, seed=0)
    protocol = PROTOCOLS[name]
    assert [row.shots for row in table] == list(protocol.shots)
    assert all(len(row.accuracies) == protocol.draws for row in table)
    assert set(table[0].heads) == heads
    assert table[0].mean < table[-1].mean
    assert table[0].mean == pytest.approx(np.mean(table[0].accuracies))
    assert table[0].deviation == pytest.approx(np.std(table[0].accuracies, ddof=1))
    assert str(table[0]).startswith("1 image a class: ")


def test_a_protocol_without_shots_has_no_table() -> None:
    part = features()
    assert few_shot_figures(PROTOCOLS["auto"], (part.X, part.y), (part.X, part.y), seed=0) == []
