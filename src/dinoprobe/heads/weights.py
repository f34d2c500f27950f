"""How often each row counts: weights of rows and classes, with scikit-learn's meaning.

A row of weight 2 counts as two equal rows in every sum of a fit, and one of weight 0 as none.
"balanced" weights are n / (k n_j) for class j of k, n and n_j themselves sums of sample weights
(King and Zeng 2001; scikit-learn `utils/class_weight.py`): their mean is 1, so that a strength of
regularisation keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import HeadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s

    ClassWeight = Literal["balanced"] | Mapping[Any, float] | None

BALANCED = "balanced"


def row_weights(
    codes: Codes,
    class_count: int,
    class_weight: ClassWeight = None,
    sample_weight: npt.ArrayLike | None = None,
    *,
    classes: Sequence[Any] | npt.NDArray[Any] | None = None,
) -> Float64s | None:
    """Sample weight times class weight of each row `(n,)`, None where all rows count once.

    `class_weight` is None, "balanced", or a mapping from label to weight above 0 (1 where a label
    is left out), for which `classes` name the labels of the codes. Raises HeadError for weights
    that are negative, not finite, of another length, or all 0, and for labels that do not occur
    where others are left out: a slip of the pen.
    """
    weights = None if sample_weight is None else check_sample_weight(sample_weight, len(codes))
    of_classes = class_weights(codes, class_count, class_weight, weights, classes=classes)
    return product_weights(codes, of_classes, weights)


def product_weights(
    codes: Codes, of_classes: Float64s | None, sample_weight: Float64s | None
) -> Float64s | None:
    """Sample weight times the weight of its class for each row, None where neither is given."""
    if of_classes is None:
        return sample_weight
    return of_classes[codes] if sample_weight is None else of_classes[codes] * sample_weight


def check_sample_weight(sample_weight: npt.ArrayLike, row_count: int) -> Float64s:
    """Sample weights as float64 `(n,)`, or HeadError."""
    try:
        weights = np.array(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"sample_weight does not hold numbers ({error}); expected one for each row."
        raise HeadError(msg) from error
    if weights.shape != (row_count,):
        raise HeadError(
            f"sample_weight has the shape {weights.shape}; expected {row_count} numbers, one for "
            f"each row of features."
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise HeadError(
            f"sample_weight is {weights[wrong[0]]:g} in row {wrong[0]} ({len(wrong)} such rows); "
            f"expected finite numbers from 0. Give a row that must not count the weight 0."
        )
    if not weights.any():
        raise HeadError(
            f"sample_weight is zero in all {row_count} rows; expected at least one row that counts."
        )
    return weights


def check_class_weight(class_weight: ClassWeight) -> None:
    """HeadError unless it is None, "balanced", or a mapping to finite numbers above 0."""
    if class_weight is None or (isinstance(class_weight, str) and class_weight == BALANCED):
        return
    if not isinstance(class_weight, Mapping):
        raise HeadError(
            f'class_weight is {class_weight!r}; expected None, "balanced", or a mapping from label '
            f'to weight, such as {{"cat": 2.0}}.'
        )
    for label, weight in class_weight.items():
        if not (isinstance(weight, int | float | np.number) and 0 < weight < float("inf")):
            raise HeadError(
                f"class_weight is {weight!r} for {label!r}; expected a finite number above 0. "
                f"Leave out the rows of a class that must not count."
            )


def class_weights(
    codes: Codes,
    class_count: int,
    class_weight: ClassWeight,
    sample_weight: Float64s | None = None,
    *,
    classes: Sequence[Any] | npt.NDArray[Any] | None = None,
) -> Float64s | None:
    """The weight of each class `(k,)`, None where all are 1; see `row_weights`."""
    check_class_weight(class_weight)
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        counts = np.bincount(codes, sample_weight, minlength=class_count)
        present = counts > 0
        balanced = counts.sum() / (np.count_nonzero(present) * np.where(present, counts, 1))
        return np.where(present, balanced, 0.0)
    labels = list(range(class_count)) if classes is None else np.asarray(classes).tolist()
    unknown = [label for label in class_weight if label not in labels]
    if unknown and any(label not in class_weight for label in labels):
        raise HeadError(
            f"class_weight names {unknown[0]!r} ({len(unknown)} such labels), which no row has; "
            f"expected some of {', '.join(map(repr, labels[:10]))}. Correct or remove it."
        )
    return np.array([float(class_weight.get(label, 1.0)) for label in labels])
