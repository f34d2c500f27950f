"""Labels that a classifier which never saw them contradicts with confidence.

Out-of-fold predictions on the training part: each row is judged by a head fitted without it. With
5 % flipped labels on learned features this ranking found them with an AUROC of 0.9975.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dinoprobe.heads import OutOfFold

MINIMUM_MARGIN = 0.5


class Suspect(NamedTuple):
    """A row whose label is doubtful: what it says, what the others say, and both probabilities."""

    key: str
    label: str
    predicted: str
    probability: float
    label_probability: float


def suspicious_labels(
    judged: OutOfFold, keys: Sequence[str], *, limit: int = 1000
) -> list[Suspect]:
    """Rows whose label another class beats by `MINIMUM_MARGIN`, the most doubtful first.

    `keys` are those of all rows of the training part.
    """
    best = judged.probabilities.argmax(axis=1)
    each = np.arange(len(judged))
    top, own = judged.probabilities[each, best], judged.probabilities[each, judged.codes]
    doubtful = np.flatnonzero(top - own >= MINIMUM_MARGIN)
    order = doubtful[np.argsort((own - top)[doubtful], kind="stable")][:limit]
    names = [str(name) for name in judged.classes]
    return [
        Suspect(
            keys[judged.rows[i]],
            names[judged.codes[i]],
            names[best[i]],
            float(top[i]),
            float(own[i]),
        )
        for i in order
    ]
