"""The search for neighbours is exact, also where its products are rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinoprobe.heads import nearest as search
from dinoprobe.heads.nearest import nearest
from dinoprobe.heads.neighbors import normalized


def brute_force(queries, rows, k, allowed=None):
    """By all products in float64; of equals the earlier row."""
    similarity = (queries.astype(np.float64)[:, None] * rows.astype(np.float64)).sum(axis=2)
    if allowed is not None:
        similarity = np.where(allowed, similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), order


def points(n, d=12, seed=0):
    return normalized(np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32))


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def small_blocks(request, monkeypatch):
    """Several blocks, parts and chunks of a few hundred rows, in either type of product."""
    monkeypatch.setattr(search, "has_fast_bfloat16", lambda: request.param)
    monkeypatch.setattr(search, "ROUNDED_QUERIES", 1)
    monkeypatch.setattr(search, "QUERY_ROWS", 16)
    monkeypatch.setattr(search, "PART_ROWS", 64)
    monkeypatch.setattr(search, "CHUNK_PARTS", 3)
    monkeypatch.setattr(search, "GROUP_ROWS", 4)
    return request.param


@pytest.fixture
def scanned(monkeypatch):
    """Counts the queries that products could not settle."""
    numbers, scan = [], search._scan
    monkeypatch.setattr(search, "_scan", lambda *a: (numbers.extend(a[2]), scan(*a)))
    return numbers


@pytest.mark.parametrize("k", [1, 5, 40, 700])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_equals_brute_force(small_blocks, k, offset):
    rows = normalized(points(700) + np.float32(offset))
    queries = normalized(points(50, seed=1) + np.float32(offset))
    found = nearest(queries, rows, k)
    similarity, order = brute_force(queries, rows, k)
    assert np.array_equal(found.rows, order)
    np.testing.assert_allclose(found.similarity, similarity, rtol=0, atol=1e-14)


def test_rounding_is_noticed_and_made_good(small_blocks, scanned):
    """Two clusters of rows closer to each other than bfloat16 tells apart, and many of them."""
    noise = 1e-4 * np.random.default_rng(0).normal(size=(600, 64)).astype(np.float32)
    rows = normalized(np.repeat([1, -1], 300)[:, None] * points(1, d=64) + noise)
    queries = points(40, d=64, seed=2)
    found = nearest(queries, rows, 3)
    assert np.array_equal(found.rows, brute_force(queries, rows, 3)[1])
    assert bool(scanned) == small_blocks


def test_of_equal_rows_the_earlier_wins(small_blocks, scanned):
    rows = np.repeat(points(9), 70, axis=0)
    queries = points(30, seed=3)
    found = nearest(queries, rows, 5)
    assert np.array_equal(found.rows, brute_force(queries, rows, 5)[1])
    assert set(scanned) == set(range(16))  # numbers within a block: every query


def test_rows_of_zeros_are_equally_similar(small_blocks):
    rows = points(300)
    rows[7] = 0
    found = nearest(np.zeros((20, 12), np.float32), rows, 4)
    assert np.array_equal(found.rows, np.tile(np.arange(4), (20, 1)))
    assert not found.similarity.any()


@pytest.mark.parametrize("k", [3, 150])
def test_excluded_rows_are_left_out(small_blocks, k):
    rows, queries = points(300), points(40, seed=4)
    excluded, own = np.arange(300) % 3, np.arange(40) % 4
    found = nearest(queries, rows, k, excluded=excluded, excluded_queries=own)
    similarity, order = brute_force(queries, rows, k, own[:, None] != excluded)
    np.testing.assert_allclose(found.similarity, similarity, rtol=0, atol=1e-14)
    assert np.array_equal(found.rows, order)


def test_where_too_few_rows_are_allowed_places_stay_empty(small_blocks):
    excluded = np.arange(300) % 3
    found = nearest(
        points(5), points(300), 250, excluded=excluded, excluded_queries=np.zeros(5, np.intp)
    )
    assert np.isfinite(found.similarity[:, :200]).all()
    assert (found.similarity[:, 200:] == -np.inf).all()
    assert not found.rows[:, 200:].any()


def test_an_answer_does_not_depend_on_the_queries_beside_it(small_blocks):
    rows, queries = points(500, d=37), points(90, d=37, seed=5)
    whole = nearest(queries, rows, 20)
    for part in (slice(0, 1), slice(3, 60), slice(89, 90)):
        alone = nearest(queries[part], rows, 20)
        assert np.array_equal(alone.similarity, whole.similarity[part])
        assert np.array_equal(alone.rows, whole.rows[part])


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_bound_on_rounding_holds(monkeypatch, offset):
    monkeypatch.setattr(search, "has_fast_bfloat16", lambda: True)
    rows = normalized(points(400, d=96) + np.float32(offset))
    queries = normalized(points(300, d=96, seed=6) + np.float32(offset))
    prepared = search._prepared(rows, None, len(queries), lambda *each: list(map(*each)))
    rounded = torch.from_numpy(queries).bfloat16()
    lost = torch.linalg.vector_norm(torch.from_numpy(queries) - rounded.float(), dim=1)[:, None]
    exact = queries.astype(np.float64) @ (rows.astype(np.float64) - prepared.center).T
    product = (rounded @ prepared.rounded.T).double().numpy()
    error = np.abs(product - exact)
    bound = prepared.error(rounded, lost).double().numpy() + np.abs(product) / 256
    assert (error <= bound).all()
    assert error.max() > 0.05 * bound.min()  # and is no wild guess
