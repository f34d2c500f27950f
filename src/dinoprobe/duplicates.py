"""Nearly identical images: re-encoded, resized, brighter, cut or shifted by a few per cent.

Features find whom to compare, pixels decide. Cosines alone do not tell: with the built-in encoder
two pale garments on a pale ground have 0.99, and a picture shifted by 2 % of its width may have
0.5. Pixels do, at 24 x 24 points, correlated over small cuts and shifts; docs/log.md has how many
copies that finds, and how few other pairs. With DINOv3's own weights it was not measured.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.evaluation import wilson
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt
    import torch

    from dinoprobe.evaluation import Interval
    from dinoprobe.types import Features

    Float32s = npt.NDArray[np.float32]
    Pair = tuple[int, int]
    Rows = npt.NDArray[np.intp]
    Read = Callable[[int], "torch.Tensor | None"]

CANDIDATE_COSINE = 0.85
NEIGHBOURS = 3
SAME_PICTURE = 0.985
"""Correlation of the pixels from which two files show one picture."""
FIRST_LOOK = 0.6
"""Correlation without any shift, below which shifts are not tried: they cost 37 times as much."""
SIDE_PX, LOOKED_AT_PX = 24, 96
CUTS = (0.98, 0.96, 0.93, 0.90)
BLANK = 1e-2
"""Deviation of pixels within 0 to 1 under which a picture shows nothing."""
QUERY_ROWS = 256
MOST_PRODUCTS = 2e12
"""Rows times rows times features that are compared: half a minute on two cores."""
KEPT_PICTURES = 512


class NearPair(NamedTuple):
    """Content hashes of two files that show nearly the same, and how their pixels correlate."""

    first: str
    second: str
    correlation: float


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


def near_duplicates(
    features: Features, read: Read, tested: Sequence[bool] | None = None
) -> list[NearPair]:
    """Pairs of different files that show nearly the same picture; rows without a label are left.

    `read` gives the pixels `(3, height, width)` of a row, or None where it can not any more. Only
    the `NEIGHBOURS` nearest of each row are looked at. Rows that are `tested` are compared with the
    others, and change nothing about those.
    """
    from dinoprobe.heads.threads import one_torch_thread

    kept, queries = _rows(features, tested or [False] * len(features))
    found = neighbours(features.X[kept], features.X[kept], itself=True)
    pairs = {(int(kept[i]), int(kept[j])) for i, j in found}
    found = neighbours(features.X[kept], features.X[queries], itself=False)
    ordered = sorted(pairs | {(int(queries[i]), int(kept[j])) for i, j in found})
    looks = lru_cache(KEPT_PICTURES)(lambda row: _Look.at(read(row)))

    def compare(pair: Pair) -> float:
        return correlation(looks(pair[0]), looks(pair[1]))

    with one_torch_thread(), ThreadPoolExecutor(usable_cores()) as pool:
        values = list(pool.map(compare, ordered))
    return [
        NearPair(features.hashes[i], features.hashes[j], value)
        for (i, j), value in zip(ordered, values, strict=True)
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
    neighbour, and a pair comes once, the smaller first. `QUERY_ROWS` rows of the table of cosines
    exist at a time.
    """
    import torch

    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    Z, Q = (torch.from_numpy(_unit(rows - mean)) for rows in (X, queries))
    found: set[Pair] = set()
    for start in range(0, len(Q), QUERY_ROWS):
        cosine = Q[start : start + QUERY_ROWS] @ Z.T
        if itself:
            own = torch.arange(len(cosine))
            cosine[own, own + start] = -1
        best, column = cosine.topk(min(NEIGHBOURS, len(Z)), dim=1)
        for query, place in (best >= CANDIDATE_COSINE).nonzero().tolist():
            pair = (start + query, int(column[query, place]))
            found.add((min(pair), max(pair)) if itself else pair)
    return sorted(found)


def _unit(X: Float32s) -> Float32s:
    """Rows of length 1; zeros stay."""
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(length > 0, length, 1))


class _Look:
    """One picture at `SIDE_PX` points a side: whole, and cut and shifted in 36 ways."""

    def __init__(self, pixels: torch.Tensor) -> None:
        from torch.nn.functional import interpolate

        size = (LOOKED_AT_PX, LOOKED_AT_PX)
        scaled = pixels.float() / (255 if not pixels.is_floating_point() else 1)
        self._pixels = interpolate(scaled[None], size=size, mode="bilinear", antialias=True)
        self.whole = self._view(0, 0, LOOKED_AT_PX)
        self._cuts: Float32s | None = None

    @classmethod
    def at(cls, pixels: torch.Tensor | None) -> _Look | None:
        """None where there is nothing to look at."""
        return None if pixels is None else cls(pixels)

    @property
    def cuts(self) -> Float32s:
        """All views `(37, points)`, made when they are asked for."""
        if self._cuts is None:
            views = [self.whole]
            for cut in CUTS:
                side = round(LOOKED_AT_PX * cut)
                steps = [(LOOKED_AT_PX - side) * step // 2 for step in range(3)]
                views += [self._view(top, left, side) for top, left in product(steps, steps)]
            self._cuts = np.stack(views)
        return self._cuts

    def _view(self, top: int, left: int, side: int) -> Float32s:
        """Points of length 1, each channel centred, so that a colour is none; zeros for a blank."""
        from torch.nn.functional import interpolate

        part = self._pixels[:, :, top : top + side, left : left + side]
        small = interpolate(part, size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
        points = (small - small.mean(dim=(2, 3), keepdim=True)).flatten().numpy()
        length = float(np.linalg.norm(points))
        shown = length > BLANK * np.sqrt(points.size)
        return np.asarray(points / length if shown else np.zeros_like(points), dtype=np.float32)


def correlation(first: _Look | None, second: _Look | None) -> float:
    """The largest correlation of one picture with the other, whole or cut."""
    if first is None or second is None:
        return 0.0
    whole = float(first.whole @ second.whole)
    if whole < FIRST_LOOK:
        return whole
    return float(max((second.cuts @ first.whole).max(), (first.cuts @ second.whole).max()))


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
    for first, second, value in pairs:
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
