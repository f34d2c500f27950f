"""What heads say of rows that they were not fitted on: the honest sight of a training part.

One fit for each fold. Doubtful labels, the temperature and the thresholds of prediction sets are
all read from the same predictions, so they cost these fits once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from dinoprobe.heads.folds import check_folds, split_folds

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s, ProbeBase

SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Probabilities `(m, k)` of the rows `(m,)`, and their labels as codes `(m,)` of `classes`.

    0 stands for a class that the rows of a fold's fit lack, and for nothing else.
    """

    classes: npt.NDArray[Any]
    rows: Codes
    codes: Codes
    probabilities: Float64s

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> list[str]:
        """The label of each row."""
        return [str(label) for label in self.classes[self.codes]]


def out_of_fold(
    head: ProbeBase, X: npt.NDArray[np.floating], y: npt.NDArray[Any], folds: npt.ArrayLike
) -> OutOfFold:
    """Probabilities of each row by a copy of `head` fitted without its fold, fold after fold.

    `head` has its hyper-parameters already chosen. Rows in fold -1, and rows whose class the other
    folds lack, are left out.
    """
    classes, codes = np.unique(y, return_inverse=True)
    rows: list[Codes] = []
    found: list[Float64s] = []
    for train, validation in split_folds(check_folds(folds, len(y)), codes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said of the head itself where it matters
            fitted: ProbeBase = clone(head).fit(X[train], y[train])
        probabilities = np.zeros((len(validation), len(classes)))
        columns = np.searchsorted(classes, fitted.classes_)
        probabilities[:, columns] = np.maximum(fitted.predict_proba(X[validation]), SMALLEST)
        rows.append(validation)
        found.append(probabilities)
    if not rows:
        empty = np.empty(0, dtype=np.intp)
        return OutOfFold(classes, empty, empty, np.empty((0, len(classes))))
    order = np.concatenate(rows)
    return OutOfFold(classes, order, codes[order], np.concatenate(found))
