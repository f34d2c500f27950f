"""Whether an image is like any that was trained on: a score of its feature, and a threshold.

"mahalanobis" is the relative Mahalanobis distance (Ren et al. 2021, "A Simple Fix to Mahalanobis
Distance for Improving Near-OOD Detection"): how far a row is from the nearest class, less how far
it is from all of them, so that directions in which everything varies do not count. "knn" is the
cosine distance to the 5th nearest training row (Sun et al. 2022). Held-out classes of clothes, hand
signs and digits had an AUROC of .64, .77 and .97 by the first, .59, .60 and .99 by the second, .57,
.67 and .97 by the energy of the logits (docs/log.md).

The threshold is a quantile of scores of rows that were left out, so that a known share of images
like the training images lies beyond. What is kept is at most 256 directions, or 1,024 rows.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import solve_triangular

from dinoprobe.errors import ConfigurationError, FormatError, HeadError
from dinoprobe.heads.axes import principal_axes
from dinoprobe.heads.base import in_blocks
from dinoprobe.heads.conformal import ROUNDING
from dinoprobe.heads.folds import check_folds, split_folds
from dinoprobe.heads.neighbors import normalized
from dinoprobe.heads.statistics import moments
from dinoprobe.heads.threads import one_blas_thread
from dinoprobe.mapped import blocks
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s

    Arrays = dict[str, npt.NDArray[np.floating]]

METHODS = ("mahalanobis", "knn")
DEFAULT_SHARE = 0.01
SHRINKAGE = 0.3
"""Of both covariances, towards a sphere: the best in the mean of 0.01 to 0.9 and Ledoit-Wolf's."""
SMALLEST_VARIANCE = 1e-6
"""Of standardised features in the mean, where rows of a class are copies of one."""
FITTED_ROWS = 4_096
DIRECTIONS = 256
NEIGHBOUR_ROWS = 1_024
NEIGHBOURS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """What decides that an image is unlike all training images: a score above `threshold`.

    `share` of the images like the training images is expected there; `n` scores of rows that were
    left out gave the threshold.
    """

    method: str
    threshold: float
    share: float
    n: int
    arrays: Arrays

    def scores(self, X: npt.NDArray[np.floating]) -> Float64s:
        """One score for each row of features `(n, d)`: the larger, the stranger."""
        with one_blas_thread():
            return _scores(self.method, self.arrays, X)

    def flags(self, scores: Float64s) -> npt.NDArray[np.bool_]:
        """Which scores are unlike the training images'."""
        return np.asarray(scores > self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the arrays are kept beside them."""
        return {
            "method": self.method,
            "threshold": self.threshold,
            "share": self.share,
            "n": self.n,
        }

    @classmethod
    def from_dict(
        cls, values: Any, arrays: Mapping[str, npt.NDArray[Any]], dimension: int
    ) -> Novelty:
        """The inverse of `to_dict`, for features of this dimension. Raises FormatError."""
        try:
            read = cls(
                str(values["method"]),
                float(values["threshold"]),
                float(values["share"]),
                values["n"],
                dict(arrays),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged(f"{type(error).__name__} {error}") from error
        if read.method not in METHODS:
            raise _damaged(f"method {read.method!r}")
        if not math.isfinite(read.threshold) or not 0 < read.share < 1 or type(read.n) is not int:
            raise _damaged("a threshold, a share or a count that is none")
        _check_arrays(read.method, read.arrays, dimension)
        return read


def check_novelty(method: str, share: float) -> None:
    """Raise ConfigurationError for a method or a share that does not exist."""
    if method not in METHODS:
        raise ConfigurationError(
            f"The measure of novelty is {method!r}; expected one of {', '.join(METHODS)}."
        )
    if not 0 < share < 1:
        raise ConfigurationError(f"The flagged share is {share}; expected between 0 and 1.")


def left_out_scores(
    X: npt.NDArray[np.floating], y: npt.NDArray[Any], folds: npt.ArrayLike, method: str
) -> Float64s:
    """Score of each row `(n,)` by what was fitted without its fold; NaN where it never was."""
    codes = np.unique(y, return_inverse=True)[1]
    found = np.full(len(y), np.nan)

    def judge(part: tuple[Codes, Codes]) -> None:
        train, validation = part
        fitted = _fitted(method, X, train, codes[train])
        for some in blocks(X, validation):
            found[some] = _scores(method, fitted, X[some])

    parts = list(split_folds(check_folds(folds, len(y)), codes))
    with one_blas_thread(), ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(judge, parts))
    return found


def fit_novelty(
    X: npt.NDArray[np.floating],
    y: npt.NDArray[Any],
    left_out: Float64s,
    *,
    method: str = "mahalanobis",
    share: float = DEFAULT_SHARE,
) -> Novelty:
    """Fit on all rows, with the threshold from scores of `left_out_scores`, NaN left out.

    Where these are too few for the share, the largest is taken, and `share` says what that gives.
    Fewer images than that are flagged where rows are few, for with all of them the fit is better
    than without a fold: a half with 150 rows. Raises HeadError without scores.
    """
    check_novelty(method, share)
    left_out = left_out[np.isfinite(left_out)]
    n = len(left_out)
    if not n:
        raise HeadError(
            "There are no scores of rows that were left out; expected at least one. Add images, or "
            "leave novelty out."
        )
    rank = min(n, max(1, math.ceil((n + 1) * (1 - share) - ROUNDING)))
    threshold = float(np.partition(left_out, rank - 1)[rank - 1])
    with one_blas_thread():
        codes = np.unique(y, return_inverse=True)[1]
        arrays = _fitted(method, X, np.arange(len(codes)), codes)
    return Novelty(method, threshold, 1 - rank / (n + 1), n, arrays)


def _fitted(method: str, X: npt.NDArray[np.floating], rows: Codes, codes: Codes) -> Arrays:
    """What is kept of some rows of X, whose codes these are."""
    limit = FITTED_ROWS if method == "mahalanobis" else NEIGHBOUR_ROWS
    chosen = _over_classes(codes, limit)
    some = X[rows[chosen]]
    if method == "knn":
        return {"rows": normalized(some).astype(np.float16)}
    kept = np.unique(codes[chosen], return_inverse=True)[1]
    return _fit_mahalanobis(some.astype(np.float64), kept)


def _over_classes(codes: Codes, limit: int) -> Codes:
    """At most `limit` row numbers, evenly spaced over the classes."""
    order = np.argsort(codes, kind="stable")
    return order[np.linspace(0, len(order) - 1, min(len(order), limit)).astype(np.intp)]


def _fit_mahalanobis(X: Float64s, codes: Codes) -> Arrays:
    """Two covariances in the directions in which the standardised rows vary most.

    The remaining directions share one variance. Constant features count for nothing.
    """
    center, deviation = moments(X)
    Z = (X - center) / deviation
    variances, axes = principal_axes(Z)
    axes = axes[:, max(0, len(variances) - DIRECTIONS) :]
    counts = np.bincount(codes)
    one_hot = np.eye(len(counts))[codes]
    means = one_hot.T @ Z / counts[:, None]
    varying = max(int(np.isfinite(deviation).sum()), 1)
    overall, overall_rest = _whitening(Z, axes, varying, len(Z) - 1)
    lone = len(counts) == len(codes)  # one row a class: nothing tells how a class varies
    residuals, free = (Z, len(Z) - 1) if lone else (Z - means[codes], len(Z) - len(counts))
    within, within_rest = _whitening(residuals, axes, varying, free)
    arrays = {
        "center": center,
        "scale": 1 / deviation,
        "axes": axes,
        "within": within,
        "overall": overall,
        "means": means @ axes @ within,
        "rest": np.array([within_rest, overall_rest]),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _whitening(
    rows: Float64s, axes: Float64s, varying: int, divisor: int
) -> tuple[Float64s, float]:
    """W `(r, r)` with |yW|² the squared distance of y, and what a square beyond the axes counts."""
    inside = rows @ axes
    covariance = inside.T @ inside / max(divisor, 1)
    total = np.square(rows).sum() / max(divisor, 1)
    sphere = max(total / varying, SMALLEST_VARIANCE)
    beyond = max(total - covariance.trace(), 0) / max(varying - axes.shape[1], 1)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere * np.eye(len(covariance))
    lower = np.linalg.cholesky(shrunk)
    whitening = solve_triangular(lower, np.eye(len(lower)), lower=True).T
    return np.asarray(whitening), float(1 / ((1 - SHRINKAGE) * beyond + SHRINKAGE * sphere))


def _scores(method: str, arrays: Arrays, X: npt.NDArray[np.floating]) -> Float64s:
    """In blocks of one shape, so that a row's score does not depend on the others."""
    if not len(X):
        return np.empty(0)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    score = _neighbour_distance if method == "knn" else _relative_distance
    return in_blocks(X, lambda rows: score(wide, rows.astype(np.float64, copy=False)))


def _neighbour_distance(arrays: Mapping[str, Float64s], rows: Float64s) -> Float64s:
    similarity = normalized(rows).astype(np.float64) @ arrays["rows"].T
    k = min(NEIGHBOURS, similarity.shape[1])
    return np.asarray(1 - np.partition(similarity, -k, axis=1)[:, -k])


def _relative_distance(arrays: Mapping[str, Float64s], rows: Float64s) -> Float64s:
    Z = (rows - arrays["center"]) * arrays["scale"]
    Y = Z @ arrays["axes"]
    beyond = np.maximum(np.square(Z).sum(axis=1) - np.square(Y).sum(axis=1), 0)
    placed, means = Y @ arrays["within"], arrays["means"]
    lengths = np.square(placed).sum(axis=1)[:, None] + np.square(means).sum(axis=1)
    nearest = (lengths - 2 * placed @ means.T).min(axis=1)
    within, overall = arrays["rest"]
    background = np.square(Y @ arrays["overall"]).sum(axis=1)
    return np.asarray(nearest - background + (within - overall) * beyond)


def _check_arrays(method: str, arrays: Arrays, dimension: int) -> None:
    d = dimension
    if method == "knn":
        rows = len(arrays["rows"]) if "rows" in arrays and arrays["rows"].ndim == 2 else 0
        expected: dict[str, tuple[int, ...]] = {"rows": (max(rows, 1), d)}
    else:
        shape = arrays["axes"].shape if "axes" in arrays else ()
        r = shape[1] if len(shape) == 2 else 0
        k = len(arrays["means"]) if "means" in arrays and arrays["means"].ndim == 2 else 0
        expected = {"center": (d,), "scale": (d,), "axes": (d, r), "rest": (2,)}
        expected |= {"within": (r, r), "overall": (r, r), "means": (max(k, 1), r)}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        raise _damaged(f"arrays {found}, expected {expected}")
    dtype = np.float16 if method == "knn" else np.float32
    if any(a.dtype != dtype or not np.isfinite(a).all() for a in arrays.values()):
        raise _damaged(f"arrays that are not finite numbers of type {np.dtype(dtype)}")


def _damaged(found: str) -> FormatError:
    return FormatError(
        f"Saved measure of novelty: {found}; expected what dinoprobe writes. Load an undamaged "
        f"copy, or train again."
    )
