"""What the recipe takes from out-of-fold predictions."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import EncoderSettings
from dinoprobe.heads import LogisticProbe, at_temperature, fit_sets, out_of_fold
from dinoprobe.train import TrainConfig
from dinoprobe.train.config import wants_calibration, wants_sets
from dinoprobe.train.fit import _trusted


def config(**options: object) -> TrainConfig:
    return TrainConfig(
        data=DataSettings(source="photos"), encoder=EncoderSettings(name="builtin"), **options
    )


def noisy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.arange(150) % 3
    X = rng.normal(size=(3, 6))[codes] + 1.5 * rng.normal(size=(150, 6))
    return X.astype(np.float32), np.array([f"class {code}" for code in codes], dtype=object)


def test_thresholds_are_those_of_calibrated_probabilities() -> None:
    X, y = noisy()
    head = LogisticProbe(C=1e-3).fit(X, y)
    judged = out_of_fold(LogisticProbe(C=1e-3), X, y, np.arange(150) // 30)
    calibration, sets = _trusted(config(), head, judged, print)
    assert calibration is not None
    assert calibration.temperature < 0.9
    scaled = at_temperature(judged.probabilities, calibration.temperature)
    own = np.sort(1 - scaled[np.arange(150), judged.codes])
    assert sets is not None
    assert sets.thresholds == (pytest.approx(own[135]),)
    _, plain = _trusted(config(calibrate=False), LogisticProbe(C=1e-3).fit(X, y), judged, print)
    assert plain == fit_sets(judged)
    assert plain.thresholds != sets.thresholds


def test_without_rows_to_judge_there_is_neither_and_a_sentence() -> None:
    X, y = noisy()
    head = LogisticProbe(C=1.0).fit(X, y)
    said: list[str] = []
    judged = out_of_fold(LogisticProbe(C=1.0), X, y, np.full(150, -1))
    assert _trusted(config(), head, judged, said.append) == (None, None)
    assert head.temperature_ == 1.0
    assert len(said) == 1
    assert "Neither calibrated nor with sets" in said[0]


def test_who_gets_what() -> None:
    assert wants_calibration(config())
    assert not wants_calibration(config(calibrate=False))
    assert not wants_calibration(config(head="linear"))
    assert wants_calibration(config(head="linear", calibrate=True))
    assert wants_sets(config(head="knn"))
    assert not wants_sets(config(sets="none"))
    assert not wants_sets(config(head="linear", on_the_fly=True))


def test_the_options_survive_their_file() -> None:
    given = config(calibrate=False, sets="aps", coverage=0.8, sets_per_class=True)
    assert TrainConfig.from_dict(given.to_dict()) == given
    older = given.to_dict()
    for name in ("calibrate", "sets", "coverage", "sets_per_class"):
        del older[name]
    assert TrainConfig.from_dict(older) == config()
