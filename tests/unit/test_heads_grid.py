"""Layers that train side by side equal layers that train alone, and the best one is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dinoprobe.errors import ConfigurationError, HeadError
from dinoprobe.heads import LinearGridProbe
from dinoprobe.heads.grid import BASE_RATES
from dinoprobe.heads.grid_training import INITIAL_DEVIATION, Setting

TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def blobs(n=90, d=6, k=3, seed=0, distance=3.0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = distance * rng.normal(size=(k, d))[codes] + rng.normal(size=(n, d))
    return X.astype(np.float32), np.array([f"c{code}" for code in codes], dtype=object)


def trained_alone(probe, setting, X, codes):
    """The layer by torch's own modules, optimisers and scheduler, on the same batches."""
    start, stop = setting.columns
    rows, targets = torch.from_numpy(X[:, start:stop]), torch.from_numpy(codes)
    layer = nn.Linear(stop - start, len(np.unique(codes)))
    generator = torch.Generator().manual_seed(probe.random_state)
    nn.init.normal_(layer.weight, 0, INITIAL_DEVIATION, generator=generator)
    nn.init.zeros_(layer.bias)
    momentum = {"momentum": 0.9} if probe.optimizer == "sgd" else {}
    optimizer = TORCH[probe.optimizer](
        layer.parameters(), lr=setting.lr, weight_decay=setting.weight_decay, **momentum
    )
    steps = probe.epochs * -(-len(X) // probe.batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0)
    shuffles = torch.Generator().manual_seed(probe.random_state)
    for _ in range(probe.epochs):
        for batch in torch.split(torch.randperm(len(X), generator=shuffles), probe.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(rows[batch]), targets[batch]).backward()
            optimizer.step()
            if probe.schedule == "cosine":
                cosine.step()
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_each_layer_equals_its_training_alone(optimizer, schedule):
    X, y = blobs(n=200, d=10)
    codes = np.unique(y, return_inverse=True)[1]
    probe = LinearGridProbe(
        optimizer, schedule=schedule, lrs=[1e-3, 1e-2, 0.1], weight_decays=[0.0, 0.05],
        poolings=[(0, 10), (4, 10)], epochs=3, batch_size=32, random_state=5,
    )  # fmt: skip
    settings = probe._settings(10)
    assert len(settings) == 12
    probe.classes_ = np.unique(y)
    data = type("Data", (), {"X": X, "codes": codes, "class_count": 3})
    training = probe._trained(data, settings, np.arange(len(X)))
    for number, setting in enumerate(settings):
        weight, intercept = trained_alone(probe, setting, X, codes)
        found = training.layer(number)
        start, stop = setting.columns
        scale = np.abs(weight).max()
        np.testing.assert_allclose(found[0][:, start:stop], weight, rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(found[1], intercept, rtol=1e-5, atol=1e-5 * scale)
        assert not found[0][:, :start].any()


@pytest.mark.parametrize("standardize", [False, True])
def test_the_best_layer_is_trained_again_on_all_rows(standardize):
    X, y = blobs(n=240, distance=1.0)
    options = {"epochs": 4, "batch_size": 16, "standardize": standardize}
    probe = LinearGridProbe(**options).fit(X, y)
    assert len(probe.cv_results_["lr"]) == 13
    np.testing.assert_allclose(probe.cv_results_["lr"], np.array(BASE_RATES) * 16 / 256)
    results = probe.cv_results_
    best = np.lexsort((results["log_loss"], -results["accuracy"]))[0]
    assert probe.lr_ == results["lr"][best]
    assert "5 stratified folds" in probe.selection_
    alone = LinearGridProbe(lr=probe.lr_, **options).fit(X, y)
    assert np.array_equal(alone.coef_, probe.coef_)
    assert (alone.selection_, alone.cv_results_) == ("given", None)
    assert len(probe.loss_history_) == 4
    assert probe.score(X, y) > 0.8


def test_the_choice_is_that_of_the_folds():
    X, y = blobs(n=117, distance=1.0)
    folds = np.arange(117) // 3 % 3
    probe = LinearGridProbe(lrs=[1e-4, 0.1], epochs=3, batch_size=16).fit(X, y, folds=folds)
    for number, lr in enumerate([1e-4, 0.1]):
        right = [
            LinearGridProbe(lr=lr, epochs=3, batch_size=16)
            .fit(X[folds != fold], y[folds != fold])
            .score(X[folds == fold], y[folds == fold])
            for fold in range(3)
        ]
        assert probe.cv_results_["accuracy"][number] == pytest.approx(np.mean(right))
    assert probe.selection_ == "3 given folds, at the edge of the rates"


def test_a_pooling_is_chosen():
    """Only the last columns know the classes."""
    X, y = blobs(n=150)
    noise = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    probe = LinearGridProbe(lrs=[0.01], poolings=[(0, 6), (6, 12)], epochs=5, batch_size=16)
    probe.fit(np.hstack([noise, X]), y)
    assert probe.pooling_ == (6, 12)
    assert not probe.coef_[:, :6].any()
    assert probe.cv_results_["pooling"].tolist() == [0, 1]


def test_without_refit_the_layer_of_the_fold_is_kept():
    X, y = blobs(n=120)
    folds = np.where(np.arange(120) < 90, -1, 0)
    options = {"lrs": [0.01, 0.05], "epochs": 3, "batch_size": 16}
    probe = LinearGridProbe(refit=False, **options).fit(X, y, folds=folds)
    alone = LinearGridProbe(lr=probe.lr_, epochs=3, batch_size=16).fit(X[:90], y[:90])
    np.testing.assert_allclose(alone.coef_, probe.coef_, rtol=1e-5, atol=1e-7)
    many = LinearGridProbe(refit=False, epochs=3, batch_size=16).fit(X, y, folds=folds)
    best = int(np.flatnonzero(many.cv_results_["lr"] == many.lr_)[0])
    assert best >= 7  # of the second group of layers
    alone = LinearGridProbe(lr=many.lr_, epochs=3, batch_size=16).fit(X[:90], y[:90])
    np.testing.assert_allclose(alone.coef_, many.coef_, rtol=1e-5, atol=1e-7)
    with pytest.raises(HeadError, match="there are 5"):
        LinearGridProbe(refit=False, **options).fit(X, y)


def test_a_rate_that_diverges_is_not_chosen():
    X, y = blobs()
    probe = LinearGridProbe(lrs=[1e-2, 1e38], epochs=20, batch_size=16).fit(X * 100, y)
    assert probe.lr_ == 1e-2
    assert probe.cv_results_["accuracy"][1] < probe.cv_results_["accuracy"][0]
    with pytest.raises(HeadError, match="no longer finite at lr=1e\\+38"):
        LinearGridProbe(lr=1e38, epochs=20, batch_size=16).fit(X * 100, y)


def test_where_nothing_validates_a_default_is_taken():
    X, y = blobs(n=3)
    probe = LinearGridProbe().fit(X, y)
    assert probe.lr_ == pytest.approx(1e-2 * 128 / 256)
    assert probe.selection_.startswith("default, lr = 0.005")


def driven(probe, X, y, steps):
    training = probe.begin(X.shape[1], sorted(set(y)), steps=steps)
    for _ in range(probe.epochs):
        for batch in training.shuffled_batches(len(X)):
            training.step(X[batch.numpy()], y[batch.numpy()])
        training.end_epoch()
    return training


def test_steps_equal_fit():
    X, y = blobs(n=100)
    folds = np.where(np.arange(100) < 80, -1, 0)
    options = {"epochs": 3, "batch_size": 16}
    fitted = LinearGridProbe(refit=False, **options).fit(X, y, folds=folds)
    training = driven(LinearGridProbe(**options), X[:80], y[:80], 15)
    losses = np.array(training.loss_history)
    probe = training.finish(X[80:], y[80:])
    np.testing.assert_allclose(probe.coef_, fitted.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(probe.cv_results_["log_loss"], fitted.cv_results_["log_loss"])
    np.testing.assert_allclose(probe.loss_history_, fitted.loss_history_, rtol=1e-5)
    assert (losses <= np.array(probe.loss_history_) + 1e-6).all()
    assert probe.predict(X).tolist() == fitted.predict(X).tolist()


def test_a_step_driven_grid_needs_rows_to_choose_by():
    X, y = blobs(n=32)
    training = driven(LinearGridProbe(epochs=1), X, y, 1)
    with pytest.raises(HeadError, match="13 layers were trained"):
        training.finish()
    with pytest.raises(HeadError, match="label 'other'"):
        training.finish(X[:1], np.array(["other"]))
    assert driven(LinearGridProbe(lr=0.1, epochs=1), X, y, 1).finish().lr_ == 0.1


def test_the_cosine_ends_at_zero():
    probe = LinearGridProbe(lr=0.1, epochs=1, batch_size=4)
    training = probe.begin(6, ["c0", "c1", "c2"], steps=2)
    X, y = blobs(n=12)
    training.step(X, y)
    training.step(X, y)
    before = training.layer(0)[0].copy()
    training.step(X, y)
    assert np.array_equal(before, training.layer(0)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "lars"}, ConfigurationError, "'lars'.*expected one of sgd, adam, adamw"),
        ({"schedule": "step"}, ConfigurationError, "cosine or constant"),
        ({"epochs": 0}, ConfigurationError, "epochs=0"),
        ({"lrs": []}, ConfigurationError, "at least one of each"),
        ({"lr": math.inf}, ConfigurationError, "rates above 0"),
        ({"weight_decays": [-1.0]}, ConfigurationError, "decays from 0"),
        ({"poolings": [(2, 9)]}, HeadError, "columns 2 to 9.*6 columns"),
        ({"cv": 1}, HeadError, "at least 2 folds"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        LinearGridProbe(**options).fit(*blobs())


def test_settings_are_ordered_by_pooling():
    probe = LinearGridProbe(lrs=[1.0, 2.0], weight_decays=[0.0, 0.1], poolings=[(0, 2), (2, 3)])
    assert probe._settings(3)[3:5] == [Setting(2.0, 0.1, (0, 2)), Setting(1.0, 0.0, (2, 3))]
