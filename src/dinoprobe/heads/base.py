"""What every head shares: the checks on features and labels, and how a linear head predicts.

Labels stay as they came (strings) outside; codes `0 … k-1`, in sorted order of the labels, exist
only in here. Non-finite features are refused everywhere: one NaN row in 200 is enough to make a
head trained by gradient descent predict one class without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dinoprobe.errors import HeadError, NonFiniteError
from dinoprobe.heads.threads import one_blas_thread

if TYPE_CHECKING:
    import numpy.typing as npt

    Codes = npt.NDArray[np.intp]
    Float32s = npt.NDArray[np.float32]
    Float64s = npt.NDArray[np.float64]

BLOCK_ROWS = 64
"""Rows of one matrix product at prediction; see `in_blocks`."""


@runtime_checkable
class Head(Protocol):
    """What the rest of the package relies on in a fitted head."""

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The labels, sorted; column j of the probabilities belongs to `classes_[j]`."""

    def predict_proba(self, X: npt.ArrayLike) -> Float64s:
        """Probabilities `(n, k)`, each row summing to 1."""

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The most probable label of each row."""


class ProbeBase(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier whose prediction is the most probable label. Abstract.

    `selects` names the options that fit chooses on folds, for which it takes `groups` and `folds`;
    what it chose for option `C` is `C_`.
    """

    selects: ClassVar[tuple[str, ...]] = ()
    classes_: npt.NDArray[Any]
    n_features_in_: int

    def predict_proba(self, X: npt.ArrayLike) -> Float64s:
        """Probabilities `(n, k)` in the order of `classes_`, each row summing to 1."""
        raise NotImplementedError

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The most probable label of each row."""
        probabilities = self.predict_proba(X)
        labels: npt.NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels


class LinearBase(ProbeBase):
    """Prediction from `coef_` `(k, d)` and `intercept_` `(k,)`, float32, as saved. Abstract.

    Logits are float64 products of fixed blocks, so a row's result has the same bits whatever rows
    come with it, and before and after saving.
    """

    coef_: Float32s
    intercept_: Float32s
    temperature_: float

    def logits(self, X: npt.ArrayLike) -> Float64s:
        """Scores `(n, k)` before the softmax; also for two classes."""
        return linear_logits(self, X)

    def predict_proba(self, X: npt.ArrayLike) -> Float64s:
        """Probabilities `(n, k)` in the order of `classes_`: the softmax of the logits."""
        return softmax(self.logits(X))

    def set_linear(
        self, weight: Float64s, intercept: Float64s, *, temperature: float = 1.0
    ) -> None:
        """Keep what was fitted, rounded to float32; `temperature` is what it was divided by."""
        self.coef_ = weight.astype(np.float32)
        self.intercept_ = intercept.astype(np.float32)
        self.temperature_ = temperature


def for_features(weight: Float64s, offset: Float64s, center: Float64s) -> tuple[Float64s, Float64s]:
    """Weight `(k, d)` and intercept `(k,)` of `offset + weight @ (x - center)`.

    The weight is rounded to float32 first, so that what rounding does is multiplied by the
    distance from the center and not from zero.
    """
    rounded = weight.astype(np.float32).astype(np.float64)
    return rounded, offset - rounded @ center


def linear_logits(head: Any, X: npt.ArrayLike) -> Float64s:
    """Scores `(n, k)` of a head with `coef_` and `intercept_`."""
    if not hasattr(head, "coef_"):
        check_is_fitted(head)
    weight = head.coef_.T.astype(np.float64)
    rows = validate_data(
        head, X, reset=False, dtype=(np.float64, np.float32), ensure_all_finite=False
    )
    _require_finite(head, rows)
    with one_blas_thread():
        product = in_blocks(rows, lambda some: some.astype(np.float64, copy=False) @ weight)
    return np.asarray(product + head.intercept_)


def check_rows(head: Any, X: npt.ArrayLike) -> Any:
    """Finite features `(n, d)` to fit on; sets `n_features_in_`."""
    rows = validate_data(head, X, dtype=(np.float32, np.float64), ensure_all_finite=False)
    _require_finite(head, rows)
    return rows


def check_training(head: ProbeBase, X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Any, Codes]:
    """Finite features `(n, d)` and codes; sets `classes_` and `n_features_in_`.

    Raises HeadError for labels that are missing or of one class only, NonFiniteError for NaN.
    """
    rows, labels = check_labelled(head, X, y)
    classes, codes = np.unique(labels, return_inverse=True)
    require_classes(head, classes, len(labels))
    head.classes_ = classes
    return rows, codes


def check_labelled(
    head: ProbeBase, X: npt.ArrayLike, y: npt.ArrayLike, *, reset: bool = True
) -> tuple[Any, npt.NDArray[Any]]:
    """Finite features `(n, d)` and labels; sets `n_features_in_`, or compares without `reset`."""
    floats = (np.float32, np.float64)
    rows, labels = validate_data(head, X, y, reset=reset, dtype=floats, ensure_all_finite=False)
    _require_finite(head, rows)
    _require_labels(labels)
    check_classification_targets(labels)
    return rows, labels


def require_classes(head: ProbeBase, classes: npt.NDArray[Any], row_count: int) -> None:
    """HeadError for fewer than two classes."""
    if len(classes) < 2:
        raise HeadError(
            f"All {row_count} training rows have one class, {classes.tolist()[0]!r}; "
            f"{type(head).__name__} needs at least 2 classes. Add images of another class."
        )


def check_features(head: Any, X: npt.ArrayLike) -> Float64s:
    """Finite float64 features `(n, d)` with as many columns as the head was fitted on."""
    rows: Float64s = validate_data(head, X, reset=False, dtype=np.float64, ensure_all_finite=False)
    _require_finite(head, rows)
    return rows


def in_blocks(X: npt.NDArray[Any], function: Any) -> Float64s:
    """`function` of every `BLOCK_ROWS` rows, the last block filled up with zeros, stacked.

    A matrix product picks its kernel by shape, and kernels differ in the last bits; with one shape
    for all blocks, a row's result does not depend on how many rows come with it.
    """
    blocks = []
    for start in range(0, len(X), BLOCK_ROWS):
        rows = X[start : start + BLOCK_ROWS]
        missing = BLOCK_ROWS - len(rows)
        padded = np.pad(rows, ((0, missing), (0, 0))) if missing else rows
        blocks.append(function(np.ascontiguousarray(padded))[: len(rows)])
    return np.concatenate(blocks)


def softmax(logits: npt.NDArray[np.floating]) -> Float64s:
    """Rows of positive numbers that sum to 1, in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _require_finite(head: object, X: npt.NDArray[np.floating]) -> None:
    with np.errstate(over="ignore"):
        total = X.sum()
    if np.isfinite(total) or np.isfinite(X).all():
        return
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    raise NonFiniteError(
        f"Features hold NaN or inf in {len(bad)} of {len(X)} rows, the first is row {bad[0]}; "
        f"{type(head).__name__} needs finite numbers. Leave those rows out, or embed them again."
    )


def _require_labels(y: npt.NDArray[Any]) -> None:
    """Object arrays may hide None among strings, which sorting would trip over."""
    if y.dtype != object or not any(isinstance(label, str) for label in y):
        return
    bad = [row for row, label in enumerate(y) if not isinstance(label, str)]
    if bad:
        raise HeadError(
            f"Row {bad[0]} has the label {y[bad[0]]!r} ({len(bad)} such rows); a head is fitted on "
            f"strings. Leave out the rows without a label."
        )
