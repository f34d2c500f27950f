"""Which row validates in which fold. -1 means that a row is always trained on.

Own dealing and not `StratifiedKFold`, which needs every class to have as many rows as there are
folds: here a class with one row always trains, one with three rows takes part in three folds, and a
class is never missing from a training part unless groups force it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import HeadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    Codes = npt.NDArray[np.intp]

_SPLITS_EXPECTED = (
    "Expected a number of folds, or scikit-learn's splits in which each row validates once at most "
    "and trains otherwise, such as those of GroupKFold."
)


def deal_folds(codes: Codes, groups: Sequence[Any] | None, fold_count: int, seed: int) -> Codes:
    """A fold for each row, stratified by class; rows of one group share theirs.

    `groups` may hold None: such a row is a group of its own. All -1 where no class has two groups.
    """
    units = group_codes(groups, len(codes))
    leaders = np.unique(units, return_index=True)[1]
    labels = codes[leaders]
    counts = np.bincount(labels)
    order = np.random.default_rng(seed).permutation(len(leaders))
    order = order[np.argsort(labels[order], kind="stable")]
    order = order[counts[labels[order]] > 1]
    unit_folds = np.full(len(leaders), -1)
    unit_folds[order] = np.arange(len(order)) % min(fold_count, max(len(order), 1))
    return unit_folds[units].astype(np.intp)


def group_codes(groups: Sequence[Any] | None, row_count: int) -> Codes:
    """Codes `0 …` of groups in order of appearance; None stands alone."""
    if groups is None:
        return np.arange(row_count)
    check_group_count(groups, row_count)
    known: dict[Any, int] = {}
    keys = ((row,) if group is None else group for row, group in enumerate(groups))
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.intp)


def check_group_count(groups: Sequence[Any] | None, row_count: int) -> None:
    """HeadError unless there is one group for each row, or none at all."""
    if groups is not None and len(groups) != row_count:
        raise HeadError(
            f"{len(groups)} groups for {row_count} rows of features; one for each row is needed."
        )


def assign_folds(
    codes: Codes,
    groups: Sequence[Any] | None,
    folds: npt.ArrayLike | None,
    fold_count: int,
    seed: int,
) -> tuple[Codes, str]:
    """The fold of each row, as given or dealt, and what such folds are called."""
    if folds is not None:
        return check_folds(folds, len(codes)), "given"
    return deal_folds(codes, groups, fold_count, seed), "stratified"


def check_fold_count(cv: Any) -> None:
    """HeadError for fewer than two folds."""
    if isinstance(cv, int) and cv < 2:
        raise HeadError(f"cv is {cv}; expected at least 2 folds.")


def folds_of_splits(cv: Any, codes: Codes, groups: Sequence[Any] | None) -> Codes | None:
    """The fold of each row `(n,)` from scikit-learn's `cv`; None for a number of folds.

    `cv` is a list of (training rows, validation rows), or an object that splits, such as GroupKFold
    or LeaveOneGroupOut. Raises HeadError for parts that overlap, or a training part that leaves out
    more than its validation part.
    """
    if isinstance(cv, int | np.integer):
        return None
    folds = np.full(len(codes), -1)
    try:
        is_splitter = not isinstance(cv, str) and hasattr(cv, "split")
        splits = cv.split(np.zeros((len(codes), 1)), codes, groups) if is_splitter else cv
        parts = [[np.arange(len(codes))[part] for part in split] for split in splits]
        found = [_overlap(folds, fold, *part) for fold, part in enumerate(parts)]
    except (TypeError, IndexError, ValueError) as error:
        msg = f"cv is {cv!r:.100}, which gives no splits of rows ({error}). {_SPLITS_EXPECTED}"
        raise HeadError(msg) from error
    for fold, what in enumerate(found):
        if what:
            raise HeadError(f"cv, split {fold}: {what}. {_SPLITS_EXPECTED}")
    return folds


def _overlap(folds: Codes, fold: int, train: Codes, validation: Codes) -> str:
    """Write the fold into `folds`; what is wrong with it, in words."""
    again = validation[folds[validation] >= 0]
    folds[validation] = fold
    if len(again):
        return f"row {again[0]} validates twice"
    complete = len(train) + len(validation) == len(np.union1d(train, validation)) == len(folds)
    return "" if complete else "rows are left out, or train and validate"


def check_folds(folds: npt.ArrayLike, row_count: int) -> Codes:
    """Given folds as integers `(n,)`, or HeadError."""
    array = np.asarray(folds)
    if array.shape != (row_count,) or array.dtype.kind not in "iu" or array.min() < -1:
        raise HeadError(
            f"folds is {array.dtype} of shape {array.shape}; expected {row_count} integers, one "
            f"for each row of features: the fold a row validates in, or -1 to always train on it."
        )
    return array.astype(np.intp)


def split_folds(folds: Codes, codes: Codes) -> Iterator[tuple[Codes, Codes]]:
    """Rows to train on and rows to validate on, for each fold that can be judged.

    Rows whose class is missing from the training part are left out of the validation part.
    """
    for fold in np.unique(folds[folds >= 0]):
        train = np.flatnonzero(folds != fold)
        present = np.unique(codes[train])
        validation = np.flatnonzero((folds == fold) & np.isin(codes, present))
        if len(present) > 1 and len(validation):
            yield train, validation
