"""A saved classifier on labelled images: its own test part again, or any other images."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.classifier import ImageClassifier, classifier_folder
from dinoprobe.datasets import SplitRow, check_classes, read_split
from dinoprobe.engine import embed
from dinoprobe.errors import DatasetError, FormatError
from dinoprobe.outcome import Context, Outcome, count_parts, judge, outcome_summary, write_outcome
from dinoprobe.run import check_out, new_evaluation, new_run
from dinoprobe.store import FeatureStore
from dinoprobe.train import DataSettings
from dinoprobe.types import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dinoprobe.types import Dataset, Features, Progress

SCHEMA = "dinoprobe.evaluate/1"


class Scored(NamedTuple):
    """`path` is the directory with the files, `summary` the document of `--json`."""

    path: Path
    classifier: ImageClassifier
    outcome: Outcome
    context: Context
    summary: dict[str, Any]


def score(
    run: str,
    data: DataSettings | None,
    *,
    device: str = "auto",
    store: str | None = None,
    out: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Evaluate a run, or a classifier's directory, and write the files of an evaluation.

    Without `data` it is the run's own test part. Raises FormatError, DatasetError and what
    `ImageClassifier.load` and `embed` raise.
    """
    start = time.perf_counter()
    check_out(out)
    folder = classifier_folder(run)
    home = folder.parent if folder.name == "classifier" else folder
    known = _known(home)
    dataset = (data or _own_data(home)).open()
    classifier = ImageClassifier.load(folder, device=device)
    embedding = embed(
        dataset, classifier.encoder, store=FeatureStore(store), progress=progress or NoProgress()
    )
    chosen, notes = _choose(embedding.features, known, own=data is None)
    labels = [str(label) for label in chosen.y]
    notes += check_classes(classifier.classes, labels)
    outcome = judge(classifier, chosen)
    context = Context(
        dataset=dataset,
        protocol="saved classifier, nothing fitted; " + _which(dataset, own=data is None),
        seed=int(classifier.training.get("seed", 0)),
        seconds=time.perf_counter() - start,
        n_train=int(classifier.training.get("n", 0)),
        counts=count_parts(chosen.y.tolist(), ["test"] * len(chosen)),
        failures=embedding.features.failures,
        notes=(*dataset.notes, *embedding.notes, *notes),
    )
    for note in context.notes:
        say(note)
    path = new_run(out, dataset.uri) if out else new_evaluation(home, dataset.uri)
    write_outcome(path, classifier, outcome, context)
    summary = outcome_summary(SCHEMA, path, classifier, outcome, context)
    return Scored(path, classifier, outcome, context, {**summary, "classifier": str(folder)})


def _known(home: Path) -> dict[str, SplitRow]:
    """The run's split, empty for a classifier that was moved away from its run."""
    path = home / "split.csv"
    return {row.key: row for row in read_split(path)} if path.exists() else {}


def _own_data(home: Path) -> DataSettings:
    path = home / "config.json"
    try:
        return DataSettings(**json.loads(path.read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: does not say which images the run used ({error}). Give images to evaluate."
        raise FormatError(msg) from error


def _which(dataset: Dataset, *, own: bool) -> str:
    return "the run's own test part" if own else f"images of {dataset.uri}"


def _choose(
    features: Features, known: dict[str, SplitRow], *, own: bool
) -> tuple[Features, list[str]]:
    """The rows to judge: the run's test part, or a test part that the images bring, or all."""
    parts = [_part(features, i, known, own=own) for i in range(len(features))]
    given = "test" in parts
    rows = [
        i
        for i, label in enumerate(features.y)
        if label is not None and (parts[i] == "test" or not given)
    ]
    if not rows or (own and not given):
        what = "images of the run's test part" if own else "labelled images"
        msg = (
            f"found no {what} that can be used, expected at least one. Check the place and labels."
        )
        raise DatasetError(msg)
    chosen = features.select(np.array(rows, dtype=np.intp))
    notes = [] if own else _seen_in_training(chosen, known)
    if given and not own:
        notes.append(f"Only the test part was evaluated: {len(rows)} of {len(features)} images.")
    return chosen, notes


def _part(features: Features, i: int, known: dict[str, SplitRow], *, own: bool) -> str | None:
    if not own:
        return features.splits[i]
    row = known.get(features.keys[i])
    return row.split if row else None


def _seen_in_training(chosen: Features, known: dict[str, SplitRow]) -> list[str]:
    trained = {row.content_hash for row in known.values() if row.split in {"train", "val"}}
    seen = [
        key for key, digest in zip(chosen.keys, chosen.hashes, strict=True) if digest in trained
    ]
    if not seen:
        return []
    return [
        (
            f"{len(seen)} of {len(chosen)} images were also trained on, first {seen[0]}: "
            "the figures are too good by as much."
        )
    ]
