"""Labels that heads fitted without the image contradict: confident learning, ranked.

A label is doubtful where another class passes its own threshold, the mean probability of that class
among the images that bear it (Northcutt, Jiang, Chuang 2021, "Confident Learning", eq. 1 and 2), or
beats it by `MINIMUM_MARGIN`. They are ranked by the probability of the label itself. On hand signs,
rendered digits and clothes with 5 % flipped labels LDA put more of these into the first 8 % of the
list than logistic regression (93, 100, 50 against 89, 99, 47 %) at a sixth of its time; ranked by
the margin in place of the probability it was 89, 100 and 42 % (docs/log.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.audit.finding import Finding
from dinoprobe.audit.suspects import MINIMUM_MARGIN
from dinoprobe.evaluation import wilson
from dinoprobe.heads import LDAProbe, frozen_choice, out_of_fold

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads import OutOfFold, ProbeBase
    from dinoprobe.types import Features

    Codes = npt.NDArray[np.intp]

TRIAL_SHARE, TRIAL_LOOKED_AT = 0.05, 0.08


class Doubtful(NamedTuple):
    """Places in the predictions, the most doubtful first, and the class that fits better there."""

    places: Codes
    suggested: Codes


def judge_labels(labelled: Features, folds: Codes) -> tuple[OutOfFold, ProbeBase]:
    """Predictions out of fold by a head whose strength was chosen on the same folds."""
    head = frozen_choice(LDAProbe().fit(labelled.X, labelled.y, folds=folds))
    return out_of_fold(head, labelled.X, labelled.y, folds), head


def confident_labels(judged: OutOfFold) -> Codes:
    """The class that each row has by confident learning `(m,)`, -1 where none is confident.

    The most probable of the classes that reach the mean probability of their own rows.
    """
    p = judged.probabilities
    counts = np.bincount(judged.codes, minlength=p.shape[1])
    own = np.bincount(judged.codes, p[_each(judged), judged.codes], minlength=p.shape[1])
    threshold = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    confident = np.where(p >= threshold, p, -1.0)
    best = confident.argmax(axis=1)
    return np.where(confident[_each(judged), best] >= 0, best, -1)


def doubtful(judged: OutOfFold) -> Doubtful:
    """Rows whose label another class contradicts, by confident learning or by its margin."""
    p, each = judged.probabilities, _each(judged)
    confident, best = confident_labels(judged), p.argmax(axis=1)
    own = p[each, judged.codes]
    wrong = best != judged.codes
    by_thresholds = wrong & (confident >= 0) & (confident != judged.codes)
    suggested = np.where(by_thresholds, confident, best)
    listed = by_thresholds | (wrong & (p[each, best] - own >= MINIMUM_MARGIN))
    places = np.flatnonzero(listed)
    places = places[np.argsort(own[places], kind="stable")]
    return Doubtful(places, suggested[places])


def label_findings(labelled: Features, judged: OutOfFold) -> list[Finding]:
    """A finding for each doubtful label."""
    names, p = [str(name) for name in judged.classes], judged.probabilities
    found = []
    for place, other in zip(*doubtful(judged), strict=True):
        row, own, label = judged.rows[place], float(p[place, judged.codes[place]]), judged.codes
        sure = p[place, other] - own >= MINIMUM_MARGIN
        found.append(
            Finding(
                kind="label", severity="high" if sure else "low", score=1 - own,
                key=labelled.keys[row], label=names[label[place]], split=labelled.splits[row],
                suggestion=names[other],
                reason=f"{names[other]} has {p[place, other]:.2f} by heads that had not seen it, "
                f"its label {names[label[place]]} {own:.2f}",
            )
        )  # fmt: skip
    return found


def label_figures(
    labelled: Features, judged: OutOfFold, head: ProbeBase, folds: Codes, seed: int
) -> dict[str, Any]:
    """How well labels can be judged here, and how many wrong ones such a list would hold first.

    How many of those listed are wrong can not be told from probabilities: where classes overlap, a
    right label may have a small one.
    """
    right = int((judged.probabilities.argmax(axis=1) == judged.codes).sum())
    return {
        "head": "lda",
        "n": len(judged),
        "accuracy": right / len(judged),
        "interval": list(wilson(right, len(judged))),
        "trial": _trial(labelled, head, folds, seed),
    }


def _trial(labelled: Features, head: ProbeBase, folds: Codes, seed: int) -> dict[str, int] | None:
    """Labels changed at random on purpose, and how many of them the same ranking puts first."""
    rng, classes = np.random.default_rng(seed), np.unique(labelled.y)
    count = round(TRIAL_SHARE * len(labelled))
    if not count:
        return None
    changed = rng.choice(len(labelled), count, replace=False)
    codes = np.searchsorted(classes, labelled.y)
    codes[changed] = (codes[changed] + rng.integers(1, len(classes), count)) % len(classes)
    judged = out_of_fold(head, labelled.X, classes[codes], folds)
    looked_at = round(TRIAL_LOOKED_AT * len(labelled))
    order = np.argsort(judged.probabilities[_each(judged), judged.codes], kind="stable")
    found = np.isin(changed, judged.rows[order[:looked_at]]).sum()
    return {"planted": count, "found": int(found), "looked_at": looked_at}


def _each(judged: OutOfFold) -> Codes:
    return np.arange(len(judged))
