"""The law of a learning curve: found again, with intervals that hold what they say, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from dinoprobe import learning_curve
from dinoprobe.errors import ConfigurationError
from dinoprobe.learning_curve import LearningCurve, fit_laws, summarise


def answers(
    rng: np.random.Generator,
    law: tuple[float, float, float],
    *,
    n: int = 1000,
    sizes: int = 8,
    seeds: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, and answers whose error follows a law; difficult images are so for every size."""
    floor, scale, exponent = law
    chosen = np.round(0.8 * n * 1.6 ** -np.arange(sizes)[::-1]).astype(int)
    difficulty = rng.normal(size=n)
    errors = norm.ppf(floor + scale * chosen**-exponent)
    luck = rng.normal(size=(sizes, seeds, n))
    luck[-1] = luck[-1, :1]  # all images are the same draw
    return chosen, np.sqrt(0.8) * difficulty + np.sqrt(0.2) * luck > errors[:, None, None]


def curve(
    chosen: np.ndarray, correct: np.ndarray, *, n: int = 1000, seed: int = 0
) -> LearningCurve:
    return summarise(chosen, correct, np.arange(correct.shape[2]), n_all=n, folds=5, seed=seed)


def test_exact_points_give_their_law() -> None:
    x = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    laws = np.array([[0.02, 0.1, 0.5], [0.0, 0.3, 0.3], [0.1, 0.01, 1.0]])
    errors = laws[:, :1] + laws[:, 1:2] * x[None] ** -laws[:, 2:]
    found, misfit = fit_laws(x, errors, np.full(6, 0.01))
    np.testing.assert_allclose(found, laws, atol=1e-9)
    assert misfit.max() < 1e-12


def test_floor_and_scale_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(0.05, 0.8, 6)
    found, misfit = fit_laws(x, rng.uniform(0, 0.5, (200, 6)), np.full(6, 0.02))
    assert (found >= 0).all()
    constant = rng.uniform(0, 0.5, (200, 6))
    assert np.isfinite(misfit).all()
    assert np.isfinite(fit_laws(x, constant, np.full(6, 0.02))[0]).all()


@pytest.mark.parametrize("law", [(0.0, 1.0, 0.3), (0.05, 2.0, 0.7), (0.1, 1.0, 0.4)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch, law: tuple[float, float, float]
) -> None:
    """A binomial test accepts 95 %, and rejects intervals of half their width."""
    monkeypatch.setattr(learning_curve, "DRAWS", 200)
    floor, scale, exponent = law
    truth = 1 - floor - scale * 2000.0**-exponent
    rng = np.random.default_rng(1)
    held = narrow = 0
    for seed in range(60):
        found = curve(*answers(rng, law), seed=seed)
        assert found.doubled is not None, found.refusal
        low, high = found.doubled.interval
        held += low <= truth <= high
        middle, quarter = (low + high) / 2, (high - low) / 4
        narrow += abs(truth - middle) <= quarter
    assert binomtest(held, 60, 0.95).pvalue > 0.01
    assert binomtest(narrow, 60, 0.95).pvalue < 0.01


def test_images_of_one_unit_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    chosen, correct = answers(rng, (0.05, 2.0, 0.5), n=250)
    fourfold = np.repeat(correct, 4, axis=2)
    alone = curve(chosen, fourfold).points[-1].interval
    units = np.repeat(np.arange(250), 4)
    together = summarise(chosen, fourfold, units, n_all=1000, folds=5, seed=0).points[-1].interval
    assert together[1] - together[0] > 1.6 * (alone[1] - alone[0])


def test_points_are_plain_shares() -> None:
    correct = np.zeros((5, 2, 10), dtype=bool)
    correct[3, 0, :4], correct[3, 1, :6] = True, True
    point = curve(np.array([1, 2, 4, 8, 16]), correct).points[3]
    assert (point.n, point.accuracy) == (8, 0.5)
    assert point.deviation == pytest.approx(np.std([0.4, 0.6], ddof=1))
    assert point.interval[0] < 0.5 < point.interval[1]


def test_few_sizes_are_refused() -> None:
    chosen, correct = answers(np.random.default_rng(0), (0.05, 2.0, 0.5))
    found = curve(chosen[-4:], correct[-4:])
    assert (found.law, found.now, found.doubled) == (None, None, None)
    assert "4 sizes" in str(found)
    assert len(found.points) == 4


def test_a_flat_curve_is_refused() -> None:
    chosen, correct = answers(np.random.default_rng(0), (0.1, 0.0, 1.0))
    assert "did not measurably fall" in str(curve(chosen, correct))


def test_what_is_no_power_law_is_refused() -> None:
    """The error halves, and then stays: no law of this kind does that."""
    rng = np.random.default_rng(0)
    chosen, correct = answers(rng, (0.0, 0.0, 1.0), n=4000)
    errors = [0.5, 0.5, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2]
    correct[:] = rng.random((1, 1, 4000)) >= np.array(errors)[:, None, None]
    assert "do not follow a power law" in str(curve(chosen, correct))


def test_an_interval_that_says_nothing_is_refused() -> None:
    chosen, correct = answers(np.random.default_rng(3), (0.0, 1.5, 0.3), n=60)
    assert "could be anything from" in str(curve(chosen, correct, n=60))


def test_small_sizes_that_leave_the_law_are_dropped() -> None:
    rng = np.random.default_rng(0)
    chosen, correct = answers(rng, (0.02, 3.0, 0.6), n=4000)
    correct[:2] = rng.random((1, 3, 4000)) > 0.9  # far worse than the law has it
    found = curve(chosen, correct, n=4000)
    assert found.law is not None
    assert found.law.n_from == chosen[2]


def test_the_document_is_json_and_the_sentence_has_the_figures() -> None:
    found = curve(*answers(np.random.default_rng(0), (0.05, 2.0, 0.5)))
    assert json.loads(json.dumps(found.to_dict()))["doubled"]["n"] == 2000
    assert str(found).startswith("With 2x the images (2,000): 9")
    again = curve(*answers(np.random.default_rng(0), (0.05, 2.0, 0.5)))
    assert again == found


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected \\(sizes, seeds, rows\\)"):
        curve(np.array([1, 2]), np.zeros((3, 1, 4), dtype=bool))
