"""What the page asks for, as JSON values: columns for rows, so that 50,000 are a few megabytes."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe import __version__
from dinoprobe.errors import DatasetError
from dinoprobe.evaluation import evaluate
from dinoprobe.page.saving import save_command

if TYPE_CHECKING:
    from dinoprobe.datasets.corrections import Change
    from dinoprobe.page.fitting import Model
    from dinoprobe.page.workspace import Standing, Workspace

SCHEMA_INFO, SCHEMA_ROWS = "dinoprobe.page-info/1", "dinoprobe.page-rows/1"


def info(work: Workspace) -> dict[str, Any]:
    """What is open; nothing in it changes while the page is open."""
    origin, figures = work.origin, work.figures
    return {
        "schema": SCHEMA_INFO,
        "version": __version__,
        "title": origin.title,
        "kind": "data" if origin.run is None else "run",
        "place": origin.data.source if origin.run is None else str(origin.run),
        "source": origin.data.source,
        "labels_file": str(origin.labels),
        "encoder": work.encoder.name,
        "pooling": work.encoder.pooling,
        "head": work.recipe.name,
        "stands_in": work.recipe.stands_in,
        "n": len(work.features),
        "failed": len(work.features.failures),
        "parts": dict(Counter(str(part) for part in work.splits)),
        "accuracy": figures.get("accuracy"),
        "interval": figures.get("accuracy_interval"),
        "n_test": figures.get("n"),
        "has_novelty": work.novelty is not None,
        "notes": list(work.notes),
        "commands": _commands(work),
    }


def _commands(work: Workspace) -> dict[str, str]:
    """What does the same as a view, in a terminal."""
    source, encoder = work.origin.data.source, work.encoder.name
    words = {"map": ["embed", source, "--encoder", encoder, "--export", "features.parquet"]}
    if work.origin.run is not None:
        run = str(work.origin.run)
        words |= {"evaluate": ["evaluate", run], "predict": ["predict", run, "IMAGE"]}
    return {view: shlex.join(["dinoprobe", *line]) for view, line in words.items()}


def rows(work: Workspace) -> dict[str, Any]:
    """Keys, parts and labels of the source, one for each row; None for no label, or no part."""
    return {
        "schema": SCHEMA_ROWS,
        "keys": list(work.features.keys),
        "splits": list(work.splits),
        "labels": work.features.y.tolist(),
    }


def changes_since(work: Workspace, action: int) -> dict[str, Any]:
    """Corrections after an action, the classes that there are with them, and what saves them."""
    found = work.log.since(action)
    standing = work.standing()
    return {
        "version": standing.version,
        "classes": work.classes(standing),
        "changes": [_change(change) for change in found],
        "model_version": None if work.model is None else work.model.version,
        "save_command": save_command(work),
    }


def _change(change: Change) -> dict[str, Any]:
    kept = ("time", "action", "key", "old", "new", "dropped", "undoes")
    return {name: value for name, value in change._asdict().items() if name in kept}


def model(work: Workspace) -> dict[str, Any]:
    """What the model says of each row, None before there is one."""
    found = work.model
    if found is None:
        return {"version": None, "classes": [], "predicted": [], "probability": [], "novel": []}
    return {
        "version": found.version,
        "is_first": found is work.first,
        "classes": list(found.classes),
        "predicted": found.best.tolist(),
        "probability": np.round(found.probability.astype(float), 4).tolist(),
        "novel": _novel(work),
    }


def _novel(work: Workspace) -> list[int]:
    """Rows that are unlike the training images."""
    if work.novelty is None:
        return []
    flags = work.novelty.flags(work.novelty.scores(work.features.X))
    found: list[int] = np.flatnonzero(flags).tolist()
    return found


def figures(work: Workspace, which: str, standing: Standing) -> dict[str, Any]:
    """Figures on the test part of the model `which` ("first" or "now"), with labels as they stand.

    Raises DatasetError where there is no test part, or no model.
    """
    found = work.first if which == "first" else work.model
    chosen = work.test_rows(standing)
    if found is None or not len(chosen):
        raise DatasetError(
            "there is no test part, or no model; expected both. Train a run: " + save_command(work)
        )
    labels = [str(label) for label in standing.labels[chosen]]
    names = list(found.classes)
    kept = [i for i, label in enumerate(labels) if label in names]
    if not kept:
        raise DatasetError("no test image has a label that the model knows. Correct the labels.")
    picked = chosen[np.array(kept, dtype=np.intp)]
    probabilities = found.head.predict_proba(work.features.X[picked])
    evaluation = evaluate([labels[i] for i in kept], probabilities, names)
    return {
        **evaluation.to_dict(),
        "left_out": len(chosen) - len(kept),
        "corrected": work.corrected(standing, picked),
        "answers": _answers(work, found, picked, probabilities, standing),
    }


def _answers(
    work: Workspace,
    found: Model,
    picked: Any,
    probabilities: Any,
    standing: Standing,
) -> list[dict[str, Any]]:
    """The judged images, one by one: key, label, answer, its probability."""
    names, best = found.classes, probabilities.argmax(axis=1)
    return [
        {
            "key": work.features.keys[row],
            "label": standing.labels[row],
            "predicted": names[code],
            "probability": round(float(probability[code]), 4),
        }
        for row, code, probability in zip(picked, best, probabilities, strict=True)
    ]
