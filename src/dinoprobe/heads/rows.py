"""Rows of a classification problem in chunks that a core's cache holds: products and softmax.

Scores are class-major, `(k, m)` for m rows: products by the rows then need no second, transposed
copy of them, and a softmax over ten classes takes a tenth of the time (docs/log.md). A chunk goes
through all its steps on one core while the others work on theirs. Sums are over a fixed number of
lanes, so that results do not depend on the number of threads.

Rows are kept in one of two ways: rotated and whole, in float64 or float32; or rotated in bfloat16,
where the processor multiplies those, with exact products from rows standardised anew.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dinoprobe.heads.threads import one_torch_thread
from dinoprobe.processor import has_fast_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from dinoprobe.heads.base import Codes, Float64s

    Floats = npt.NDArray[np.floating]

CHUNK_SCORES = 2**18
CHUNK_ROWS = (512, 4096)
"""Rows of a chunk: so few that their scores stay in cache, so many that products are efficient."""
DEVICE_CHUNK_SCORES = 2**28
LANES = 8


class Standardized:
    """Rows of X that are standardised as they are read; no copy of all is kept."""

    def __init__(self, X: Floats, rows: Codes, mean: Float64s, scale: Float64s) -> None:
        wide = np.promote_types(X.dtype, np.float32)
        self.X, self.rows = X, rows
        self.mean, self.factor = mean.astype(wide), (1 / scale).astype(wide)

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, start: int, stop: int) -> Floats:
        """Rows `(stop - start, d)`, float32, or float64 where X is."""
        some = self.X[self.rows[start:stop]].astype(self.mean.dtype, copy=False)
        some -= self.mean
        some *= self.factor
        return some


@dataclass(slots=True, eq=False)
class Chunk:
    """Some rows: kept ones `(m, r)`, classes and weights `(1, m)`, and their present scores.

    `scores` are `(k, m)`; `change` is what a whole step along the present direction adds to them;
    both lie in `places` `(2, k, m)` where these are given, perhaps in a file. `fresh` gives the
    standardised rows `(m, d)`, None where the kept ones are exact.
    """

    kept: Tensor
    codes: Tensor
    weights: Tensor | None
    fresh: Callable[[], Tensor] | None
    places: Tensor | None = None
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    change: Tensor = field(default_factory=lambda: torch.empty(0))

    def set_scores(self, scores: Tensor) -> None:
        """Keep these scores."""
        self.scores = scores if self.places is None else self.places[0].copy_(scores)

    def set_change(self, change: Tensor) -> None:
        """Keep what a step adds to the scores."""
        self.change = change if self.places is None else self.places[1].copy_(change)

    def residuals(self) -> tuple[float, Tensor]:
        """Summed loss, and what each probability has too much `(k, m)`, both by weight."""
        result = torch.log_softmax(self.scores, 0)
        own = result.gather(0, self.codes)
        loss = own if self.weights is None else own * self.weights
        result.exp_()
        result.scatter_add_(0, self.codes, own.new_full(own.shape, -1.0))
        if self.weights is not None:
            result *= self.weights
        return -float(loss.sum(dtype=torch.float64)), result

    def spread(self) -> Tensor:
        """Summed p (1 - p) of each class `(k,)`, by weight."""
        p = torch.softmax(self.scores, 0)
        found = p * (1 - p)
        if self.weights is not None:
            found *= self.weights
        return found.sum(dim=1, dtype=torch.float64)


class Lanes:
    """Chunks dealt to lanes, which threads work off. `passes` counts how often they did."""

    def __init__(self, chunks: Sequence[Chunk], threads: int) -> None:
        self.lanes = [list(chunks[lane::LANES]) for lane in range(min(LANES, len(chunks)))]
        self.threads = min(threads, len(self.lanes))
        self.passes = 0
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[list[Chunk]], Any]) -> list[Any]:
        """The result of each lane, in order."""
        self.passes += 1
        if self._pool is None:
            return [function(lane) for lane in self.lanes]
        return list(self._pool.map(function, self.lanes))

    @contextmanager
    def running(self) -> Iterator[None]:
        """The threads live within; operators of torch use one thread each."""
        with one_torch_thread():
            if self.threads < 2:
                yield
                return
            with ThreadPoolExecutor(self.threads) as pool:
                self._pool = pool
                try:
                    yield
                finally:
                    self._pool = None


def chunk_bounds(row_count: int, class_count: int, device: torch.device) -> list[tuple[int, int]]:
    """Where chunks begin and end."""
    if device.type == "cpu":
        size = int(np.clip(CHUNK_SCORES // class_count, *CHUNK_ROWS))
    else:
        size = max(1, DEVICE_CHUNK_SCORES // class_count)
    return [(start, min(start + size, row_count)) for start in range(0, row_count, size)]


def coarse_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where products of it are faster than those of float32."""
    fast = device.type == "cuda" or (device.type == "cpu" and has_fast_bfloat16())
    return torch.bfloat16 if fast else torch.float32
