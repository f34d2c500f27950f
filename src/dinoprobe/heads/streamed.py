"""Statistics of labelled rows that come block by block: what the closed forms are fitted from.

One pass, any number of workers, and no more memory than a `(d, d)` matrix in float64 for each fold
and the rows that are kept to choose by. With them all of `RidgeProbe` and `LDAProbe` is known but
how accurate a strength is, for which a sample of rows is kept: each is judged by a fit without its
fold. At a strength a fit differs from that in memory by the rounding of float32 products (2e-6 of a
probability, `tests/unit/test_heads_streamed.py`); the strength is the same one where all rows are
kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from dinoprobe.errors import HeadError, NonFiniteError
from dinoprobe.heads.base import ProbeBase, check_labelled, require_classes
from dinoprobe.heads.closed import JUDGED_ROWS, Design, Judged, Prepared, judge_parts
from dinoprobe.heads.folds import check_folds
from dinoprobe.heads.statistics import ClassStatistics, merged, statistics_of_folds
from dinoprobe.heads.threads import one_blas_thread
from dinoprobe.heads.weights import check_sample_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s
    from dinoprobe.heads.closed import Floats, Score, Solutions


class _Kept(NamedTuple):
    """Rows with their labels, folds, weights and the random numbers by which they were drawn."""

    X: Floats
    labels: npt.NDArray[Any]
    folds: Codes
    weights: Float64s
    drawn: Float64s

    @classmethod
    def of(cls, columns: Iterable[Any]) -> _Kept:
        return cls(*columns)

    def select(self, rows: Codes) -> _Kept:
        return _Kept.of(column[rows] for column in self)


class StreamedRows:
    """What `RidgeProbe.fit_streamed` and `LDAProbe.fit_streamed` take.

    Without folds rows are dealt to `fold_count` of them at random: give folds where rows belong
    together. `kept_rows` of the rows in folds, drawn at random, are kept to judge strengths by.
    Workers take different `random_state`.
    """

    def __init__(
        self, *, fold_count: int = 5, kept_rows: int = JUDGED_ROWS, random_state: int = 0
    ) -> None:
        if fold_count < 2 or kept_rows < 1:
            raise HeadError(
                f"fold_count is {fold_count} and kept_rows {kept_rows}; expected at least 2 and 1."
            )
        self.fold_count, self.kept_rows = fold_count, kept_rows
        self.block_count = 0
        self.classes: npt.NDArray[Any] = np.empty(0, dtype=object)
        self.parts: dict[int, ClassStatistics] = {}
        self._kept: list[_Kept] = []
        self._generator = np.random.default_rng(random_state)
        self._gate = ProbeBase()

    @property
    def row_count(self) -> int:
        """Rows so far, whatever their weight."""
        return int(sum(part.row_counts.sum() for part in self.parts.values()))

    def add(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        folds: npt.ArrayLike | None = None,
        sample_weight: npt.ArrayLike | None = None,
    ) -> Self:
        """Count a block of rows `(n, d)` in: all of it, or none where an error is raised.

        `folds` `(n,)` are the validation fold of each row, -1 for one that is always trained on.
        Raises HeadError, which names the block, NonFiniteError among it.
        """
        try:
            rows, labels = check_labelled(self._gate, X, y, reset=not self.parts)
            assigned = self._folds(folds, len(labels))
            weights = None
            if sample_weight is not None:
                weights = check_sample_weight(sample_weight, len(labels))
        except (HeadError, ValueError) as error:
            kind = NonFiniteError if isinstance(error, NonFiniteError) else HeadError
            raise kind(f"Block {self.block_count + 1} of the rows: {error}") from error
        if weights is not None and not weights.all():
            some = np.flatnonzero(weights)
            rows, labels, assigned = rows[some], labels[some], assigned[some]
            weights = weights[some]
        like = self._like(rows, labels)
        codes = np.searchsorted(self.classes, labels)
        with one_blas_thread():
            self._merge(statistics_of_folds(rows, codes, assigned, like=like, weights=weights))
        self._keep(rows, labels, assigned, np.ones(len(labels)) if weights is None else weights)
        self.block_count += 1
        return self

    def merge(self, other: StreamedRows) -> Self:
        """Count the rows of another in, which may come from another process.

        Raises HeadError where its rows have another length.
        """
        if not other.parts:
            return self
        if self.parts and self._gate.n_features_in_ != other._gate.n_features_in_:
            raise HeadError(
                f"Rows of {other._gate.n_features_in_} features are merged with rows of "
                f"{self._gate.n_features_in_}; expected those of one encoder and pooling."
            )
        self._gate.n_features_in_ = other._gate.n_features_in_
        old = self.classes
        self.classes = np.union1d(old, other.classes) if len(old) else other.classes
        self.parts = _relabelled(self.parts, old, self.classes)
        self._merge(_relabelled(other.parts, other.classes, self.classes))
        self._kept += other._kept
        self._thin()
        self.block_count += other.block_count
        return self

    def for_head(self, head: ProbeBase) -> Streamed:
        """The rows as a head takes them; sets its `classes_` and `n_features_in_`.

        Raises HeadError for fewer than two classes, and for class weights.
        """
        if getattr(head, "class_weight", None) is not None:
            raise HeadError(
                f"{type(head).__name__} has class weights, and statistics hold rows as they were "
                "counted; expected class_weight=None. Give add() the weights as sample_weight."
            )
        if not self.parts:
            raise HeadError(f"No rows for {type(head).__name__}; expected at least one block.")
        require_classes(head, self.classes, self.row_count)
        head.classes_, head.n_features_in_ = self.classes, self._gate.n_features_in_
        self._thin()
        kept = self._kept[0] if self._kept else None
        raw = merged(self.parts)
        center, scale = raw.standardization()
        center = center.astype(np.float32).astype(np.float64)
        X = np.empty((0, len(center)), np.float32) if kept is None else kept.X
        design = Design(X, center, scale, None)
        prepared = Prepared(design, self.parts, raw.moved(center, scale), raw)
        return Streamed(prepared, kept, self.classes)

    def _folds(self, folds: npt.ArrayLike | None, row_count: int) -> Codes:
        if folds is not None:
            return check_folds(folds, row_count)
        return self._generator.integers(0, self.fold_count, row_count)

    def _like(self, rows: Floats, labels: npt.NDArray[Any]) -> ClassStatistics:
        """Statistics with the pivot and unit of the first block, after new classes were added."""
        old, present = self.classes, np.unique(labels)
        self.classes = np.union1d(old, present) if len(old) else present
        if not self.parts:
            return ClassStatistics.around(rows, len(self.classes))
        if len(old) < len(self.classes):
            self.parts = _relabelled(self.parts, old, self.classes)
        return next(iter(self.parts.values()))

    def _merge(self, parts: dict[int, ClassStatistics]) -> None:
        for fold, part in parts.items():
            if fold in self.parts:
                self.parts[fold].merge(part)
            else:
                like = next(iter(self.parts.values()), part)
                self.parts[fold] = part.moved(like.pivot, like.unit)

    def _keep(
        self, rows: Floats, labels: npt.NDArray[Any], folds: Codes, weights: Float64s
    ) -> None:
        judging = np.flatnonzero(folds >= 0)
        columns = (rows, labels, folds, weights)
        drawn = self._generator.random(len(judging))
        self._kept.append(_Kept.of([*(column[judging] for column in columns), drawn]))
        if sum(len(kept.drawn) for kept in self._kept) > 2 * self.kept_rows:
            self._thin()

    def _thin(self) -> None:
        """Leave the rows with the smallest random numbers: a sample whatever the blocks were."""
        if not self._kept:
            return
        joined = _Kept.of(np.concatenate(column) for column in zip(*self._kept, strict=True))
        self._kept = [joined.select(np.argsort(joined.drawn)[: self.kept_rows])]


@dataclass(frozen=True, slots=True)
class Streamed:
    """Statistics of all rows and of each fold, and the rows that judge."""

    prepared: Prepared
    kept: _Kept | None
    classes: npt.NDArray[Any]

    def judge(
        self, solve: Callable[[int], Solutions], score: Score, strength_count: int
    ) -> Judged | None:
        """Each strength on the kept rows of each fold, fitted without it; see `judge_on_folds`.

        A row whose class the other folds lack does not judge.
        """
        if self.kept is None or not len(self.kept.drawn):
            return None
        codes = np.searchsorted(self.classes, self.kept.labels)
        total = self.prepared.total.row_counts
        parts = []
        for fold in np.unique(self.kept.folds):
            known = total > self.prepared.parts[int(fold)].row_counts
            rows = np.flatnonzero((self.kept.folds == fold) & known[codes])
            if len(rows) and np.count_nonzero(known) > 1:
                parts.append((int(fold), rows))
        weights = None if (self.kept.weights == 1).all() else self.kept.weights
        values = strength_count * len(self.classes)
        return judge_parts(self.prepared.design, codes, parts, solve, score, values, weights)

    def in_words(self) -> str:
        """What judges: "10,000 rows of 5 folds"."""
        if self.kept is None:
            return ""
        count = len(np.unique(self.kept.folds))
        return f"{len(self.kept.drawn):,} rows of {count} fold{'s' if count > 1 else ''}"


def _relabelled(
    parts: dict[int, ClassStatistics], old: npt.NDArray[Any], new: npt.NDArray[Any]
) -> dict[int, ClassStatistics]:
    places = np.searchsorted(new, old)
    return {fold: part.relabelled(places, len(new)) for fold, part in parts.items()}
