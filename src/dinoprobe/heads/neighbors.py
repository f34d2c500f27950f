"""k nearest neighbours by cosine, votes weighted by exp(similarity / T), as the DINO evaluations.

Exact, by `nearest`, whatever the order of the rows. Nothing is trained, so it is the quickest look
at features; it trails a logistic head by about 4 points on learned features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads.base import ProbeBase, check_features
from dinoprobe.heads.folds import group_codes
from dinoprobe.heads.nearest import nearest
from dinoprobe.heads.training import training_rows
from dinoprobe.heads.weights import product_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float32s, Float64s
    from dinoprobe.heads.weights import ClassWeight

CANDIDATES = (10, 20, 100, 200)
"""k and T = 0.07 as facebookresearch/dinov3 `dinov3/eval/knn.py`."""
DEFAULT_K = 20
HELD_NEIGHBORS = 2**22
"""Neighbours of all queries that are held at a time."""
NORMALIZED_ROWS = 256
"""Rows that stay in a core's cache on their way from features to length 1."""
ROUNDING = 1e-9
"""Sums of weights that differ by less, as a share, are equal."""
JUDGED_ROWS = 5_000
"""At most so many training rows, evenly spaced, judge the candidates."""


class KNNProbe(ProbeBase):
    """Weighted vote of the k training rows with the largest cosine similarity.

    `k="auto"` takes the most accurate of 10, 20, 100, 200 (of equals the smallest), judged on the
    training rows with each row's own group or fold left out. A k beyond the rows takes all rows.
    A row of zeros is equally similar, 0, to everything. Sample weights count rows: a row of weight
    2 takes two of the k places, one of weight 0.5 half a place. Class weights multiply the votes
    (`heads/weights.py`). After fit: `k_`; `selection_`, how it was
    chosen, in words.
    """

    selects = ("k",)

    sample_weight_: Float64s | None = None
    class_weight_: Float64s | None = None

    def __init__(
        self,
        k: int | Literal["auto"] = DEFAULT_K,
        *,
        temperature: float = 0.07,
        class_weight: ClassWeight = None,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.class_weight = class_weight

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        groups: Sequence[Any] | None = None,
        folds: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Keep the rows, and choose k where it is "auto".

        Rows that share a group, or a fold where `folds` are given, do not vote for each other in
        the choice; rows in fold -1 vote for all and are not judged.
        """
        self._check_options()
        rows = training_rows(self, X, y, sample_weight, groups=groups, folds=folds)
        self.codes_, self.features_ = rows.codes, normalized(rows.X)
        self.sample_weight_, self.class_weight_ = rows.sample_weight, rows.class_weight
        if self.k != "auto":
            self.k_, self.selection_ = min(self.k, self._places()), "given"
        elif rows.folds is None:
            self._choose_k(group_codes(rows.groups, len(rows.codes)), "leaving one out")
        else:
            count = len(np.unique(rows.folds[rows.folds >= 0]))
            self._choose_k(rows.folds, f"{count} given fold{'s' if count > 1 else ''}")
        return self

    def _places(self) -> int:
        """The largest k: all rows, each times its weight."""
        weights = self.sample_weight_
        return len(self.codes_) if weights is None else max(1, math.ceil(weights.sum()))

    def _reach(self, k: int) -> int:
        """How many of the nearest rows surely fill k places."""
        if self.sample_weight_ is None:
            return k
        filled = np.sort(self.sample_weight_).cumsum()
        return min(int(np.searchsorted(filled, k)) + 1, len(filled))

    def predict_proba(self, X: npt.ArrayLike) -> Float64s:
        """Shares of the weighted vote `(n, k)` in the order of `classes_`.

        Similarities are those of float64, so that a row's result does not depend on the rows that
        come with it: the temperature makes differences 14 times larger.
        """
        check_is_fitted(self)
        queries = normalized(check_features(self, X))
        votes = np.empty((len(queries), len(self.classes_)))
        reach = self._reach(self.k_)
        size = max(1, HELD_NEIGHBORS // reach)
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            found = nearest(queries[part], self.features_, reach)
            votes[part] = self._vote(*found, self.k_)
        return votes

    def _vote(self, similarity: Float64s, found: Codes, k: int) -> Float64s:
        """Probabilities `(b, classes)` by the nearest, best first, that fill k places.

        Rows without a neighbour that may vote get zeros.
        """
        if self.sample_weight_ is None:
            similarity, found = similarity[:, :k], found[:, :k]
        counts = None
        if self.sample_weight_ is not None:
            own = np.where(np.isfinite(similarity), self.sample_weight_[found], 0)
            counts = np.clip(k - (own.cumsum(axis=1) - own), 0, own)
        votes = vote(
            similarity, self.codes_[found], len(self.classes_), self.temperature, counts=counts
        )
        if self.class_weight_ is not None:
            votes *= self.class_weight_
        total = votes.sum(axis=1, keepdims=True)
        return votes / np.where(total > 0, total, 1)

    def _choose_k(self, excluded: Codes, how: str) -> None:
        """Set `k_` and `selection_` by accuracy; rows of equal `excluded` do not vote together."""
        judged = np.flatnonzero(excluded >= 0)
        if len(np.unique(excluded)) < 2 or not len(judged):
            self.k_ = min(DEFAULT_K, self._places())
            self.selection_ = "default: all rows belong to one group"
            return
        spread = np.linspace(0, len(judged) - 1, min(len(judged), JUDGED_ROWS))
        judged = judged[spread.astype(np.intp)]
        candidates = sorted({min(k, self._places()) for k in CANDIDATES})
        correct = self._count_correct(judged, excluded, candidates)
        equal = correct >= (1 - ROUNDING) * correct.max()
        self.k_ = candidates[int(equal.argmax())]
        self.selection_ = f"{how}, {len(judged)} rows"

    def _count_correct(self, rows: Codes, excluded: Codes, candidates: list[int]) -> Float64s:
        similarity, found = nearest(
            self.features_[rows],
            self.features_,
            self._reach(candidates[-1]),
            excluded=excluded,
            excluded_queries=excluded[rows],
        )
        votes = (self._vote(similarity, found, k) for k in candidates)
        truth = self.codes_[rows]
        weights = product_weights(self.codes_, self.class_weight_, self.sample_weight_)
        counts = np.ones(len(rows)) if weights is None else weights[rows]
        return np.array(
            [counts @ ((vote.argmax(axis=1) == truth) & vote.any(axis=1)) for vote in votes]
        )

    def _check_options(self) -> None:
        if not (self.k == "auto" or (isinstance(self.k, int) and self.k >= 1)):
            raise ConfigurationError(f'k is {self.k!r}; expected a number from 1, or "auto".')
        if not self.temperature > 0:
            raise ConfigurationError(f"temperature is {self.temperature}; expected above 0.")


def vote(
    similarity: Float64s,
    codes: Codes,
    class_count: int,
    temperature: float,
    *,
    counts: Float64s | None = None,
) -> Float64s:
    """Summed exp(similarity / T) of each class `(b, classes)`, up to a factor for each row.

    `codes` `(b, k)` are those of the neighbours, `counts` how often each votes. A similarity of
    -inf has no vote.
    """
    best = similarity.max(axis=1, keepdims=True)
    weights = np.exp((similarity - np.where(np.isfinite(best), best, 0)) / temperature)
    if counts is not None:
        weights *= counts
    votes = np.zeros((len(codes), class_count))
    np.add.at(votes, (np.arange(len(codes))[:, None], codes), weights)
    return votes


def normalized(X: npt.NDArray[np.floating]) -> Float32s:
    """Rows of length 1, float32; rows of zeros stay."""
    result = np.empty(X.shape, np.float32)
    for start in range(0, len(X), NORMALIZED_ROWS):
        part = slice(start, start + NORMALIZED_ROWS)
        result[part] = _normalized(X[part])
    return result


def _normalized(X: npt.NDArray[np.floating]) -> Float64s:
    """In float64, divided by the largest value first, so that no square overflows."""
    peak = np.abs(X).max(axis=1, keepdims=True).astype(np.float64)
    scaled = X / np.where(peak > 0, peak, 1)
    length = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    return np.asarray(scaled / np.where(length > 0, length, 1))
