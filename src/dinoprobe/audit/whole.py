"""All of it in one call, on features that are there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.audit.classes import overlapping, split_classes, tiny_classes
from dinoprobe.audit.copies import copies
from dinoprobe.audit.finding import Check, Finding, in_order
from dinoprobe.audit.labels import judge_labels, label_figures, label_findings
from dinoprobe.audit.neighbourhood import neighbourhood
from dinoprobe.audit.outliers import FEWEST_ROWS, outliers
from dinoprobe.audit.pictures import Pictures, failed_files, odd_files
from dinoprobe.audit.shift import shift
from dinoprobe.partition import dealt_folds
from dinoprobe.types import SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dinoprobe.types import Features

_NOTHING = Pictures()


def check(
    features: Features,
    *,
    pictures: Pictures = _NOTHING,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Check:
    """Everything that can be told of these features; labels and parts are used where given.

    Without `pictures` files are not looked at, and only identical ones count as copies. `say` gets
    sentences on the way, `seed` deals folds and the labels that are changed for a trial.
    """
    say(f"Looking for copies among {len(features):,} images")
    around = neighbourhood(features)
    copied = copies(features, pictures, around)
    found = [*failed_files(features), *odd_files(features, pictures.facts), *copied.findings]
    say("Looking for outliers, doubtful labels and classes")
    far, outlier_figures = outliers(features, around) if around else ([], None)
    notes = list(copied.notes)
    if outlier_figures is None:
        few = f"fewer than {FEWEST_ROWS}" if around else "too many"
        notes.append(f"Outliers were not looked for: {few} pictures.")
    moved, shift_figures = shift(features, copied.near, seed)
    if shift_figures is None and any(features.splits):
        notes.append("No test part, or too few images in it, to compare with the training part.")
    counts = dict(sorted(Counter(str(label) for label in features.y if label is not None).items()))
    labels, label_values, why = _labels(features, copied.near, counts, seed)
    return Check(
        n=len(features),
        n_labelled=sum(counts.values()),
        failed=len(features.failures),
        classes=counts,
        parts={part: features.splits.count(part) for part in SPLITS if part in features.splits},
        findings=in_order([*found, *far, *moved, *labels]),
        figures={
            "labels": label_values,
            "copies": copied.figures,
            "outliers": outlier_figures,
            "shift": shift_figures,
        },
        notes=(*notes, *why),
        fingerprint=features.fingerprint,
        seed=seed,
    )


def _labels(
    features: Features, near: Sequence[str | None], counts: dict[str, int], seed: int
) -> tuple[list[Finding], dict[str, Any] | None, list[str]]:
    """What labels allow: doubtful ones, and the state of the classes."""
    if not counts:
        return [], None, ["No image has a label: labels and classes were not looked at."]
    rows = np.array([i for i, label in enumerate(features.y) if label is not None], dtype=np.intp)
    labelled = features.select(rows)
    tiny = tiny_classes(counts)
    if len(counts) < 2:
        return tiny, None, ["All labels are the same: none can be doubted."]
    folds = dealt_folds(labelled, seed=seed, near=[near[row] for row in rows])
    split = split_classes(labelled)
    if not (folds >= 0).any():
        return [*tiny, *split], None, ["Too few images a class to judge labels out of fold."]
    judged, head = judge_labels(labelled, folds)
    if not len(judged):
        return [*tiny, *split], None, ["Too few images a class to judge labels out of fold."]
    found = [*tiny, *split, *label_findings(labelled, judged), *overlapping(judged)]
    return found, label_figures(labelled, judged, head, folds, seed), []
