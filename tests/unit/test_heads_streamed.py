"""Heads from rows that come block by block, of one worker or of three: those of all rows."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dinoprobe.errors import HeadError, NonFiniteError
from dinoprobe.heads import LDAProbe, RidgeProbe, StreamedRows

if TYPE_CHECKING:
    from collections.abc import Iterator

TOLERANCE = 2e-6
"""Largest difference of probabilities: float32 products of other blocks around another pivot."""
BLOCK = 1000


def rows(n: int = 6000, d: int = 40, *, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Features, labels that stand by class, folds and weights; the last class has ten rows."""
    random = np.random.default_rng(seed)
    codes = np.sort(np.append(random.integers(0, 5, n - 10), [5] * 10))
    X = random.normal(size=(6, d))[codes] * 0.5 + random.normal(size=(n, d)) + 3
    y = np.array([f"class {code}" for code in codes], dtype=object)
    return X.astype(np.float32), y, random.integers(-1, 5, n), random.choice([0, 0.5, 2, 3], n)


def blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n, BLOCK))


def streamed(*columns: Any, weights: Any = None, **options: Any) -> StreamedRows:
    X, y, folds = columns
    found = StreamedRows(**options)
    for part in blocks(len(X)):
        own = None if weights is None else weights[part]
        found.add(X[part], y[part], folds=folds[part], sample_weight=own)
    return found


@pytest.mark.parametrize("kind", [LDAProbe, RidgeProbe])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("rule", ["best", "one-se"])
def test_it_is_the_fit_of_all_rows(kind: Any, rule: str, *, is_weighted: bool) -> None:
    X, y, folds, given = rows()
    weights = given if is_weighted else None
    wanted = kind(rule=rule).fit(X, y, folds=folds, sample_weight=weights)
    found = kind(rule=rule).fit_streamed(streamed(X, y, folds, weights=weights))
    option = kind.selects[0]
    assert getattr(found, f"{option}_") == pytest.approx(getattr(wanted, f"{option}_"))
    assert found.temperature_ == pytest.approx(wanted.temperature_, rel=1e-4)
    np.testing.assert_allclose(
        found.cv_results_["accuracy"], wanted.cv_results_["accuracy"], atol=1e-3
    )
    assert found.classes_.tolist() == wanted.classes_.tolist()
    assert np.abs(found.predict_proba(X) - wanted.predict_proba(X)).max() <= TOLERANCE


@pytest.mark.parametrize("kind", [LDAProbe, RidgeProbe])
def test_three_workers_are_one(kind: Any) -> None:
    X, y, folds, weights = rows()
    whole = streamed(X, y, folds, weights=weights)
    workers = []
    for worker in range(3):  # classes stand in order: none has seen all of them
        part = slice(worker * 2000, worker * 2000 + 2000)
        own = streamed(X[part], y[part], folds[part], weights=weights[part], random_state=worker)
        assert len(own.classes) < 6
        workers.append(pickle.loads(pickle.dumps(own)))
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = StreamedRows()
        for worker in order:
            merged.merge(workers[worker])
        assert merged.row_count == whole.row_count == np.count_nonzero(weights)
        wanted, found = (kind().fit_streamed(each) for each in (whole, merged))
        assert np.abs(found.predict_proba(X) - wanted.predict_proba(X)).max() <= TOLERANCE


def test_merging_leaves_the_other_as_it_was() -> None:
    X, y, folds, _ = rows()
    other = streamed(X, y, folds)
    before = other.parts[0].gram.copy()
    StreamedRows().merge(other).merge(other)
    assert np.array_equal(other.parts[0].gram, before)
    assert other.row_count == len(X)


def test_fewer_rows_than_features() -> None:
    X, y, folds, _ = rows(120, 200)
    for kind, option in ((LDAProbe, {"shrinkage": 0.1}), (RidgeProbe, {"alpha": 10.0})):
        wanted = kind(**option, temperature=1.0).fit(X, y)
        found = kind(**option, temperature=1.0).fit_streamed(streamed(X, y, folds))
        assert np.abs(found.predict_proba(X) - wanted.predict_proba(X)).max() <= 1e-4


@pytest.mark.parametrize("kind", [LDAProbe, RidgeProbe])
def test_one_held_out_fold_judges_and_without_any_nothing_does(kind: Any) -> None:
    X, y, _, _ = rows()
    held = np.where(np.arange(len(X)) % 5, -1, 0)
    wanted = kind().fit(X, y, folds=held)
    found = kind().fit_streamed(streamed(X, y, held))
    assert found.selection_ == "1,200 rows of 1 fold"
    assert getattr(found, f"{kind.selects[0]}_") == getattr(wanted, f"{kind.selects[0]}_")
    none = kind().fit_streamed(streamed(X, y, np.full(len(X), -1)))
    assert none.selection_.startswith("default")


def test_a_sample_judges_where_rows_are_many() -> None:
    X, y, _, _ = rows(20_000)
    found = StreamedRows(kept_rows=2000)
    for part in blocks(len(X)):
        found.add(X[part], y[part])
    head = LDAProbe().fit_streamed(found)
    assert head.selection_ == "2,000 rows of 5 folds"
    (kept,) = found._kept
    shares = [np.mean(kept.labels == label) for label in found.classes]
    np.testing.assert_allclose(shares, [np.mean(y == label) for label in found.classes], atol=0.04)
    wanted = LDAProbe(shrinkage=head.shrinkage_, temperature=head.temperature_).fit(X, y)
    assert np.abs(head.predict_proba(X) - wanted.predict_proba(X)).max() <= TOLERANCE


def test_partial_fit_goes_on_from_it() -> None:
    X, y, folds, _ = rows()
    head = LDAProbe(shrinkage=0.1, temperature=1.0).fit_streamed(
        streamed(X[:3000], y[:3000], folds[:3000])
    )
    head.partial_fit(X[3000:], y[3000:])
    wanted = LDAProbe(shrinkage=0.1, temperature=1.0).fit(X, y)
    assert np.abs(head.predict_proba(X) - wanted.predict_proba(X)).max() <= TOLERANCE


def test_a_block_that_is_refused_leaves_the_others_as_they_were() -> None:
    X, y, folds, _ = rows()
    found = streamed(X[:2000], y[:2000], folds[:2000])
    broken = X[2000:3000].copy()
    broken[7, 3] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"Block 3 of the rows: .*NaN or inf in 1 of 1000.*row 7"
    ):
        found.add(broken, y[2000:3000])
    with pytest.raises(HeadError, match=r"Block 3 .*40"):
        found.add(X[2000:3000, :10], y[2000:3000])
    with pytest.raises(HeadError, match=r"Block 3 .*sample_weight"):
        found.add(X[2000:3000], y[2000:3000], sample_weight=-np.ones(1000))
    with pytest.raises(HeadError, match=r"Block 3 .*folds"):
        found.add(X[2000:3000], y[2000:3000], folds=[0])
    for part in list(blocks(len(X)))[2:]:
        found.add(X[part], y[part], folds=folds[part])
    wanted = RidgeProbe().fit_streamed(streamed(X, y, folds))
    assert np.array_equal(RidgeProbe().fit_streamed(found).coef_, wanted.coef_)


def test_what_can_not_be_fitted_is_told() -> None:
    X, y, folds, _ = rows()
    with pytest.raises(HeadError, match="expected at least one block"):
        LDAProbe().fit_streamed(StreamedRows())
    with pytest.raises(HeadError, match="at least 2 classes"):
        LDAProbe().fit_streamed(streamed(X[:500], y[:500], folds[:500]))
    with pytest.raises(HeadError, match="sample_weight"):
        RidgeProbe(class_weight="balanced").fit_streamed(streamed(X, y, folds))
    with pytest.raises(HeadError, match="expected at least 2 and 1"):
        StreamedRows(fold_count=1)
    with pytest.raises(HeadError, match="10 features are merged with rows of 40"):
        streamed(X, y, folds).merge(StreamedRows().add(X[:9, :10], y[:9]))
