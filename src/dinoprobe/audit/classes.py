"""Classes that will not be learnt well: tiny ones, pairs that are confused, two things in one."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import poisson
from sklearn.cluster import KMeans

from dinoprobe.audit.finding import Finding
from dinoprobe.evaluation import wilson
from dinoprobe.heads.axes import principal_axes
from dinoprobe.heads.threads import one_openmp_thread

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dinoprobe.heads import OutOfFold
    from dinoprobe.types import Features

FEW, VERY_FEW = 10, 3
SIGNIFICANCE = 0.01
LEAST_CONFUSION = 0.05
MOST_PAIRS = 20
AXES = 32
SEPARATION = 6.0
"""Distance of two clusters in their deviations along it; halves of a normal class have 2.7. Of
clothes classes none reached it, of rendered digits four of ten, of hand signs nine, which hold a
tenth of pictures in another light (docs/log.md)."""
SMALL_SHARE, FEWEST_APART, FEWEST_ROWS = 0.05, 5, 20


def tiny_classes(counts: Mapping[str, int]) -> list[Finding]:
    """Classes with fewer than `FEW` images."""
    return [
        Finding(
            kind="tiny-class", severity="high" if count < VERY_FEW else "medium", label=label,
            score=1 - count / FEW,
            reason=f"{count} images; fewer than {FEW} tell little, and a test of them less",
        )
        for label, count in counts.items()
        if count < FEW
    ]  # fmt: skip


def overlapping(judged: OutOfFold) -> list[Finding]:
    """Pairs of classes that heads confuse more often than errors that fell evenly would.

    A one-sided Poisson test of the pair's errors, corrected for the number of pairs (Bonferroni),
    and a share of both classes' images whose interval lies above `LEAST_CONFUSION`.
    """
    k = len(judged.classes)
    table = np.zeros((k, k))
    np.add.at(table, (judged.codes, judged.probabilities.argmax(axis=1)), 1)
    totals, errors = table.sum(axis=1), table.sum(axis=1) - table.diagonal()
    level = SIGNIFICANCE / max(k * (k - 1) / 2, 1)
    found = []
    confused = table + table.T
    for a, b in combinations(range(k), 2):
        count, n = int(confused[a, b]), int(totals[a] + totals[b])
        if not count:
            continue
        expected = (errors[a] + errors[b]) / max(k - 1, 1)
        low, high = wilson(count, n)
        beyond = k == 2 or poisson.sf(count - 1, expected) < level
        if beyond and low > LEAST_CONFUSION:
            found.append(_pair(judged, (a, b), (count, n), (low, high), float(expected)))
    return sorted(found, key=lambda finding: -(finding.score or 0))[:MOST_PAIRS]


def _pair(
    judged: OutOfFold,
    pair: tuple[int, int],
    counts: tuple[int, int],
    interval: tuple[float, float],
    expected: float,
) -> Finding:
    first, second = (str(judged.classes[i]) for i in pair)
    count, n = counts
    share = count / n
    low, high = (100 * bound for bound in interval)
    chance = "" if len(judged.classes) == 2 else f"; {expected:.0f} if errors fell evenly"
    return Finding(
        kind="overlap", severity="medium" if share >= 0.15 else "low", label=first, related=second,
        score=share,
        reason=f"{count} of {n} images of both are taken for the other, {100 * share:.0f} % "
        f"(95 % interval {low:.0f} to {high:.0f}){chance}",
    )  # fmt: skip


def split_classes(labelled: Features) -> list[Finding]:
    """Classes whose features fall into two clusters that stand apart, the farthest first."""
    Z = _reduced(labelled.X)
    found = []
    for label in labelled.classes:
        rows = np.flatnonzero(labelled.y == label)
        if len(rows) < FEWEST_ROWS:
            continue
        apart, small = _separation(Z[rows])
        if apart >= SEPARATION and len(small) >= max(FEWEST_APART, SMALL_SHARE * len(rows)):
            examples = [labelled.keys[rows[i]] for i in small[:3]]
            found.append(
                Finding(
                    kind="split-class", severity="low", label=label, score=apart,
                    related=examples[0],
                    reason=f"{len(small)} of {len(rows)} images stand apart from the others, "
                    f"{apart:.1f} deviations: {', '.join(examples)}",
                )
            )  # fmt: skip
    return sorted(found, key=lambda finding: -(finding.score or 0))


def _reduced(X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Standardised rows in the directions in which they vary most."""
    Z = X - X.mean(axis=0, dtype=np.float64)
    Z /= np.maximum(Z.std(axis=0), 1e-6)
    axes = principal_axes(Z)[1]
    return np.asarray(Z @ axes[:, -AXES:])


def _separation(
    rows: npt.NDArray[np.float64],
) -> tuple[float, npt.NDArray[np.intp]]:
    """How far two means are apart in deviations along their line, and the smaller cluster."""
    with one_openmp_thread():
        fitted = KMeans(2, n_init=3, random_state=0).fit(rows)
    parts = [np.flatnonzero(fitted.labels_ == i) for i in (0, 1)]
    line = fitted.cluster_centers_[1] - fitted.cluster_centers_[0]
    if not all(len(part) for part in parts) or not line.any():
        return 0.0, parts[0][:0]
    along = rows @ (line / np.linalg.norm(line))
    inside = np.sqrt(sum(along[part].var() for part in parts) / 2)
    apart = float(np.linalg.norm(line) / max(inside, 1e-9))
    return apart, min(parts, key=len)
