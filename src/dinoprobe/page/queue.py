"""What a person should look at: doubtful labels, copies across the split, odd images, failures.

A run's own files say most of it; without a run, or after corrections, doubtful labels are looked
for again, out of fold. What `dinoprobe check` found joins in, from the run or from beside it.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.audit import suspicious_labels
from dinoprobe.errors import HeadError
from dinoprobe.run import dataset_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dinoprobe.page.workspace import Standing, Workspace

CHECK_FILE = "check.csv"
MOST = 1000
"""Of each kind: nobody looks at more in one sitting."""


def review_queue(work: Workspace, standing: Standing, *, again: bool) -> list[dict[str, Any]]:
    """Items with `kind`, `key`, `suggestion`, `score` (larger: look first), `other`, `text`.

    `again` looks for doubtful labels anew, with the labels as they stand.
    """
    run = work.origin.run
    suspects = _suspects_of_run(run) if run is not None and not again else _suspects(work, standing)
    found = [
        *suspects,
        *(_leaks(run) if run is not None else ()),
        *_checked(work),
        *_mistakes(work, standing),
        *_outliers(work),
    ]
    known = [item for item in found if item["key"] in work.rows]
    return [*_first_of_each(known), *_failures(work)]


def _item(kind: str, key: str, score: float, text: str, **more: str | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "key": key,
        "score": round(score, 4),
        "suggestion": more.get("suggestion"),
        "other": more.get("other"),
        "text": text,
    }


def _first_of_each(items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each image once within a kind, and at most `MOST` of a kind."""
    seen: set[tuple[str, str]] = set()
    counts: dict[str, int] = {}
    for item in items:
        kind, name = item["kind"], (item["kind"], item["key"])
        if name in seen or counts.get(kind, 0) >= MOST:
            continue
        seen.add(name)
        counts[kind] = counts.get(kind, 0) + 1
        yield item


def _has_check(folder: Path) -> bool:
    return (folder / CHECK_FILE).is_file()


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a run's table; none where it is missing."""
    if not path.is_file():
        return []
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8", "replace"))))


def _suspects_of_run(run: Path) -> Iterator[dict[str, Any]]:
    for row in _table(run / "suspects.csv"):
        sure, own = float(row["probability"]), float(row["label_probability"])
        yield _suspect(row["key"], row["predicted"], sure, own)


def _suspects(work: Workspace, standing: Standing) -> Iterator[dict[str, Any]]:
    """By heads that did not see the row; nothing where too few rows have labels."""
    rows = work.training_rows(standing)
    training = work.labelled(rows, standing)
    if len({str(label) for label in training.y}) < 2:
        return
    try:
        judged = work.recipe.left_out(training)
    except HeadError:
        return  # too few rows of a class
    for found in suspicious_labels(judged, training.keys, limit=MOST):
        yield _suspect(found.key, found.predicted, found.probability, found.label_probability)


def _suspect(key: str, predicted: str, sure: float, own: float) -> dict[str, Any]:
    text = (
        f"Heads that did not see it: “{predicted}” {100 * sure:.0f} %, its label {100 * own:.1f} %"
    )
    return _item("suspect", key, sure - own, text, suggestion=predicted)


def _leaks(run: Path) -> Iterator[dict[str, Any]]:
    for row in _table(run / "leaks.csv"):
        same = "identical to" if row["kind"] == "identical" else "nearly the same as"
        text = f"In the test part, and {same} {row['other_key']} ({row['other_label']})"
        yield _item(
            "duplicate", row["key"], float(row["correlation"]), text, other=row["other_key"]
        )


def _checked(work: Workspace) -> Iterator[dict[str, Any]]:
    """The findings of the newest `dinoprobe check` of these images, in the run or beside it."""
    origin = work.origin
    beside = origin.labels.parent.parent.glob(f"{dataset_name(origin.data.source)}-check-*")
    folders = [folder for folder in (origin.labels.parent, *beside) if _has_check(folder)]
    if not folders:
        return
    newest = max(folders, key=lambda folder: (folder / CHECK_FILE).stat().st_mtime_ns)
    for row in _table(newest / CHECK_FILE):
        kind, reason = str(row.get("kind")), row.get("reason") or ""
        yield _item(
            "check",
            str(row.get("key")),
            float(row.get("score") or 0),
            f"dinoprobe check, {kind}: {reason}",
            suggestion=row.get("suggestion") or None,
            other=row.get("related") or None,
        )


def _mistakes(work: Workspace, standing: Standing) -> Iterator[dict[str, Any]]:
    """Test images that the first model is surely wrong about: to understand it, not to relabel."""
    model = work.first
    if model is None:
        return
    rows = work.test_rows(standing)
    names = model.classes
    wrong = [int(row) for row in rows if names[model.best[row]] != standing.labels[row]]
    for row in sorted(wrong, key=lambda row: -model.probability[row]):
        said, sure = names[model.best[row]], float(model.probability[row])
        text = f"Test part: taken for {said} with {100 * sure:.0f} %"
        yield _item("mistake", work.features.keys[row], sure, text, suggestion=said)


def _outliers(work: Workspace) -> Iterator[dict[str, Any]]:
    """Images unlike the training images, by the classifier's own measure."""
    if work.novelty is None:
        return
    scores = work.novelty.scores(work.features.X)
    over = np.flatnonzero(work.novelty.flags(scores))
    for row in over[np.argsort(-scores[over])]:
        times = float(scores[row]) / max(work.novelty.threshold, 1e-12)
        text = f"Unlike the training images: {times:.2f} times the threshold"
        yield _item("outlier", work.features.keys[int(row)], float(scores[row]), text)


def _failures(work: Workspace) -> Iterator[dict[str, Any]]:
    """Files that can not be used; they have no features, and no picture."""
    for failure in work.features.failures[:MOST]:
        yield _item("failure", failure.key, 0.0, f"{failure.kind}: {failure.reason}")
