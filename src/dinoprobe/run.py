"""The run directory: its name, and the tables in it.

config.json       every option, resolved: `dinoprobe train --config` repeats the run
split.csv         key, label, split, group, content_hash
classifier/       see classifier.py
evaluation.json   figures with intervals, protocol, versions
predictions.csv   the test part: key, label, predicted, probability, correct
suspects.csv      training labels that out-of-fold predictions contradict
failures.csv      images that could not be used, with the reason
metrics.jsonl     what was measured while fitting, a line per event
report.html       all of it on one page
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ConfigurationError
from dinoprobe.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dinoprobe.audit import Suspect

DEFAULT_FOLDER = "runs"
_MAXIMUM_RUNS = 100_000


def check_out(out: str | None) -> None:
    """Raise ConfigurationError when a run can not be written there, before hours of work."""
    if out is None:
        return
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder}: exists and is not an empty directory. Give another --out."
        raise ConfigurationError(msg)


def new_run(out: str | None, dataset_uri: str) -> Path:
    """A fresh directory: `out`, or `runs/<dataset>-001` and so on. Raises ConfigurationError."""
    if out is None:
        return _next(Path(DEFAULT_FOLDER), dataset_name(dataset_uri))
    check_out(out)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_evaluation(run: Path, dataset_uri: str) -> Path:
    """A fresh `evaluations/<dataset>-001` in the run directory."""
    return _next(run / "evaluations", dataset_name(dataset_uri))


def dataset_name(uri: str) -> str:
    """A short name for files and titles: the last part of the place, letters and digits only."""
    parts = [part for part in re.split(r"[/\\]", uri) if part not in {"", ".", ".."}]
    name = Path(parts[-1]).stem if parts else ""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def _next(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, _MAXIMUM_RUNS):
        folder = parent / f"{name}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ConfigurationError(f"{parent}: no free number for '{name}'. Give --out.")


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, all or nothing."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def write_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Write suspects.csv, the most doubtful first."""
    header = ("key", "label", "predicted", "probability", "label_probability")
    rows = [(*s[:3], f"{s.probability:.4f}", f"{s.label_probability:.4f}") for s in suspects]
    write_table(path, header, rows)


def write_metrics(path: Path, events: Iterable[dict[str, Any]]) -> None:
    """Write metrics.jsonl, one JSON object a line."""
    write_atomic(path, "".join(json.dumps(event) + "\n" for event in events))
