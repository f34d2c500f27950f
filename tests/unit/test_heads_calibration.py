from __future__ import annotations

import numpy as np
import pytest

from dinoprobe import calibration
from dinoprobe.calibration import Calibration, calibrate
from dinoprobe.errors import HeadError
from dinoprobe.evaluation import evaluate, wilson
from dinoprobe.heads import (
    KNNProbe,
    LDAProbe,
    LogisticProbe,
    OutOfFold,
    PredictionSets,
    Scaling,
    apply_temperature,
    at_temperature,
    fit_scaling,
    fit_temperature,
    from_state,
    frozen_choice,
    out_of_fold,
    to_state,
)
from dinoprobe.heads.base import softmax
from dinoprobe.heads.calibration import TEMPERATURES


def judged_of(probabilities, codes):
    classes = np.array([f"class {j}" for j in range(probabilities.shape[1])], dtype=object)
    return OutOfFold(classes, np.arange(len(codes)), np.asarray(codes), probabilities)


def drawn(n=4000, k=5, temperature=1.0, seed=0):
    """Rows whose labels are drawn from their probabilities, shown at another temperature."""
    rng = np.random.default_rng(seed)
    right = softmax(2 * rng.normal(size=(n, k)))
    codes = (right.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return judged_of(at_temperature(right, 1 / temperature), codes)


def smoothed_loss(judged, temperature):
    """The loss as the docstring says it: a row more, in which all classes are equally right."""
    logs = np.log(at_temperature(judged.probabilities, temperature))
    own = logs[np.arange(len(judged)), judged.codes].mean()
    return -(len(judged) * own + logs.mean()) / (len(judged) + 1)


def noisy(n=150, d=6, k=3, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % k
    X = rng.normal(size=(k, d))[codes] + 1.5 * rng.normal(size=(n, d))
    return X.astype(np.float32), np.array([f"class {code}" for code in codes], dtype=object)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    found = fit_temperature(drawn(temperature=temperature))
    assert found == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("n", [7, 60])
def test_it_is_where_the_smoothed_loss_is_smallest(n):
    judged = drawn(n, temperature=2.0)
    found = fit_temperature(judged)
    grid = np.geomspace(0.1, 20, 2001)
    losses = [smoothed_loss(judged, temperature) for temperature in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.003)
    assert smoothed_loss(judged, found) <= min(losses) + 1e-12


def test_predictions_without_a_mistake_do_not_become_certain():
    n, k = 48, 3
    sure = np.full((n, k), 0.1)
    sure[np.arange(n), np.arange(n) % k] = 0.8
    scaled = at_temperature(sure, fit_temperature(judged_of(sure, np.arange(n) % k)))
    expected = (n + 1 / k) / (n + 1)
    np.testing.assert_allclose(scaled.max(axis=1), expected, rtol=1e-6)


def test_answers_at_random_end_at_the_bound():
    rng = np.random.default_rng(0)
    P = softmax(5 * rng.normal(size=(300, 4)))
    assert fit_temperature(judged_of(P, P.argmin(axis=1))) == TEMPERATURES[1]


def test_a_class_that_a_fold_lacks_stays_out():
    judged = drawn(500, temperature=2.0)
    wider = np.concatenate([judged.probabilities, np.zeros((500, 1))], axis=1)
    assert fit_temperature(judged_of(wider, judged.codes)) == pytest.approx(fit_temperature(judged))
    assert (at_temperature(wider, 3.0)[:, -1] == 0).all()


def test_tiny_probabilities_of_the_label_are_survived():
    P = np.array([[1.0, 2.3e-308], [0.5, 0.5], [2.3e-308, 1.0]])
    found = fit_temperature(judged_of(P, [1, 0, 1]))
    assert TEMPERATURES[0] <= found <= TEMPERATURES[1]


def test_no_predictions_are_refused():
    with pytest.raises(HeadError, match="no out-of-fold predictions"):
        fit_temperature(judged_of(np.empty((0, 3)), np.empty(0, dtype=int)))


def test_a_linear_head_takes_it_into_its_weights():
    X, y = noisy()
    head = LogisticProbe(C=1.0).fit(X, y)
    before, answers = head.predict_proba(X), head.predict(X)
    apply_temperature(head, 0.5)
    np.testing.assert_allclose(head.predict_proba(X), at_temperature(before, 0.5), atol=1e-6)
    np.testing.assert_array_equal(head.predict(X), answers)
    assert head.temperature_ == 0.5
    state, arrays = to_state(head)
    assert (state["kind"], set(arrays)) == ("linear", {"weight", "bias"})
    np.testing.assert_array_equal(from_state(state, arrays).predict_proba(X), head.predict_proba(X))
    apply_temperature(head, 4.0)
    assert head.temperature_ == 2.0
    assert head.fit(X, y).temperature_ == 1.0
    np.testing.assert_array_equal(head.predict_proba(X), before)


def test_a_head_without_logits_is_refused():
    with pytest.raises(HeadError, match="KNNProbe has no weight and bias"):
        apply_temperature(KNNProbe().fit(*noisy()), 2.0)


def test_what_is_told_is_what_was_done():
    X, y = noisy(300)
    head = LogisticProbe(C=1e-3).fit(X[:200], y[:200])
    plain = head.predict_proba(X[200:])
    judged = out_of_fold(LogisticProbe(C=1e-3), X[:200], y[:200], np.arange(200) // 40)
    found = calibrate(head, judged)
    assert found.n == 200
    assert found.temperature == pytest.approx(fit_temperature(judged))
    assert found.log_loss_after < found.log_loss_before - 0.02
    assert found.error_after < found.error_before
    before = evaluate(judged.labels, judged.probabilities, head.classes_.tolist())
    assert found.error_before == before.expected_calibration_error
    after = evaluate(y[200:].tolist(), head.predict_proba(X[200:]), head.classes_.tolist())
    told = calibration.tested(found, y[200:].tolist(), head.predict_proba(X[200:]), judged)
    uncalibrated = evaluate(y[200:].tolist(), plain, head.classes_.tolist())
    assert told.test_error_before == pytest.approx(
        uncalibrated.expected_calibration_error, abs=1e-5
    )
    assert told.test_error_after == after.expected_calibration_error


def test_a_head_with_class_weights_is_judged_on_rows_as_they_come():
    """Errors of its own probabilities would be those of the weights."""
    X, y = noisy(900)
    kept = np.flatnonzero((y != y[0]) | (np.arange(900) % 9 == 0))
    X, y = X[kept], y[kept]
    weighted = LDAProbe(class_weight="balanced", shrinkage=0.1, temperature=3.0)
    judged = out_of_fold(weighted, X, y, np.arange(len(y)) % 5)
    own = evaluate(judged.labels, judged.probabilities, judged.classes.tolist())
    head = weighted.fit(X, y)
    found = calibrate(head, judged)
    assert found.temperature < 0.7
    assert found.error_after < own.expected_calibration_error / 2
    assert found.log_loss_after < found.log_loss_before < own.log_loss
    assert judged.spread(50).class_weights is judged.class_weights
    told = calibration.tested(found, y.tolist(), head.predict_proba(X), judged)
    back = judged.as_they_come(head.predict_proba(X))
    plain = evaluate(y.tolist(), back, judged.classes.tolist())
    assert told.test_error_after == plain.expected_calibration_error


def test_very_many_predictions_are_thinned_out(monkeypatch):
    X, y = noisy(300)
    judged = out_of_fold(LogisticProbe(C=1.0), X, y, np.arange(300) // 60)
    monkeypatch.setattr(calibration, "JUDGED_VALUES", 3 * 100)
    assert calibrate(LogisticProbe(C=1.0).fit(X, y), judged).n == 100
    assert {row // 60 for row in judged.spread(100).rows.tolist()} == set(range(5))


def test_the_sentence():
    found = Calibration(Scaling(0.5361), 1200, 0, 0.141, 0.0147, 0.3, 0.2)
    start = (
        "Calibrated by temperature 0.536: calibration error 14.1 % before and 1.5 % after on 1,200 "
        "out-of-fold predictions"
    )
    assert str(found) == f"{start}."
    found = Calibration(Scaling(0.5361), 1200, 0, 0.141, 0.0147, 0.3, 0.2, 0.114, 0.0)
    assert str(found) == f"{start}, 11.4 % and 0.0 % on the test part."


def test_a_head_that_had_a_temperature_of_its_own_says_so():
    X, y = noisy(300)
    folds = np.arange(300) // 60
    head = LDAProbe(cv=5).fit(X, y, folds=folds)
    own = head.temperature_
    found = calibrate(head, out_of_fold(frozen_choice(head), X, y, folds))
    assert own != 1
    assert found.own_temperature == own
    assert head.temperature_ == pytest.approx(own * found.temperature)
    assert f"by temperature {found.temperature:.3g}, after the head's own of {own:.3g} by" in str(
        found
    )


def test_figures_of_sets_by_hand():
    sets = PredictionSets("lac", 0.9, (0.7,), 50)
    P = np.array([[0.6, 0.4, 0.0], [0.35, 0.6, 0.05], [0.1, 0.1, 0.8], [0.8, 0.2, 0.0]])
    found = calibration.judge_sets(sets, ["a", "c", "c", "b"], P, ["a", "b", "c"])
    assert (found.covered, found.mean_size, found.single) == (0.5, 1.5, 0.5)
    assert found.covered_interval == wilson(2, 4)
    assert (found.method, found.coverage, found.per_class, found.n) == ("lac", 0.9, False, 50)
    assert str(found).startswith("Prediction sets for 90 %: 50.0 % hold the label (95 % interval")
    assert found.to_dict()["covered_interval"] == list(wilson(2, 4))
    each = PredictionSets("lac", 0.9, (0.7, 0.1, 0.1), 50)
    assert calibration.judge_sets(each, ["a"], P[:1], ["a", "b", "c"]).per_class


def tilted(n=3000, k=4, seed=0):
    """Rows of which one class is shown with half its logit and another one too probable."""
    rows = drawn(n, k, seed=seed)
    logits = np.log(rows.probabilities)
    logits -= logits.mean(axis=1, keepdims=True)
    return judged_of(softmax(logits * [0.5, 1, 1, 1] + [0, 1.5, 0, 0]), rows.codes)


def test_vector_scaling_mends_what_one_temperature_can_not():
    known, fresh = tilted(seed=0), tilted(seed=1)
    losses = {}
    for method in ("temperature", "vector"):
        scaled = fit_scaling(known, method).apply(fresh.probabilities)
        losses[method] = -np.log(scaled[np.arange(len(fresh)), fresh.codes]).mean()
    right = drawn(3000, 4, seed=1)
    best = -np.log(right.probabilities[np.arange(3000), right.codes]).mean()
    assert losses["vector"] < best + 0.03
    assert losses["temperature"] > best + 0.1


def test_vector_scaling_stays_at_the_temperature_where_rows_are_few():
    judged = drawn(6, 5, temperature=2.0)
    found = fit_scaling(judged, "vector")
    assert found.temperature == fit_temperature(judged)
    assert np.abs(np.array(found.factors) - 1).max() < 0.25
    assert np.abs(found.biases).max() < 0.25


def test_its_slope_is_0_where_it_ends():
    from dinoprobe.heads import scaling

    judged = tilted(200)
    found = fit_scaling(judged, "vector")

    def penalised(factors, biases):
        scaled = scaling.Scaling(found.temperature, tuple(factors), tuple(biases))
        own = scaled.apply(judged.probabilities)[np.arange(200), judged.codes]
        size = np.square(np.array(factors) - 1).sum() + np.square(biases).sum()
        return scaling.PRIOR_ROWS / 2 * size - np.log(own).sum()

    least = penalised(found.factors, found.biases)
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = 0.03 * rng.normal(size=(2, 4))
        assert penalised(found.factors + step[0], found.biases + step[1]) > least


def test_a_linear_head_takes_vector_scaling_into_its_weights():
    X, y = noisy()
    head = LogisticProbe(C=1.0).fit(X, y)
    before = head.predict_proba(X)
    scaling = Scaling(0.7, (0.5, 1.0, 1.4), (0.3, 0.0, -2.0))
    scaling.fold_into(head)
    np.testing.assert_allclose(head.predict_proba(X), scaling.apply(before), atol=1e-5)
    np.testing.assert_allclose(scaling.undo(scaling.apply(before)), before, atol=1e-9)
    assert (head.predict_proba(X).argmax(axis=1) != before.argmax(axis=1)).any()
    with pytest.raises(HeadError, match="KNNProbe has no weight and bias"):
        scaling.fold_into(KNNProbe().fit(*noisy()))


def test_vector_scaling_with_a_class_that_a_fold_lacks():
    judged = drawn(60, 4)
    wider = np.concatenate([judged.probabilities, np.zeros((60, 1))], axis=1)
    found = fit_scaling(judged_of(wider, judged.codes), "vector")
    assert np.isfinite(found.factors).all()
    assert (found.factors[-1], found.biases[-1]) == (1.0, 0.0)
    assert (found.apply(wider)[:, -1] == 0).all()


def test_answers_that_vector_scaling_changes_are_counted():
    X, y = noisy(300)
    judged = out_of_fold(LogisticProbe(C=1e-3), X, y, np.arange(300) // 60)
    head = LogisticProbe(C=1e-3).fit(X, y)
    found = calibrate(head, judged, "vector")
    scaled = found.scaling.apply(judged.probabilities)
    assert found.changed == (scaled.argmax(axis=1) != judged.probabilities.argmax(axis=1)).sum()
    assert found.changed > 0
    assert f"{found.changed} answers changed)" in str(found)
    assert (found.to_dict()["method"], found.to_dict()["changed"]) == ("vector", found.changed)
    assert calibrate(LogisticProbe(C=1e-3).fit(X, y), judged).changed == 0
