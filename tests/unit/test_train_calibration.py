"""What the recipe takes from out-of-fold predictions."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import EncoderSettings
from dinoprobe.errors import ConfigurationError
from dinoprobe.heads import (
    LDAProbe,
    LogisticProbe,
    OutOfFold,
    at_temperature,
    fit_sets,
    left_out_scores,
    out_of_fold,
)
from dinoprobe.partition import dealt_folds
from dinoprobe.train import TrainConfig
from dinoprobe.train.checks import check_config
from dinoprobe.train.config import (
    wants_calibration,
    wants_sets,
    wants_sets_per_class,
)
from dinoprobe.train.prior import prior_shift
from dinoprobe.train.trust import trusted
from dinoprobe.types import Features


def config(**options: object) -> TrainConfig:
    return TrainConfig(
        data=DataSettings(source="photos"), encoder=EncoderSettings(name="builtin"), **options
    )


def noisy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.arange(150) % 3
    X = rng.normal(size=(3, 6))[codes] + 1.5 * rng.normal(size=(150, 6))
    return X.astype(np.float32), np.array([f"class {code}" for code in codes], dtype=object)


def features(X: np.ndarray, y: np.ndarray) -> Features:
    n = len(y)
    return Features(
        keys=tuple(f"{i}.png" for i in range(n)),
        X=X,
        y=y,
        classes=tuple(sorted(set(y))),
        fingerprint="f",
        hashes=tuple(map(str, range(n))),
        splits=(None,) * n,
        groups=(None,) * n,
    )


def judged_of(X: np.ndarray, y: np.ndarray) -> OutOfFold:
    return out_of_fold(LogisticProbe(C=1e-3), X, y, np.arange(len(y)) // (len(y) // 5))


def test_thresholds_are_those_of_calibrated_probabilities() -> None:
    X, y = noisy()
    judged = judged_of(X, y)
    found = trusted(config(), LogisticProbe(C=1e-3).fit(X, y), judged, features(X, y))
    assert found.calibration is not None
    assert found.calibration.temperature < 0.9
    scaled = at_temperature(judged.probabilities, found.calibration.temperature)
    own = np.sort(1 - scaled[np.arange(150), judged.codes])
    assert found.sets is not None
    assert found.sets.thresholds == (pytest.approx(own[135]),)
    plain = trusted(
        config(calibrate="none"), LogisticProbe(C=1e-3).fit(X, y), judged, features(X, y)
    )
    assert plain.sets == fit_sets(judged)
    assert plain.sets.thresholds != found.sets.thresholds


@pytest.mark.parametrize("by", ["probability", "energy", "distance"])
def test_the_rule_is_that_of_calibrated_probabilities_and_of_left_out_distances(by: str) -> None:
    X, y = noisy()
    X, y = np.tile(X, (4, 1)) + np.random.default_rng(1).normal(size=(600, 6)) * 0.3, np.tile(y, 4)
    X = X.astype(np.float32)
    head = LogisticProbe(C=1e-3).fit(X, y)
    judged = judged_of(X, y)
    settings = config(target_accuracy=0.7, abstain_by=by)
    found = trusted(settings, head, judged, features(X, y))
    assert found.abstention is not None
    assert found.calibration is not None
    assert found.novelty is not None
    assert (found.abstention.by, found.abstention.n) == (by, 600)
    scaled = at_temperature(judged.probabilities, found.calibration.temperature)
    folds = dealt_folds(features(X, y), seed=0, n_folds=16)
    scores = left_out_scores(X, y, folds, "mahalanobis")[judged.rows]
    sure = {"probability": scaled.max(axis=1), "energy": -np.log(scaled).mean(axis=1)}.get(
        by, -scores
    )
    answered = sure >= found.abstention.threshold - 1e-9
    assert found.abstention.coverage == pytest.approx(answered.mean())
    right = scaled.argmax(axis=1) == judged.codes
    assert found.abstention.accuracy == pytest.approx(right[answered].mean())
    assert found.abstention.accuracy > 0.7


def test_a_target_that_is_not_reached_is_told() -> None:
    X, y = noisy()
    head = LogisticProbe(C=1e-3).fit(X, y)
    found = trusted(config(target_accuracy=0.99), head, judged_of(X, y), features(X, y))
    assert found.abstention is None
    (note,) = found.notes
    assert "No threshold by probability is shown to keep an accuracy of 99 %" in note
    assert "299 answers without a mistake are the fewest" in note


def test_without_rows_to_judge_there_is_neither_and_a_sentence() -> None:
    X, y = noisy()
    head = LogisticProbe(C=1.0).fit(X, y)
    judged = out_of_fold(LogisticProbe(C=1.0), X, y, np.full(150, -1))
    found = trusted(config(novelty="none"), head, judged, features(X, y))
    assert (found.calibration, found.sets, found.novelty) == (None, None, None)
    assert head.temperature_ == 1.0
    assert len(found.notes) == 1
    assert "Neither calibrated nor with sets" in found.notes[0]


def test_a_measure_of_novelty_needs_a_class_with_two_images() -> None:
    X, y = noisy()
    lone = features(X[:3], y[:3])
    judged = out_of_fold(LogisticProbe(C=1.0), X[:3], y[:3], np.full(3, -1))
    found = trusted(config(sets="none", calibrate="none"), LogisticProbe(C=1.0), judged, lone)
    assert found.novelty is None
    assert "no class has rows to leave out" in found.notes[0]


def long_tail(counts: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    centers = np.random.default_rng(9).normal(size=(3, 6))
    codes = np.repeat(np.arange(3), counts)
    X = centers[codes] + np.random.default_rng(seed).normal(size=(len(codes), 6))
    return X.astype(np.float32), np.array(["a", "b", "c"], dtype=object)[codes]


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_for_a_prior_hold_at_any_frequencies(method: str) -> None:
    X, y = long_tail((600, 120, 60))
    asked = config(head="lda", prior="uniform", sets=method)
    head = LDAProbe(shrinkage=0.1, temperature=1).fit(X, y)
    before = head.predict_proba(X)
    judged = out_of_fold(LDAProbe(shrinkage=0.1, temperature=1), X, y, np.arange(len(y)) % 5)
    shift = prior_shift("uniform", head, y)
    assert shift is not None
    sets = trusted(asked, head, judged, features(X, y), shift).sets
    np.testing.assert_array_equal(head.predict_proba(X), before)  # the caller applies it
    shift.apply(head)
    np.testing.assert_allclose(shift.back(head.predict_proba(X)), before, rtol=1e-5)
    assert sets is not None
    assert len(sets.thresholds) == 3
    for counts in ((2000, 2000, 2000), (100, 300, 5000)):
        queries, truth = long_tail(counts, seed=1)
        members = sets.members(head.predict_proba(queries))
        covered = members[np.arange(len(truth)), np.searchsorted(head.classes_, truth)]
        assert 0.87 < covered.mean() < 0.96
        assert members.mean() < 0.9  # not by taking every label


def test_a_temperature_is_that_of_the_frequencies_as_they_come() -> None:
    X, y = long_tail((600, 120, 60))
    plain, shifted = (LogisticProbe(C=1e-3).fit(X, y) for _ in range(2))
    judged = out_of_fold(LogisticProbe(C=1e-3), X, y, np.arange(len(y)) % 5)
    shift = prior_shift({"a": 1, "b": 1, "c": 8}, shifted, y)
    training = features(X, y)
    first = trusted(config(), plain, judged, training).calibration
    asked = config(prior={"a": 1, "b": 1, "c": 8})
    assert first == trusted(asked, shifted, judged, training, shift).calibration
    assert shift is not None
    assert shift.shares(shifted) == {"a": 0.1, "b": 0.1, "c": 0.8}


def test_a_prior_makes_sets_cover_each_class() -> None:
    assert wants_sets_per_class(config(prior="uniform"))
    assert not wants_sets_per_class(config(prior="uniform", sets="none"))
    assert not wants_sets_per_class(config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "even"}, "'even'; expected \"uniform\""),
        ({"prior": {"a": 0.0}}, "prior of 'a' is 0.0"),
        ({"prior": "uniform", "target_accuracy": 0.9}, "Leave out --target-accuracy, or --prior"),
        ({"prior": "uniform", "head": "sklearn:sklearn.svm.SVC"}, "Leave out --prior"),
        ({"head": "prototype", "head_options": {"class_weight": "balanced"}}, "no option 'class_w"),
        ({"head": "lda", "head_options": {"class_weight": {"a": -1.0}}}, "-1.0 for 'a'"),
    ],
)
def test_priors_and_weights_that_can_not_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_config(config(**options))


def test_class_weights_may_name_labels_that_are_not_known_yet() -> None:
    for head in ("lda", "ridge", "linear", "knn"):
        check_config(config(head=head, head_options={"class_weight": {"cat": 2.0}}))


def test_who_gets_what() -> None:
    assert wants_calibration(config())
    assert not wants_calibration(config(calibrate="none"))
    assert not wants_calibration(config(head="linear"))
    assert wants_calibration(config(head="linear", calibrate="vector"))
    assert wants_sets(config(head="knn"))
    assert not wants_sets(config(sets="none"))
    assert not wants_sets(config(head="linear", on_the_fly=True))


def test_the_options_survive_their_file() -> None:
    given = config(
        calibrate="vector",
        sets="aps",
        coverage=0.8,
        sets_per_class=True,
        prior={"a": 0.5, "b": 0.5},
        novelty="knn",
        novelty_share=0.02,
        target_accuracy=0.9,
        abstain_by="distance",
    )
    assert TrainConfig.from_dict(given.to_dict()) == given
    older = given.to_dict()
    for name in set(older) - {"data", "encoder"}:
        del older[name]
    assert TrainConfig.from_dict(older) == config()
