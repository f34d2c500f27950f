"""The nearest pictures of each picture, searched once, for copies and for outliers.

The search is by cosine. Candidates for copies are those of the nearest whose cosine is high once
the mean of all features is taken away, as `duplicates.neighbours` has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dinoprobe.duplicates import CANDIDATE_COSINE, too_many
from dinoprobe.duplicates import NEIGHBOURS as CANDIDATES
from dinoprobe.heads.nearest import Nearest, nearest
from dinoprobe.heads.neighbors import normalized

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.types import Features

    Codes = npt.NDArray[np.intp]

NEIGHBOURS = 10
_BLOCK_ROWS = 4096


class Neighbourhood(NamedTuple):
    """One row of each different file `(m,)`, and its nearest among them, itself included.

    `found` has places in `rows`, not rows of the features.
    """

    rows: Codes
    found: Nearest


def neighbourhood(features: Features) -> Neighbourhood | None:
    """The `NEIGHBOURS` nearest of each file; None for more rows than are compared."""
    if too_many(features):
        return None
    first: dict[str, int] = {}
    for row, name in enumerate(features.hashes):
        first.setdefault(name, row)
    rows = np.array(list(first.values()), dtype=np.intp)
    if not len(rows):
        return Neighbourhood(rows, Nearest(np.empty((0, 0)), np.empty((0, 0), dtype=np.intp)))
    Z = normalized(features.X[rows])
    return Neighbourhood(rows, nearest(Z, Z, min(NEIGHBOURS + 1, len(rows))))


def candidates(features: Features, around: Neighbourhood) -> set[tuple[int, int]]:
    """Pairs of rows that may show one picture, by their features; the smaller row first."""
    X = features.X[around.rows]
    Z = normalized(X - X.mean(axis=0, dtype=np.float64).astype(np.float32))
    pairs: set[tuple[int, int]] = set()
    for column in around.found.rows[:, : CANDIDATES + 1].T:
        for start in range(0, len(Z), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            alike = np.vecdot(Z[block], Z[column[block]]) >= CANDIDATE_COSINE
            places = start + np.flatnonzero(alike)
            one, other = around.rows[places], around.rows[column[places]]
            low, high = np.minimum(one, other).tolist(), np.maximum(one, other).tolist()
            pairs |= {pair for pair in zip(low, high, strict=True) if pair[0] != pair[1]}
    return pairs
