"""The rule by which a strength is taken: against pairs counted by hand, and in the heads."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.test_train_calibration import config

from dinoprobe.errors import ConfigurationError, HeadError
from dinoprobe.heads import LDAProbe, LogisticProbe, RidgeProbe
from dinoprobe.heads.selection import select, standard_errors
from dinoprobe.train.checks import check_config
from dinoprobe.train.protocols import with_options

LOSS = np.array([0.5, 0.4, 0.6, 0.7])


def taken(accuracy, *, rule="one-se", n=100, strongest_last=True):
    accuracy = np.array(accuracy)
    share = accuracy.max()
    errors = np.full(len(accuracy), np.sqrt(share * (1 - share) / n))
    return select(accuracy, LOSS, errors, rule=rule, strongest_last=strongest_last)


def test_best_is_the_most_accurate_and_of_equals_the_one_with_less_loss() -> None:
    assert taken([0.8, 0.9, 0.9, 0.7], rule="best") == 1
    assert taken([0.9, 0.7, 0.9, 0.7], rule="best") == 0


def test_one_standard_error_of_a_share() -> None:
    """0.9 of 100 rows has a standard error of 0.03: 0.87 is within, 0.86 is not."""
    assert taken([0.5, 0.9, 0.87, 0.86]) == 2
    assert taken([0.86, 0.87, 0.9, 0.9], strongest_last=False) == 1
    assert taken([0.5, 0.9, 0.87, 0.86], n=10_000) == 1


def test_pairs_tell_more_than_shares() -> None:
    """The second is right on 3 rows fewer and on no row more: three rows of 100 are no chance."""
    correct = np.ones((2, 100), dtype=bool)
    correct[:, :10] = False
    correct[1, 10:13] = False
    accuracy = correct.mean(axis=1)
    found = standard_errors(0, 100, correct)
    assert found == pytest.approx([0, np.sqrt(0.03 * 0.97) / 10])  # 1.7 points, and 3 between them
    loss = np.zeros(2)
    options = {"rule": "one-se", "strongest_last": True}
    assert select(accuracy, loss, np.full(2, 0.03), **options) == 1
    assert select(accuracy, loss, found, **options) == 0


def test_weights_are_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    correct, weights = rng.random((3, 50)) < 0.7, rng.integers(1, 4, 50)
    repeated = np.repeat(correct, weights, axis=1)
    found = standard_errors(0, weights.sum(), correct, weights)
    assert found == pytest.approx(standard_errors(0, weights.sum(), repeated))


def test_as_many_wins_as_losses_are_chance() -> None:
    correct = np.zeros((2, 100), dtype=bool)
    correct[0, :50] = True
    correct[1, 2:51] = True  # two lost, one won
    accuracy = correct.mean(axis=1)
    options = {"rule": "one-se", "strongest_last": True}
    errors = standard_errors(0, 100, correct)
    assert select(accuracy, np.zeros(2), errors, **options) == 1


def overlapping(n=240, d=40, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(k, d))[codes] * 0.4 + rng.normal(size=(n, d))
    return X, np.array(["a", "b", "c"], dtype=object)[codes]


@pytest.mark.parametrize("folds", [None, np.arange(240) % 5])
@pytest.mark.parametrize(
    ("kind", "name"), [(LDAProbe, "shrinkage"), (RidgeProbe, "alpha"), (LogisticProbe, "C")]
)
def test_a_head_takes_the_most_regularised_within_one_standard_error(kind, name, folds) -> None:
    stronger = 0
    for seed in range(5):
        X, y = overlapping(seed=seed)
        best, rule = (kind(rule=r).fit(X, y, folds=folds) for r in ("best", "one-se"))
        results = rule.cv_results_
        path, behind = results[name], results["accuracy"].max() - results["accuracy"]
        admitted = path[behind <= results["standard_error"] + 1e-12]
        sign = -1 if name == "C" else 1  # a small C is a strong one
        assert sign * getattr(rule, f"{name}_") == (sign * admitted).max()
        more = sign * (getattr(rule, f"{name}_") - getattr(best, f"{name}_"))
        assert more >= 0
        stronger += more > 0
        assert "one standard error" in rule.selection_
        assert "standard error" not in best.selection_
    assert stronger  # else "best" would pass, too


def test_standard_errors_are_those_of_refits() -> None:
    X, y = overlapping()
    folds = np.arange(240) % 4
    path = (0.01, 1.0)
    probe = LDAProbe(path).fit(X, y, folds=folds)
    correct = np.zeros((2, 240))
    for column, shrinkage in enumerate(path):
        for fold in range(4):
            one = LDAProbe(shrinkage=shrinkage, temperature=1).fit(
                X[folds != fold], y[folds != fold]
            )
            correct[column, folds == fold] = one.predict(X[folds == fold]) == y[folds == fold]
    best = int(probe.cv_results_["accuracy"].argmax())
    other = (correct[best] - correct[1 - best]).std() / np.sqrt(240)
    assert other > 0
    assert probe.cv_results_["standard_error"][[best, 1 - best]] == pytest.approx(
        [0, other], abs=0.002
    )  # features are standardised once, and not in each fold


def test_refusals() -> None:
    X, y = overlapping()
    with pytest.raises(HeadError, match="expected 'best' or 'one-se'"):
        RidgeProbe(rule="two").fit(X, y)
    with pytest.raises(ConfigurationError, match="expected one of best, one-se"):
        check_config(config(select="two"))
    with pytest.raises(ConfigurationError, match="'knn' has no path of strengths"):
        check_config(config(select="one-se", head="knn"))


def test_the_configuration_reaches_the_head() -> None:
    given = config(select="one-se", head="lda")
    check_config(given)
    assert with_options(given, "lda", {}) == {"rule": "one-se"}
    assert with_options(config(head="lda"), "lda", {}) == {}
    assert type(given).from_dict(given.to_dict()) == given
