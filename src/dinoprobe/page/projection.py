"""Features on a plane: principal components at once, t-SNE of a sample when it is ready."""

from __future__ import annotations

import warnings
from threading import Lock, Thread
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Points = npt.NDArray[np.float32]

TSNE_ROWS = 3_000
"""t-SNE takes minutes beyond; other rows stand at the mean of their nearest placed neighbours."""
TSNE_DIMENSIONS = 50
NEIGHBOURS = 3
KINDS = ("pca", "tsne")


@final
class Projections:
    """`(n, 2)` points within -1 to 1, each made once. t-SNE is made in a thread."""

    def __init__(self, X: npt.NDArray[np.float32], seed: int = 0) -> None:
        self._X, self._seed = X, seed
        self._lock = Lock()
        self._points: dict[str, Points] = {}
        self._started = False
        self.failed = ""

    def get(self, kind: str) -> Points | None:
        """The points, None while t-SNE is under way or after it failed."""
        with self._lock:
            if kind == "pca" and kind not in self._points:
                self._points[kind] = unit(principal(self._X, 2))
            if kind == "tsne" and not self._started:
                self._started = True
                Thread(target=self._tsne, name="dinoprobe-tsne", daemon=True).start()
            return self._points.get(kind)

    def _tsne(self) -> None:
        try:
            self._points["tsne"] = unit(tsne(self._X, self._seed))
        except (ValueError, MemoryError) as error:  # the page shows the other map
            self.failed = str(error)


def principal(X: npt.NDArray[np.float32], count: int) -> Points:
    """The first principal components `(n, count)`; zeros where there are fewer."""
    from sklearn.decomposition import PCA

    kept = min(count, *X.shape)
    points = np.zeros((len(X), count), dtype=np.float32)
    if len(X) > 1:
        solver = "covariance_eigh" if len(X) > X.shape[1] else "full"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant features
            points[:, :kept] = PCA(kept, svd_solver=solver).fit_transform(X)
    return points


def tsne(X: npt.NDArray[np.float32], seed: int) -> Points:
    """t-SNE of at most `TSNE_ROWS` rows, from 50 principal components and started at two of them.

    The layout is scikit-learn's (van der Maaten 2014); rows beyond are placed by their neighbours.
    """
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(X) < 8:
        return principal(X, 2)
    Z = principal(X, min(TSNE_DIMENSIONS, X.shape[1]))
    chosen = np.arange(len(X))
    if len(X) > TSNE_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(X), TSNE_ROWS, replace=False))
    # On one thread: the page answers meanwhile, and on busy cores two took twelve times as long.
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    with threadpool_limits(1, user_api="openmp"):
        layout = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(
            Z[chosen]
        )
    if len(chosen) == len(X):
        return np.asarray(layout, dtype=np.float32)
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(Z[chosen])
    points = layout[nearest.kneighbors(Z, return_distance=False)].mean(axis=1)
    points[chosen] = layout
    return np.asarray(points, dtype=np.float32)


def unit(points: Points) -> Points:
    """The same, moved and scaled alike in both directions to -1 to 1."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high - low).max()) / 2 or 1.0
    return np.asarray((points - (low + high) / 2) / half, dtype=np.float32)
