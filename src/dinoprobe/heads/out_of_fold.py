"""What heads say of rows that they were not fitted on: the honest sight of a training part.

One fit for each fold. Doubtful labels, the temperature and the thresholds of prediction sets are
all read from the same predictions, so they cost these fits once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from dinoprobe.heads.folds import check_folds, split_folds
from dinoprobe.heads.prior import under_prior
from dinoprobe.heads.weights import class_weights
from dinoprobe.mapped import blocks, take

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s, ProbeBase

SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Probabilities `(m, k)` of the rows `(m,)`, and their labels as codes `(m,)` of `classes`.

    0 stands for a class that the rows of a fold's fit lack, and for nothing else. `class_weights`
    `(k,)` are those of the head, None where all are 1: its probabilities are for rows that are
    weighted so.
    """

    classes: npt.NDArray[Any]
    rows: Codes
    codes: Codes
    probabilities: Float64s
    class_weights: Float64s | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> list[str]:
        """The label of each row."""
        return [str(label) for label in self.classes[self.codes]]

    def spread(self, limit: int) -> OutOfFold:
        """At most `limit` of the rows, evenly spaced over the folds."""
        if len(self) <= limit:
            return self
        kept = np.linspace(0, len(self) - 1, limit).astype(np.intp)
        return replace(
            self,
            rows=self.rows[kept],
            codes=self.codes[kept],
            probabilities=self.probabilities[kept],
        )

    @property
    def weights(self) -> Float64s | None:
        """The weight of each row `(m,)`, None where all count once."""
        return None if self.class_weights is None else self.class_weights[self.codes]

    def as_they_come(self, probabilities: Float64s) -> Float64s:
        """Probabilities `(n, k)` of such a head, for rows that are not weighted."""
        if self.class_weights is None:
            return probabilities
        weights = self.class_weights
        return under_prior(probabilities, weights, np.ones(len(weights)))


def copy_for(head: ProbeBase, labels: npt.NDArray[Any]) -> ProbeBase:
    """An unfitted copy for rows with these labels, without the weights of classes they lack."""
    copy: ProbeBase = clone(head)
    weights = getattr(copy, "class_weight", None)
    if isinstance(weights, Mapping):
        present = set(labels.tolist())
        kept = {label: weight for label, weight in weights.items() if label in present}
        copy.set_params(class_weight=kept)
    return copy


def frozen_choice(head: ProbeBase, like: ProbeBase | None = None) -> ProbeBase:
    """An unfitted copy, of `head` or `like`, with the hyper-parameters that `head` selected."""
    copy: ProbeBase = clone(head if like is None else like)
    copy.set_params(**{name: getattr(head, f"{name}_") for name in head.selects})
    return copy


def out_of_fold(
    head: ProbeBase, X: npt.NDArray[np.floating], y: npt.NDArray[Any], folds: npt.ArrayLike
) -> OutOfFold:
    """Probabilities of each row by a copy of `head` fitted without its fold, fold after fold.

    `head` has its hyper-parameters already chosen. Rows in fold -1, and rows whose class the other
    folds lack, are left out.
    """
    classes, codes = np.unique(y, return_inverse=True)
    parts = list(split_folds(check_folds(folds, len(y)), codes))
    rows = np.concatenate([np.empty(0, dtype=np.intp), *(part[1] for part in parts)])
    probabilities = np.zeros((len(rows), len(classes)))
    start = 0
    for train, validation in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said of the head itself where it matters
            fitted: ProbeBase = copy_for(head, y[train]).fit(take(X, train), y[train])
        columns = np.searchsorted(classes, fitted.classes_)
        for some in blocks(X, validation):
            found = np.maximum(fitted.predict_proba(X[some]), SMALLEST)
            probabilities[start : start + len(some), columns] = found
            start += len(some)
    option = getattr(head, "class_weight", None)
    weights = class_weights(codes, len(classes), option, classes=classes)
    return OutOfFold(classes, rows, codes[rows], probabilities, weights)
