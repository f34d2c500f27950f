"""The run directory: its name, and the tables in it.

config.json       every option, resolved: `dinoprobe train --config` repeats the run
split.csv         key, label, split, group, content_hash
classifier/       see classifier.py
evaluation.json   figures with intervals, protocol, versions
predictions.csv   the test part: key, label, predicted, probability, correct, content_hash
suspects.csv      training labels that out-of-fold predictions contradict
leaks.csv         test images that also stand in another part, identical or nearly so
learning_curve.csv  accuracy at smaller sizes of the training part, where it was asked for
failures.csv      images that could not be used, with the reason
metrics.jsonl     what was measured while fitting, a line per event
report.html       all of it on one page
exports/          what `dinoprobe export` wrote, each with its gate.json
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.datasets import HUB_PREFIX, DataSettings, read_split
from dinoprobe.errors import ConfigurationError, FormatError
from dinoprobe.files import WriteError, read_json, to_json, umask, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dinoprobe.audit import Suspect
    from dinoprobe.datasets import SplitRow
    from dinoprobe.duplicates import Leak
    from dinoprobe.learning_curve import LearningCurve

DEFAULT_FOLDER = "runs"
_MAXIMUM_RUNS = 100_000


def check_out(out: str | None) -> None:
    """Raise ConfigurationError when a run can not be written there, before hours of work."""
    if out is None:
        return
    folder = Path(out).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{out}: exists and is not an empty directory. Give another --out."
        raise ConfigurationError(msg)
    above = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not above.is_dir() or not os.access(above, os.W_OK):
        msg = f"{out}: {above} is not a directory that can be written to. Give another --out."
        raise ConfigurationError(msg)


def place_beside(out: str | None) -> Path:
    """An existing folder on the disk that a run will lie on. Raises WriteError."""
    folder = Path(DEFAULT_FOLDER) if out is None else Path(out).expanduser().resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{folder}: can not be written to ({error.strerror}). Give another --out."
        raise WriteError(msg) from error
    return folder


@dataclass(frozen=True, slots=True)
class Staged:
    """A directory under way: files go into `folder`, which becomes `path` when all are there."""

    folder: Path
    path: Path


@contextmanager
def new_run(out: str | None, dataset_uri: str) -> Iterator[Staged]:
    """A fresh directory: `out`, or `runs/<dataset>-001` and so on. It appears whole or not at all.

    Raises ConfigurationError and WriteError.
    """
    check_out(out)
    if out is not None:
        path = Path(out).expanduser().resolve()
        with _staged(path.parent, path.name, numbered=False) as staged:
            yield replace(staged, path=Path(out).expanduser())
        return
    with _staged(Path(DEFAULT_FOLDER), dataset_name(dataset_uri), numbered=True) as staged:
        yield staged


@contextmanager
def new_check(out: str | None, dataset_uri: str) -> Iterator[Staged]:
    """As `new_run`, at `out` or `runs/<dataset>-check-001` and so on."""
    if out is not None:
        with new_run(out, dataset_uri) as staged:
            yield staged
        return
    name = f"{dataset_name(dataset_uri)}-check"
    with _staged(Path(DEFAULT_FOLDER), name, numbered=True) as staged:
        yield staged


def check_note(out: str | None, dataset_uri: str) -> str | None:
    """What the newest check of this dataset found, where one lies beside the run; else None."""
    from dinoprobe.audit.finding import in_words

    parent = Path(DEFAULT_FOLDER) if out is None else Path(out).expanduser().resolve().parent
    for path in sorted(parent.glob(f"{dataset_name(dataset_uri)}-check-*/check.json"))[::-1]:
        with suppress(OSError, FormatError, KeyError, TypeError, AttributeError):
            found = read_json(path)
            if found["dataset"] == dataset_uri:
                told = in_words(found["counts"])
                return f"dinoprobe check found {told}: {path.parent / 'check.csv'}"
    return None


@contextmanager
def new_evaluation(run: Path, dataset_uri: str) -> Iterator[Staged]:
    """As `new_run`, at `evaluations/<dataset>-001` in the run directory."""
    with _staged(run / "evaluations", dataset_name(dataset_uri), numbered=True) as staged:
        yield staged


@contextmanager
def new_export(out: str | None, run: Path, classifier: Path, target: str) -> Iterator[Staged]:
    """As `new_run`, at `exports/<target>-001` in the run directory, or here for a classifier that
    has left its run.
    """
    check_out(out)
    if out is not None:
        with new_run(out, target) as staged:
            yield staged
        return
    alone = run == classifier
    parent = Path("exports") if alone else run / "exports"
    name = f"{dataset_name(str(classifier))}-{target}" if alone else target
    with _staged(parent, name, numbered=True) as staged:
        yield staged


@contextmanager
def _staged(parent: Path, name: str, *, numbered: bool) -> Iterator[Staged]:
    """Stages beside the place, or inside it where it is an empty directory (a mount, perhaps)."""
    path = parent / name
    within = path if not numbered and path.is_dir() else parent
    try:
        within.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".new", dir=within))
        folder.chmod(0o777 & ~umask())
    except OSError as error:
        msg = f"{within}: can not be written to ({error.strerror}). Give another --out."
        raise WriteError(msg) from error
    try:
        if numbered:
            path = _free(parent, name)
        yield Staged(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if numbered and path != parent / name:
            with suppress(OSError):
                path.rmdir()  # only the empty directory that held the number
        raise
    _publish(folder, path)


def _publish(folder: Path, path: Path) -> None:
    """Moves what was staged to its place; where that fails, it is kept and named."""
    try:
        if folder.parent != path:
            folder.rename(path)  # replaces an empty directory, never one with files
            return
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "config.json"):
            entry.rename(path / entry.name)
        folder.rmdir()
    except OSError as error:
        msg = f"{path}: can not be made ({error.strerror}). What was made is in {folder}: move it."
        raise WriteError(msg) from error


def _free(parent: Path, name: str) -> Path:
    """The first number that nothing has; an empty directory takes it for this process."""
    for number in range(1, _MAXIMUM_RUNS):
        path = parent / f"{name}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ConfigurationError(f"{parent}: no free number for '{name}'. Give --out.")


def run_of(classifier: Path) -> Path:
    """The run directory of a classifier, or the classifier's own where it has left its run."""
    run = classifier.parent
    return run if classifier.name == "classifier" and (run / "split.csv").exists() else classifier


def known_rows(run: Path) -> dict[str, SplitRow]:
    """The run's split by key, empty for a classifier that was moved away from its run."""
    path = run / "split.csv"
    return {row.key: row for row in read_split(path)} if path.exists() else {}


def own_data(run: Path) -> DataSettings:
    """The images that the run used. Raises FormatError where it does not say."""
    path = run / "config.json"
    try:
        return DataSettings(**read_json(path)["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: does not say which images the run used ({error}). Give images to evaluate."
        raise FormatError(msg) from error


def absolute(place: str) -> str:
    """A local path or pattern made absolute; a URI and a name on a hub as they are."""
    return (
        place
        if "://" in place or place.startswith(HUB_PREFIX)
        else str(Path(place).expanduser().absolute())
    )


def dataset_name(uri: str) -> str:
    """A short name for files and titles: the last part of the place, letters and digits only."""
    parts = [part for part in re.split(r"[/\\]", uri) if part not in {"", ".", ".."}]
    name = Path(parts[-1]).stem if parts else ""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, all or nothing."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def write_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Write suspects.csv, the most doubtful first."""
    header = ("key", "label", "predicted", "probability", "label_probability")
    rows = [(*s[:3], f"{s.probability:.4f}", f"{s.label_probability:.4f}") for s in suspects]
    write_table(path, header, rows)


def write_leaks(path: Path, leaks: Sequence[Leak]) -> None:
    """Write leaks.csv, in the order of the test images."""
    header = ("key", "label", "other_key", "other_label", "kind", "correlation")
    write_table(path, header, [(*leak[:5], f"{leak.correlation:.4f}") for leak in leaks])


def write_curve(path: Path, curve: LearningCurve) -> None:
    """Write learning_curve.csv, a row for each size."""
    header = ("n", "accuracy", "low", "high", "deviation")
    rows = [(p.n, p.accuracy, *p.interval, p.deviation) for p in curve.points]
    write_table(path, header, [(n, *(f"{value:.6f}" for value in rest)) for n, *rest in rows])


def write_metrics(path: Path, events: Iterable[dict[str, Any]]) -> None:
    """Write metrics.jsonl, one JSON object a line."""
    write_atomic(path, b"".join(to_json(event) + b"\n" for event in events))
