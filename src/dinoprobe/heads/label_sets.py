"""Several labels a row, as an indicator matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.errors import HeadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float32s

_EXPECTED = (
    "expected a matrix of 0 and 1 with a row for each row of features and a column for each class, "
    "or a list of the labels of each row, such as [['cat', 'dog'], []]"
)


class LabelSets(NamedTuple):
    """`truths` `(n, k)` of 0 and 1, and the name of each column `(k,)`."""

    truths: Float32s
    classes: npt.NDArray[Any]


def label_sets(y: Any, row_count: int, classes: Sequence[Any] | None) -> LabelSets:
    """The labels of each row, from an indicator matrix or from lists of labels.

    `classes` name the columns: of a matrix in their order (0 … k-1 without them); of lists they are
    all the labels that may occur (those that occur, sorted, without them). Raises HeadError.
    """
    if isinstance(y, np.ndarray) and y.ndim == 2 and y.dtype != object:
        truths, names = _of_matrix(y, classes)
    else:
        truths, names = _of_lists(y, classes)
    if len(truths) != row_count:
        msg = f"y has {len(truths)} rows and the features have {row_count}; {_EXPECTED}."
        raise HeadError(msg)
    if not len(names):
        raise HeadError(f"No row has a label; {_EXPECTED}.")
    return LabelSets(truths, names)


def rarest_codes(truths: Float32s) -> Codes:
    """The column of each row's rarest label `(n,)`, k for a row without any: to deal folds by."""
    counts = truths.sum(axis=0)
    rarity = np.where(truths > 0, counts, np.inf)
    return np.asarray(np.where(truths.any(axis=1), rarity.argmin(axis=1), truths.shape[1]))


def _of_matrix(
    y: npt.NDArray[Any], classes: Sequence[Any] | None
) -> tuple[Float32s, npt.NDArray[Any]]:
    if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
        raise HeadError(f"y is a matrix of {y.dtype} with other values than 0 and 1; {_EXPECTED}.")
    names = np.arange(y.shape[1]) if classes is None else _names(classes)
    if len(names) != y.shape[1]:
        msg = f"{len(names)} classes for {y.shape[1]} columns of y; expected one for each."
        raise HeadError(msg)
    return y.astype(np.float32), names


def _of_lists(y: Any, classes: Sequence[Any] | None) -> tuple[Float32s, npt.NDArray[Any]]:
    if isinstance(y, str) or not hasattr(y, "__len__"):
        raise HeadError(f"y is {type(y).__name__}; {_EXPECTED}.")
    for row, labels in enumerate(y):
        if isinstance(labels, str) or not hasattr(labels, "__iter__"):
            raise HeadError(f"y is {labels!r} in row {row}; {_EXPECTED}.")
    found = {label for labels in y for label in labels}
    try:
        names = _names(sorted(found) if classes is None else classes)
    except TypeError as error:
        raise HeadError(f"Labels can not be sorted ({error}); give strings.") from error
    columns = {label: column for column, label in enumerate(names.tolist())}
    foreign = sorted(map(repr, found - columns.keys()))
    if foreign:
        raise HeadError(
            f"y holds {len(foreign)} labels that are not among the classes, the first is "
            f"{foreign[0]}. Add them to classes, or leave classes out."
        )
    truths = np.zeros((len(y), len(names)), dtype=np.float32)
    for row, labels in enumerate(y):
        truths[row, [columns[label] for label in labels]] = 1
    return truths, names


def _names(classes: Sequence[Any]) -> npt.NDArray[Any]:
    listed = list(classes)
    if len(set(listed)) != len(listed):
        raise HeadError(f"Of {len(listed)} classes only {len(set(listed))} differ; give each once.")
    kind = object if any(isinstance(label, str) for label in listed) else None
    return np.array(listed, dtype=kind)
