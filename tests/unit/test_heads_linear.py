from __future__ import annotations

import numpy as np
import pytest
import torch

from dinoprobe.errors import ConfigurationError, HeadError, NonFiniteError
from dinoprobe.heads import LinearProbe


def blobs(n=90, d=6, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = 3 * rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d))
    return X.astype(np.float32), np.array([f"c{code}" for code in codes], dtype=object)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_learns(optimizer):
    X, y = blobs()
    probe = LinearProbe(optimizer, lr=0.02, epochs=10).fit(X, y)
    assert len(probe.loss_history_) == 10
    assert probe.loss_history_[-1] < probe.loss_history_[0]
    assert probe.score(X, y) > 0.95


def test_seed_decides_and_global_generator_is_left_alone():
    X, y = blobs()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = LinearProbe(random_state=1).fit(X, y)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = LinearProbe(random_state=1).fit(X, y), LinearProbe(random_state=2).fit(X, y)
    assert np.array_equal(first.coef_, again.coef_)
    assert not np.array_equal(first.coef_, other.coef_)


def test_standardize_makes_scale_irrelevant():
    X, y = blobs()
    probes = [LinearProbe(standardize=True, lr=0.02).fit(X * s + s, y) for s in (1.0, 1024.0)]
    np.testing.assert_allclose(
        probes[0].predict_proba(X + 1), probes[1].predict_proba(X * 1024 + 1024), atol=1e-5
    )


def drive(probe, X, y, **options):
    training = probe.begin(X.shape[1], sorted(set(y)), **options)
    losses = []
    for _ in range(probe.epochs):
        for batch in training.shuffled_batches(len(X)):
            picked = batch.numpy()
            losses += [training.step(X[picked], y[picked])]
        training.end_epoch()
    return training.finish(), losses


@pytest.mark.parametrize("standardize", [False, True])
def test_steps_equal_fit(standardize):
    X, y = blobs()
    moments = (X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)) if standardize else None
    fitted = LinearProbe(standardize=standardize).fit(X, y)
    driven, losses = drive(LinearProbe(standardize=standardize), X, y, moments=moments)
    np.testing.assert_allclose(driven.coef_, fitted.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(driven.loss_history_, fitted.loss_history_, rtol=1e-5)
    assert driven.loss_history_[0] == pytest.approx(np.mean(losses[:3]))
    assert driven.predict(X).tolist() == fitted.predict(X).tolist()


def test_step_takes_tensors_and_sorts_classes():
    training = LinearProbe().begin(4, ["b", "a", "b"])
    assert training.step(torch.zeros(2, 4, dtype=torch.bfloat16), ["a", "b"]) > 0
    training.end_epoch()
    assert training.finish().classes_.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (np.zeros((2, 3)), ["a", "b"], HeadError, r"shape \(2, 3\) and 2 labels.*\(2, 4\)"),
        (np.zeros((3, 4)), ["a", "b"], HeadError, r"expected \(2, 4\)"),
        (np.full((2, 4), np.nan), ["a", "b"], NonFiniteError, "NaN or inf"),
        (np.zeros((2, 4)), ["a", "z"], HeadError, "label 'z'.*among the 2"),
    ],
)
def test_wrong_batches(X, y, error, message):
    with pytest.raises(error, match=message):
        LinearProbe().begin(4, ["a", "b"]).step(X, y)


def test_epoch_without_batches():
    with pytest.raises(HeadError, match="without a batch"):
        LinearProbe().begin(4, ["a", "b"]).end_epoch()


def test_one_class():
    with pytest.raises(HeadError, match=r"\['a'\].*at least 2 classes"):
        LinearProbe().begin(4, ["a", "a"])


def test_divergence_is_said():
    X, y = blobs()
    with pytest.raises(HeadError, match="no longer finite at lr=1e\\+38"):
        LinearProbe("sgd", lr=1e38, epochs=20).fit(X * 100, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamax"}, "'adamax'; expected one of adam, adamw, sgd"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": -1.0}, "lr=-1.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigurationError, match=message):
        LinearProbe(**options).fit(*blobs())


def test_standardize_needs_moments_step_by_step():
    with pytest.raises(ConfigurationError, match="Pass moments="):
        LinearProbe(standardize=True).begin(4, ["a", "b"])
