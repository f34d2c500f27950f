"""Refits: what they may see, and what a run's head becomes here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.workspaces import make_workspace

from dinoprobe.datasets import DataSettings
from dinoprobe.datasets.corrections import State
from dinoprobe.encoder import EncoderSettings
from dinoprobe.heads import LDAProbe, LogisticProbe, RidgeProbe, apply_temperature
from dinoprobe.page.fitting import Model, Recipe, refit
from dinoprobe.page.picks import spread
from dinoprobe.page.pictures import Pictures
from dinoprobe.page.projection import principal, tsne, unit
from dinoprobe.train import TrainConfig

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(4, 16)) * 2
CODES = RNG.integers(0, 4, 400)
X = (CENTRES[CODES] + RNG.normal(size=(400, 16))).astype(np.float32)
Y = np.array([f"class {code}" for code in CODES], dtype=object)


def config(head: str) -> TrainConfig:
    data, encoder = DataSettings(source="x"), EncoderSettings(name="builtin")
    return TrainConfig(data=data, encoder=encoder, head=head)


@pytest.mark.parametrize(
    ("head", "chosen"),
    [
        (LogisticProbe(C=0.1), {"name": "logistic", "strength": 0.1}),
        (RidgeProbe(alpha=10.0), {"name": "ridge", "alpha": 10.0}),
        (LDAProbe(shrinkage=0.5), {"name": "lda", "shrinkage": 0.5}),
    ],
)
def test_a_refit_of_unchanged_labels_is_the_run_s_head(head: object, chosen: dict) -> None:
    head.fit(X, Y)
    apply_temperature(head, 0.7)
    recipe = Recipe.of_run(config(chosen["name"]), {**chosen, "temperature": head.temperature_})
    assert not recipe.stands_in
    again = recipe.fit(X, Y)
    np.testing.assert_allclose(again.predict_proba(X), head.predict_proba(X), atol=2e-3)


def test_a_head_that_takes_minutes_is_stood_in_for() -> None:
    recipe = Recipe.of_run(config("linear-grid"), {"name": "linear-grid"})
    assert (recipe.name, recipe.stands_in) == ("ridge", True)
    assert recipe.fit(X, Y).score(X, Y) > 0.9


def test_a_prior_is_kept() -> None:
    from dataclasses import replace

    rare = np.flatnonzero((CODES > 0) | (np.arange(len(CODES)) % 20 == 0))
    plain = Recipe("logistic", LogisticProbe(C=0.1)).fit(X[rare], Y[rare])
    shifted = replace(Recipe("logistic", LogisticProbe(C=0.1)), prior="uniform")
    found = shifted.fit(X[rare], Y[rare])
    assert found.predict_proba(X)[:, 0].mean() > plain.predict_proba(X)[:, 0].mean()


def test_the_test_part_changes_no_bit_of_the_head(tmp_path: Path) -> None:
    """Labels and pixels of the test part replaced by noise: the same weights."""
    work = make_workspace(tmp_path)
    refit(work, work.standing())
    weights = work.model.head.coef_.copy()
    test = np.flatnonzero(work.is_test())
    work.features.X[test] = RNG.normal(size=(len(test), 3)) * 1e3
    work.features.y[test] = RNG.permutation(work.features.y[test])
    refit(work, work.standing())
    np.testing.assert_array_equal(work.model.head.coef_, weights)


def test_a_copy_of_a_test_image_that_came_later_is_not_trained_on(tmp_path: Path) -> None:
    work = make_workspace(tmp_path)
    test, train = work.rows["test/red/0.png"], work.rows["train/red/1.png"]
    hashes = list(work.features.hashes)
    hashes[train] = hashes[test]
    object.__setattr__(work.features, "hashes", tuple(hashes))
    assert train in work.training_rows(work.standing())
    splits = list(work.splits)
    splits[train] = None
    work.splits = tuple(splits)
    assert train not in work.training_rows(work.standing())


def test_a_correction_moves_only_what_it_names(tmp_path: Path) -> None:
    work = make_workspace(tmp_path)
    work.log.append([work.wanted("train/red/1.png", State("red"), State("blue"))])
    standing = work.standing()
    moved = [key for key, row in work.rows.items() if standing.labels[row] != work.features.y[row]]
    assert moved == ["train/red/1.png"]


def test_a_model_judges_all_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    head = LogisticProbe(C=0.1).fit(X, Y)
    whole = Model.of(head, X, 0)
    monkeypatch.setattr("dinoprobe.page.fitting.BLOCK_ROWS", 7)
    parts = Model.of(head, X, 0)
    np.testing.assert_array_equal(whole.best, parts.best)
    probabilities = np.sort(head.predict_proba(X), axis=1)
    np.testing.assert_allclose(parts.probability, probabilities[:, -1], rtol=1e-6)
    margin = probabilities[:, -1] - probabilities[:, -2]
    np.testing.assert_allclose(parts.margin, margin, atol=1e-6)


def test_thumbnails_are_kept_up_to_their_bytes(tmp_path: Path) -> None:
    work = make_workspace(tmp_path)
    one = len(Pictures(work.samples, None).get(work.features.keys[0], 128))
    pictures = Pictures(work.samples, None, max_bytes=5 * one)
    for key in work.features.keys:
        pictures.get(key, 128)
    assert 0 < pictures.size_bytes <= 5 * one
    last = work.features.keys[-1]
    work.samples[last].source.path  # noqa: B018 - it is a file
    (tmp_path / "colours" / last).unlink()
    assert pictures.get(last, 128)


def test_picks_cover_the_clusters_and_leave_copies_out() -> None:
    rows = np.arange(len(X))
    picked = spread(X, rows, np.empty(0, np.intp), 8, np.random.default_rng(0))
    assert len(set(picked)) == 8
    assert set(CODES[picked]) == {0, 1, 2, 3}
    copies = np.ones((5, 3), np.float32)
    picked = spread(copies, np.arange(5), np.empty(0, np.intp), 5, np.random.default_rng(0))
    assert sorted(picked) == [0, 1, 2, 3, 4]


def test_maps_keep_classes_together() -> None:
    for points in (principal(X[:200], 2), tsne(X[:200], 0)):
        placed = unit(points)
        assert placed.shape == (200, 2)
        assert np.abs(placed).max() == pytest.approx(1)
        near = np.linalg.norm(placed[:, None] - placed, axis=2)
        np.fill_diagonal(near, np.inf)
        assert (CODES[:200][near.argmin(axis=1)] == CODES[:200]).mean() > 0.8


def test_maps_of_few_rows() -> None:
    for n in (1, 2, 5):
        assert np.isfinite(unit(principal(X[:n], 2))).all()
        assert np.isfinite(unit(tsne(X[:n], 0))).all()
    assert np.isfinite(unit(principal(np.zeros((9, 4), np.float32), 2))).all()
