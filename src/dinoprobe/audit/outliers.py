"""Images unlike all others: far from their nearest ones, whatever their label.

The distance is 1 - cosine to the 10th nearest image. Of foreign pictures among hand signs, clothes
and rendered digits (1 %), twice as many lines held 72 % and the AUROC was .92; .69 and .95 by
relative Mahalanobis distances out of fold, which need labels, .67 and .91 by the 5th nearest
(docs/log.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.audit.finding import Finding
from dinoprobe.audit.neighbourhood import NEIGHBOURS

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.audit.neighbourhood import Neighbourhood
    from dinoprobe.types import Features

FEWEST_ROWS = 30
FAR, VERY_FAR = 3.0, 4.0
"""Deviations of the logarithm of distances, as their middle and upper half have them. From 3 on 2
of 5,076 sound images were listed, and 45 of 100 foreign ones."""
_TINY = 1e-6


def outliers(
    features: Features, around: Neighbourhood
) -> tuple[list[Finding], dict[str, Any] | None]:
    """Findings, the farthest first, and figures; None for fewer than `FEWEST_ROWS` files."""
    rows, found = around
    if len(rows) < FEWEST_ROWS:
        return [], None
    distance = np.maximum(1 - found.similarity[:, NEIGHBOURS], _TINY)
    middle, upper = np.quantile(np.log(distance), (0.5, 0.8413))
    spread = max(float(upper - middle), _TINY)
    scores = (np.log(distance) - middle) / spread
    far = np.flatnonzero(scores >= FAR)
    findings = [
        _finding(features, int(rows[i]), int(rows[_other(found.rows[i], i)]), float(scores[i]))
        for i in far[np.argsort(-scores[far], kind="stable")]
    ]
    expected = len(rows) * math.erfc(FAR / math.sqrt(2)) / 2
    return findings, {"n": len(rows), "far": FAR, "expected_by_chance": expected}


def _other(neighbours: npt.NDArray[np.intp], itself: int) -> int:
    return int(neighbours[neighbours != itself][0])


def _finding(features: Features, row: int, nearest_row: int, score: float) -> Finding:
    return Finding(
        kind="outlier", severity="medium" if score >= VERY_FAR else "low", score=score,
        key=features.keys[row], label=features.y[row], split=features.splits[row],
        related=features.keys[nearest_row],
        reason=f"{score:.1f} deviations farther from its nearest images than others are",
    )  # fmt: skip
