"""Rows of a fit: checked, weighted, and those of weight 0 left out with their folds and groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.heads.base import check_labelled, require_classes
from dinoprobe.heads.folds import check_folds, check_group_count, folds_of_splits
from dinoprobe.heads.weights import check_sample_weight, class_weights, product_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s, ProbeBase


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Features `(n, d)` and codes, groups and folds (None: not given).

    `weights` `(n,)` are the product of `sample_weight` `(n,)` and `class_weight` `(k,)`; None where
    all are 1.
    """

    X: Any
    codes: Codes
    weights: Float64s | None
    sample_weight: Float64s | None
    class_weight: Float64s | None
    groups: Sequence[Any] | None
    folds: Codes | None

    @property
    def count(self) -> float:
        """Rows in all, each times its weight."""
        return float(len(self.codes) if self.weights is None else self.weights.sum())


def training_rows(
    head: ProbeBase,
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None,
    *,
    groups: Sequence[Any] | None = None,
    folds: npt.ArrayLike | None = None,
) -> TrainingRows:
    """The rows that count; sets `classes_` (of these rows) and `n_features_in_`.

    Class weights and splits come from the head's options `class_weight` and `cv`, where it has
    them. Raises HeadError for labels, weights or folds that can not be used, NonFiniteError.
    """
    rows, labels = check_labelled(head, X, y)
    weights = None if sample_weight is None else check_sample_weight(sample_weight, len(labels))
    given = _folds(head, labels, groups, folds)
    if weights is not None and not weights.all():
        kept = np.flatnonzero(weights)
        rows, labels, weights = rows[kept], labels[kept], weights[kept]
        given = None if given is None else given[kept]
        groups = None if groups is None else [groups[row] for row in kept.tolist()]
    classes, codes = np.unique(labels, return_inverse=True)
    require_classes(head, classes, len(labels))
    head.classes_ = classes
    option = getattr(head, "class_weight", None)
    of_classes = class_weights(codes, len(classes), option, weights, classes=classes)
    product = product_weights(codes, of_classes, weights)
    return TrainingRows(rows, codes, product, weights, of_classes, groups, given)


def _folds(
    head: ProbeBase,
    labels: npt.NDArray[Any],
    groups: Sequence[Any] | None,
    folds: npt.ArrayLike | None,
) -> Codes | None:
    """Folds that were given, as such or as splits of `cv`."""
    check_group_count(groups, len(labels))
    if folds is not None:
        return check_folds(folds, len(labels))
    codes = np.unique(labels, return_inverse=True)[1]
    return folds_of_splits(getattr(head, "cv", 0), codes, groups)
