"""Nearly identical images: re-encoded, resized, brighter, mirrored, cut or shifted a little.

Features find whom to compare, pixels decide. Cosines alone do not tell: with the built-in encoder
two pale garments on a pale ground have 0.99, and a picture shifted by 2 % of its width may have
0.5. Pixels do, at 24 x 24 points, correlated over small cuts and shifts; docs/log.md has how many
copies that finds, and how few other pairs. With DINOv3's own weights it was not measured. Encoders
that tell left from right, as the built-in one does, do not find mirrored copies: `lookalikes` does.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.errors import ImageError
from dinoprobe.evaluation import wilson
from dinoprobe.likeness import SAME_PICTURE, Look, correlation
from dinoprobe.preprocess import prepare
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt
    import torch

    from dinoprobe.evaluation import Interval
    from dinoprobe.preprocess import Preprocessing
    from dinoprobe.types import Dataset, Features

    Float32s = npt.NDArray[np.float32]
    Pair = tuple[int, int]
    Rows = npt.NDArray[np.intp]
    Read = Callable[[int], "torch.Tensor | None"]

CANDIDATE_COSINE = 0.85
NEIGHBOURS = 3
MOST_PRODUCTS = 8e12
"""Rows times rows times features that are compared: 100,000 x 768; 50,000 took 12 s of CPU."""
KEPT_PICTURES = 512


class NearPair(NamedTuple):
    """Content hashes of two files that show nearly the same, and how their pixels correlate."""

    first: str
    second: str
    correlation: float
    mirrored: bool = False


class Leak(NamedTuple):
    """A test image that also stands in another part: identical, or nearly so."""

    key: str
    label: str
    other_key: str
    other_label: str
    kind: str
    correlation: float


class WithoutLeaks(NamedTuple):
    """Accuracy on the `n` test images that stand in no other part; None where there are none."""

    left_out: int
    n: int
    accuracy: float | None
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**self._asdict(), "interval": self.interval and list(self.interval)}

    def __str__(self) -> str:
        images = (
            "1 test image stands" if self.left_out == 1 else f"{self.left_out} test images stand"
        )
        start = f"{images} in another part too, identical or nearly so (leaks.csv)"
        if self.accuracy is None or self.interval is None:
            return f"{start}: none is left to test with."
        low, high = (100 * bound for bound in self.interval)
        return (
            f"{start}; without: accuracy {100 * self.accuracy:.1f} % "
            f"(95 % interval {low:.1f} to {high:.1f}; n = {self.n:,})."
        )


def too_many(features: Features) -> bool:
    """Whether there are more rows than are compared."""
    rows, dimension = features.X.shape
    return bool(rows * rows * dimension > MOST_PRODUCTS)


def pixels_of(features: Features, dataset: Dataset, preprocessing: Preprocessing) -> Read:
    """What gives the pixels of a row, or None for a file that changed since it was embedded."""
    samples = {sample.key: sample for sample in dataset.samples}

    def read(row: int) -> torch.Tensor | None:
        try:
            return prepare(samples[features.keys[row]].source.read(), preprocessing)
        except (ImageError, OSError):
            return None

    return read


def near_duplicates(
    features: Features, read: Read, tested: Sequence[bool] | None = None
) -> list[NearPair]:
    """Pairs of different files that show nearly the same picture; rows without a label are left.

    `read` gives the pixels `(3, height, width)` of a row, or None where it can not any more. Only
    the `NEIGHBOURS` nearest of each row are looked at. Rows that are `tested` are compared with the
    others, and change nothing about those.
    """
    kept, queries = _rows(features, tested or [False] * len(features))
    found = neighbours(features.X[kept], features.X[kept], itself=True)
    pairs = {(int(kept[i]), int(kept[j])) for i, j in found}
    found = neighbours(features.X[kept], features.X[queries], itself=False)
    pairs |= {(int(queries[i]), int(kept[j])) for i, j in found}
    return same_pictures(features.hashes, pairs, read)


def same_pictures(hashes: Sequence[str], pairs: Iterable[Pair], read: Read) -> list[NearPair]:
    """Those pairs of rows whose pixels show one picture, in order; `read` as `near_duplicates`."""
    from dinoprobe.heads.threads import one_torch_thread

    ordered = sorted(pairs)
    looks = lru_cache(KEPT_PICTURES)(lambda row: Look.at(read(row)))

    def compare(pair: Pair) -> tuple[float, bool]:
        first, second = looks(pair[0]), looks(pair[1])
        value, turned = correlation(first, second), correlation(first, second, mirrored=True)
        return max(value, turned), turned > value

    with one_torch_thread(), ThreadPoolExecutor(usable_cores()) as pool:
        values = list(pool.map(compare, ordered))
    return [
        NearPair(hashes[i], hashes[j], value, mirrored)
        for (i, j), (value, mirrored) in zip(ordered, values, strict=True)
        if value >= SAME_PICTURE
    ]


def _rows(features: Features, tested: Sequence[bool]) -> tuple[Rows, Rows]:
    """One row of each file that is not tested, and of each other file that is."""
    found: tuple[dict[str, int], dict[str, int]] = {}, {}
    for row, name in enumerate(features.hashes):
        if features.y[row] is not None:
            found[tested[row]].setdefault(name, row)
    kept, queries = found
    rows = [row for name, row in queries.items() if name not in kept]
    return np.array(list(kept.values()), dtype=np.intp), np.array(rows, dtype=np.intp)


def neighbours(X: Float32s, queries: Float32s, *, itself: bool) -> list[Pair]:
    """Queries and their nearest rows of X, from a cosine of `CANDIDATE_COSINE` on.

    The mean of X is taken away first. `itself` says that both are the same rows: none is its own
    neighbour, and a pair comes once, the smaller first.
    """
    from dinoprobe.heads.nearest import nearest

    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    Z, Q = (_unit(rows - mean) for rows in (X, queries))
    count = min(NEIGHBOURS + itself, len(Z))
    if not len(Q) or not count:
        return []
    near = nearest(Q, Z, count)
    own = near.rows == np.arange(len(Q))[:, None] if itself else np.zeros(near.rows.shape, bool)
    alike = (near.similarity >= CANDIDATE_COSINE) & ~own
    pairs = zip(np.nonzero(alike)[0].tolist(), near.rows[alike].tolist(), strict=True)
    return sorted({(min(pair), max(pair)) if itself else pair for pair in pairs})


def _unit(X: Float32s) -> Float32s:
    """Rows of length 1; zeros stay."""
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(length > 0, length, 1))


def clusters(hashes: Sequence[str], pairs: Iterable[NearPair]) -> tuple[str | None, ...]:
    """A name for the images that pairs hold together, the smallest of their hashes; else None."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    return tuple(root(name) if name in parent else None for name in hashes)


def leaks(
    features: Features, splits: Sequence[str | None], pairs: Iterable[NearPair]
) -> list[Leak]:
    """Each test image that also stands in the training or validation part, with the most alike."""
    alike = _alike(pairs)
    others: dict[str, int] = {}
    for row, part in enumerate(splits):
        if part in ("train", "val"):
            others.setdefault(features.hashes[row], row)
    found = []
    for row, part in enumerate(splits):
        if part != "test":
            continue
        near = [(-c, others[h], "near") for h, c in alike[features.hashes[row]] if h in others]
        if features.hashes[row] in others:
            near = [(-1.0, others[features.hashes[row]], "identical")]
        if near:
            value, other, kind = min(near)
            found.append(_leak(features, row, other, kind, -value))
    return found


def _alike(pairs: Iterable[NearPair]) -> Mapping[str, list[tuple[str, float]]]:
    alike: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for first, second, value, _ in pairs:
        alike[first].append((second, value))
        alike[second].append((first, value))
    return alike


def _leak(features: Features, row: int, other: int, kind: str, value: float) -> Leak:
    label, other_label = str(features.y[row]), str(features.y[other])
    return Leak(features.keys[row], label, features.keys[other], other_label, kind, value)


def without_leaks(correct: Mapping[str, bool], leaked: Sequence[Leak]) -> WithoutLeaks | None:
    """Accuracy on the test images, by key, that are not leaked; None where none is."""
    if not leaked:
        return None
    gone = {leak.key for leak in leaked}
    kept = [right for key, right in correct.items() if key not in gone]
    if not kept:
        return WithoutLeaks(len(correct), 0, None, None)
    share = sum(kept) / len(kept)
    return WithoutLeaks(len(correct) - len(kept), len(kept), share, wilson(sum(kept), len(kept)))
