"""Probabilities for other class frequencies than those of training.

A head of many dogs and few foxes is right to doubt a fox; among as many foxes as dogs it is not. By
Bayes' rule p'(y | x) is p(y | x) p'(y) / p(y), normalised, as long as the images of each class look
alike in both places: one number is added to each bias, nothing is fitted again. On a synthetic long
tail of 500 to 5 rows a class, balanced accuracy of logistic regression rises from 52 to 66 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import HeadError
from dinoprobe.heads.base import LinearBase, ProbeBase
from dinoprobe.heads.neighbors import KNNProbe
from dinoprobe.heads.prototype import PrototypeProbe
from dinoprobe.heads.weights import class_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s

    Prior = str | Mapping[str, float]

UNIFORM = "uniform"


def prior_shares(prior: Prior, classes: Sequence[Any] | npt.NDArray[Any]) -> Float64s:
    """The share of each class `(k,)`, summing to 1: all equal, or as a mapping says.

    A mapping names every class and may hold counts: they are divided by their sum. Raises HeadError
    for other labels and for numbers that are not above 0.
    """
    labels = np.asarray(classes).tolist()
    if isinstance(prior, str) and prior == UNIFORM:
        return np.full(len(labels), 1 / len(labels))
    if not isinstance(prior, Mapping):
        raise HeadError(
            f'The prior is {prior!r}; expected "uniform", or a mapping from each label to its '
            f'share, such as {{"cat": 0.9, "dog": 0.1}}.'
        )
    foreign = [label for label in prior if label not in labels]
    missing = [label for label in labels if label not in prior]
    if foreign or missing:
        what = f"names {foreign[0]!r}, which is no class" if foreign else f"lacks {missing[0]!r}"
        raise HeadError(
            f"The prior {what}; expected a share for each of the {len(labels)} classes, "
            f"{', '.join(map(repr, labels[:5]))}{', …' if len(labels) > 5 else ''}. Correct it."
        )
    for label, share in prior.items():
        if not (isinstance(share, int | float | np.number) and 0 < share < float("inf")):
            raise HeadError(f"The prior of {label!r} is {share!r}; expected a number above 0.")
    shares = np.array([float(prior[label]) for label in labels])
    return np.asarray(shares / shares.sum())


def class_prior(head: ProbeBase, y: npt.NDArray[Any]) -> Float64s:
    """The class frequencies `(k,)` that a fitted head's probabilities are for, given its labels.

    Those of `y`, times the class weights that it was fitted with. A `PrototypeProbe` knows no
    frequencies: to it all classes are equally likely.
    """
    count = len(head.classes_)
    if isinstance(head, PrototypeProbe):
        return np.full(count, 1 / count)
    codes = np.searchsorted(head.classes_, y)
    shares = np.bincount(codes, minlength=count) / len(codes)
    weights = class_weights(
        codes, count, getattr(head, "class_weight", None), classes=head.classes_
    )
    return np.asarray(shares if weights is None else shares * weights / (shares @ weights))


def under_prior(probabilities: Float64s, old: Float64s, new: Float64s) -> Float64s:
    """Probabilities `(n, k)` for class frequencies `new` `(k,)` of such for frequencies `old`."""
    found = probabilities * (new / old)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def apply_prior(head: ProbeBase, old: Float64s, new: Float64s) -> None:
    """Make the probabilities of a fitted head those of `under_prior`, for good.

    A linear head takes log(new / old) into its bias, k-NN multiplies votes. Raises HeadError for
    other heads; for them there is `under_prior`.
    """
    if isinstance(head, LinearBase):
        shifted = head.intercept_.astype(np.float64) + np.log(new / old)
        head.set_linear(
            head.coef_.astype(np.float64), shifted, temperature=getattr(head, "temperature_", 1.0)
        )
    elif isinstance(head, KNNProbe):
        factors = new / old
        head.class_weight_ = factors if head.class_weight_ is None else head.class_weight_ * factors
    else:
        raise HeadError(
            f"{type(head).__name__} has no bias that could take a prior; expected a linear head or "
            f"k-NN. Leave the prior out, or apply under_prior to its probabilities."
        )


def estimate_prior(
    probabilities: npt.ArrayLike,
    trained: npt.ArrayLike,
    *,
    tol: float = 1e-8,
    max_iter: int = 10_000,
) -> Float64s:
    """The class frequencies `(k,)` among unlabelled rows, from a head's probabilities of them.

    `trained` `(k,)` are the frequencies that the probabilities `(n, k)` are for. Expectation
    maximisation (Saerens, Latinne, Decaestecker 2002, "Adjusting the outputs of a classifier to new
    a priori probabilities", eq. 2.9), which finds the most likely frequencies; it needs calibrated
    probabilities. Stops when no share moves by `tol`. Raises HeadError for other shapes or values.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    old = np.asarray(trained, dtype=np.float64)
    fits = rows.ndim == 2 and len(rows) > 0 and old.shape == rows.shape[1:]
    if not fits or not (old > 0).all() or not np.isfinite(rows).all() or (rows < 0).any():
        raise HeadError(
            f"Probabilities of shape {rows.shape} and trained frequencies of shape {old.shape}; "
            f"expected (n, k) finite numbers from 0 with n above 0, and (k,) numbers above 0."
        )
    ratios = rows / old
    found: Float64s = old / old.sum()
    for _ in range(max_iter):
        posterior = ratios * found
        following = (posterior / posterior.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(following - found).max()
        found = following
        if moved < tol:
            break
    return found
