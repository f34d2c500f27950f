"""A saved classifier on labelled images: its own test part again, or any other images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.classifier import ImageClassifier, classifier_folder
from dinoprobe.datasets import check_classes
from dinoprobe.encoder import EncoderPlace
from dinoprobe.engine import embed
from dinoprobe.errors import DatasetError, MismatchError
from dinoprobe.outcome import (
    PRIOR_NOTE,
    Context,
    Outcome,
    count_parts,
    judge,
    outcome_summary,
    write_outcome,
)
from dinoprobe.run import check_out, known_rows, new_evaluation, new_run, own_data, run_of
from dinoprobe.store import FeatureStore
from dinoprobe.types import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from dinoprobe.datasets import DataSettings, SplitRow
    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.run import Staged
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
    place: EncoderPlace = EncoderPlace(),  # noqa: B008 - frozen
    store: str | None = None,
    out: str | None = None,
    progress: Progress | None = None,
    transfer: Transfer | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Evaluate a run, or a classifier's directory, and write the files of an evaluation.

    Without `data` it is the run's own test part. Raises FormatError, DatasetError and what
    `ImageClassifier.load` and `embed` raise.
    """
    start = time.perf_counter()
    check_out(out)
    folder = classifier_folder(run).resolve()
    home = run_of(folder)
    known = known_rows(home)
    dataset = (data or own_data(home)).open()
    classifier = ImageClassifier.load_at(folder, place, say=say, transfer=transfer)
    embedding = embed(
        dataset, classifier.encoder, store=FeatureStore(store), progress=progress or NoProgress()
    )
    chosen, notes = _choose(embedding.features, known, own=data is None)
    labels = [str(label) for label in chosen.y]
    notes += check_classes(classifier.classes, labels)
    notes += [PRIOR_NOTE] if classifier.training.get("prior") else []
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
    with _place(out, home, folder, dataset) as staged:
        write_outcome(staged.folder, classifier, outcome, context)
    summary = outcome_summary(SCHEMA, staged.path, classifier, outcome, context)
    return Scored(staged.path, classifier, outcome, context, {**summary, "classifier": str(folder)})


def _place(
    out: str | None, home: Path, folder: Path, dataset: Dataset
) -> AbstractContextManager[Staged]:
    """In the run, or in `runs/` for a classifier without one: its directory stays as it is."""
    if out is not None or home == folder:
        return new_run(out, dataset.uri)
    return new_evaluation(home, dataset.uri)


def _which(dataset: Dataset, *, own: bool) -> str:
    return "the run's own test part" if own else f"images of {dataset.uri}"


def _choose(
    features: Features, known: dict[str, SplitRow], *, own: bool
) -> tuple[Features, list[str]]:
    """The rows to judge: the run's test part, or a test part that the images bring, or all."""
    if own:
        return _own_part(features, known)
    given = "test" in features.splits
    rows = [
        i
        for i, label in enumerate(features.y)
        if label is not None and (features.splits[i] == "test" or not given)
    ]
    notes = []
    if given:
        notes.append(f"Only the test part was evaluated: {len(rows)} of {len(features)} images.")
    kept, more = _without_training(features, rows, known)
    if not kept:
        msg = (
            f"found {len(rows)} labelled images, {len(rows) - len(kept)} of them trained on; "
            "expected at least one that can be judged. Give other images, with labels."
        )
        raise DatasetError(msg)
    return features.select(np.array(kept, dtype=np.intp)), notes + more


def _own_part(features: Features, known: dict[str, SplitRow]) -> tuple[Features, list[str]]:
    """The run's test part. Raises MismatchError when its images or labels are not the same now."""
    expected = {key: row for key, row in known.items() if row.split == "test"}
    rows = [i for i, key in enumerate(features.keys) if key in expected]
    for i in rows:
        row = expected[features.keys[i]]
        if (row.content_hash, row.label) != (features.hashes[i], features.y[i]):
            msg = (
                f"{features.keys[i]}: the image or its label is not what the run tested. Put it "
                "back, or name the images to evaluate: dinoprobe evaluate RUN IMAGES."
            )
            raise MismatchError(msg)
    if len(rows) != len(expected):
        missing = sorted(expected.keys() - set(features.keys))
        msg = (
            f"found {len(rows)} of the {len(expected)} images of the run's test part, "
            f"{missing[0]} is missing. Put them back, or name the images to evaluate."
        )
        raise MismatchError(msg)
    return features.select(np.array(rows, dtype=np.intp)), []


def _without_training(
    features: Features, rows: list[int], known: dict[str, SplitRow]
) -> tuple[list[int], list[str]]:
    if not known:
        note = "The classifier has left its run: images that it was trained on can not be told."
        return rows, [note]
    trained = {row.content_hash for row in known.values() if row.split in {"train", "val"}}
    kept = [i for i in rows if features.hashes[i] not in trained]
    if len(kept) == len(rows):
        return kept, []
    left_out = f"{len(rows) - len(kept)} of {len(rows)} images were trained on and left out."
    return kept, [left_out]
