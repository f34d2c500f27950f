"""An index of neighbours: measured, near the exact answer, and refused where it is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dinoprobe import neighbour_index as module
from dinoprobe.errors import ConfigurationError, FormatError, HeadError, NonFiniteError, StoreError
from dinoprobe.heads import KNNProbe
from dinoprobe.neighbour_index import NeighbourIndex

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

K = 10


def clustered(n: int, *, spread: float, seed: int = 0) -> tuple[Any, Any]:
    """Rows of 24 features around 60 places, labelled by those and mixed up."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(9).normal(size=(60, 24))
    cluster = random.integers(0, 60, n)
    X = places[cluster] + spread * random.normal(size=(n, 24))
    return X.astype(np.float32), np.array([f"class {c % 7}" for c in cluster], dtype=object)


def blocks(X: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(X), 1000):
        yield X[start : start + 1000], y[start : start + 1000].tolist()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[NeighbourIndex, Any, Any]:
    X, y = clustered(6000, spread=0.6)
    folder = tmp_path_factory.mktemp("index") / "new"
    return NeighbourIndex.build(folder, blocks(X, y), k=K), X, y


def test_the_recall_is_what_is_found_of_the_exact_neighbours(
    built: tuple[NeighbourIndex, Any, Any],
) -> None:
    index, X, y = built
    assert len(index) == 6000
    assert index.recall.share >= 0.95
    assert (index.recall.k, index.recall.queries, index.recall.partitions) == (K, 200, 77)
    assert index.recall.probes <= 19
    queries, _ = clustered(300, spread=0.6, seed=1)
    found, labels = index.nearest(queries, K)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, X)]
    cosines = unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)
    exact = np.argsort(-cosines, axis=1)[:, :K]
    share = np.mean([len(set(a) & set(b)) / K for a, b in zip(found.rows, exact, strict=True)])
    assert share == pytest.approx(index.recall.share, abs=0.04)
    np.testing.assert_allclose(
        found.similarity, np.take_along_axis(cosines, found.rows, axis=1), atol=1e-5
    )
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert (labels == y[found.rows]).all()


def test_answers_are_nearly_those_of_all_rows(built: tuple[NeighbourIndex, Any, Any]) -> None:
    index, X, y = built
    queries, _ = clustered(300, spread=0.6, seed=1)
    exact = KNNProbe(K).fit(X, y).predict_proba(queries)
    found = index.predict_proba(queries, k=K)
    assert index.classes == tuple(f"class {c}" for c in range(7))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.98
    assert np.median(np.abs(found - exact).max(axis=1)) < 1e-5


def test_it_is_opened_again(built: tuple[NeighbourIndex, Any, Any]) -> None:
    index, X, _ = built
    again = NeighbourIndex.open(index.folder)
    assert again.recall == index.recall
    assert np.array_equal(again.nearest(X[:20], 5)[0].rows, index.nearest(X[:20], 5)[0].rows)


def test_features_without_clusters_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    y = np.array(["a", "b"] * 2000, dtype=object)
    with pytest.raises(HeadError, match=r"finds a share of 0\.\d+ of the 10 nearest rows .* 0.95"):
        NeighbourIndex.build(tmp_path / "i", blocks(X, y), k=K)
    assert list(tmp_path.iterdir()) == []
    lax = NeighbourIndex.build(tmp_path / "i", blocks(X, y), k=K, least_recall=0.3)
    assert 0.3 <= lax.recall.share < 0.95


def test_more_neighbours_than_were_measured_are_refused(
    built: tuple[NeighbourIndex, Any, Any],
) -> None:
    index, X, _ = built
    with pytest.raises(ConfigurationError, match=r"k is 11; expected 1 to 10"):
        index.nearest(X[:1], 11)
    with pytest.raises(HeadError, match=r"\(1, 3\); expected rows of 24"):
        index.nearest(X[:1, :3], 5)
    with pytest.raises(NonFiniteError, match="A query holds NaN"):
        index.nearest(np.full((1, 24), np.nan), 5)


def test_what_can_not_be_built_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    X, y = clustered(2000, spread=0.3)

    def damaged() -> Iterator[tuple[Any, Any]]:
        yield X[:1000], y[:1000]
        raise StoreError("the row of content hash ab12 is damaged")

    with pytest.raises(StoreError, match="ab12 is damaged"):
        NeighbourIndex.build(tmp_path / "i", damaged())
    with pytest.raises(HeadError, match="500 rows are too few for an index; expected 1,024"):
        NeighbourIndex.build(tmp_path / "i", blocks(X[:500], y[:500]))
    with pytest.raises(HeadError, match="no blocks"):
        NeighbourIndex.build(tmp_path / "i", [])
    X[1500, 2] = np.inf
    with pytest.raises(NonFiniteError, match="from row 1000"):
        NeighbourIndex.build(tmp_path / "i", blocks(X, y))
    with pytest.raises(HeadError, match=r"\(10, 24\) and 9 labels"):
        NeighbourIndex.build(tmp_path / "i", [(X[:10], y[:9])])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an empty or new folder"):
        NeighbourIndex.build(tmp_path, blocks(X, y))
    assert (tmp_path / "own.txt").exists()


@pytest.mark.parametrize("content", [None, "{", json.dumps({"schema": "other/1"})])
def test_a_folder_that_holds_no_index_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(FormatError):
        NeighbourIndex.open(tmp_path)


def test_the_probes_stop_at_a_quarter_of_the_centres(
    built: tuple[NeighbourIndex, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _, _ = built
    tried: list[int] = []

    def share(self: object, queries: object, least: object, k: int, probes: int) -> float:
        tried.append(probes)
        return 0.5

    monkeypatch.setattr(NeighbourIndex, "_share", share)
    assert index.measure(K).share == 0.5
    assert tried == [1, 2, 4, 8, 16, 19, 19]
    assert module.MOST_SHARE == 0.25
