"""`render_report`: the evaluation as one page without network, fonts or libraries.

A content security policy forbids everything but the page's own style, its one script (by hash) and
pictures inside it. Names come from users, so every value is escaped by the template engine; this
module prepares lists and the template only walks along them.
"""

from __future__ import annotations

import base64
import hashlib
import math
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from dinoprobe.report import charts, matrix, wording
from dinoprobe.report.input import Figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dinoprobe.report.input import (
        ClassFigures,
        Interval,
        Prediction,
        ReportInput,
    )
    from dinoprobe.types import Failure

MAX_SUSPECTS = 12
MAX_MISTAKES = 24
MAX_THUMBNAIL_BYTES = 1_500_000  # of all together; base64 adds a third
MAX_CLASS_ROWS = 1_000
MAX_FAILURES = 50
MAX_NOTES = 50
MAX_CONFUSIONS = 10

_ENCODER = {
    "id": "Encoder",
    "commit": "Commit",
    "model_type": "Architecture",
    "weights_digest": "Weights digest",
    "pooling": "Pooling",
    "dimension": "Feature dimension",
    "precision": "Precision",
    "preprocessing": "Preprocessing",
    "fingerprint": "Fingerprint",
    "version": "",
    "hub_id": "",
}
_HEAD = {
    "name": "Head",
    "strength": "Strength C",
    "alpha": "Strength alpha",
    "shrinkage": "Shrinkage",
    "temperature": "Temperature",
}
_RUN = {
    "protocol": "Protocol",
    "seed": "Seed",
    "dataset_uri": "Dataset",
    "dataset_digest": "Dataset digest",
    "device": "Device",
    "seconds": "Duration in seconds",
    "created": "Created",
    "command": "",
    "versions": "",
}
_SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Result", "result", ()),
    ("Confusions", "confusions", ("matrix", "picture", "confusions")),
    ("Classes", "classes", ("class_rows",)),
    ("Confident mistakes", "mistakes", ("mistakes",)),
    ("Labels to look at", "suspects", ("suspects",)),
    ("Calibration", "calibration", ("reliability_chart",)),
    ("Answers", "answers", ("abstention_chart", "trust")),
    (
        "Training",
        "training",
        ("head_facts", "compared", "selection_chart", "loss_chart", "curve_chart"),
    ),
    ("Data", "data", ("count_rows", "failures", "ignored", "notes")),
    ("Protocol", "protocol", ()),
)


class Accuracy(NamedTuple):
    """One row of the comparison of accuracies."""

    name: str
    value: float
    interval: Interval | None
    style: str


class Mistake(NamedTuple):
    """A wrong prediction with its picture as a data URI, or None without one."""

    prediction: Prediction
    picture: str | None


class ClassCounts(NamedTuple):
    """How many images of one class each split has."""

    name: str
    counts: tuple[int, ...]


def render_report(summary: ReportInput) -> str:
    """The whole page as text; write it as UTF-8. The same input gives the same bytes."""
    figures = Figures.from_evaluation(summary.evaluation)
    script, style = _asset("report.js"), _asset("report.css")
    parts = {
        **_matrix_parts(figures),
        **_class_parts(figures),
        **_mistake_parts(summary),
        **_training_parts(summary, figures),
        **_data_parts(summary),
        **_protocol_parts(summary),
    }
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            figures=figures,
            script=script,
            style=style,
            script_hash=_script_hash(script),
            caveats=wording.caveats(summary, figures),
            accuracies=_accuracies(summary, figures),
            uninformed=math.log(len(figures.classes)) if len(figures.classes) > 1 else None,
            sections=_sections(parts),
            **parts,
        )
    )
    return wording.clean(page)


def _sections(parts: Mapping[str, object]) -> list[tuple[str, str]]:
    """Name and id of each section that the page has, given what it is made of."""
    return [
        (name, anchor)
        for name, anchor, needs in _SECTIONS
        if not needs or any(parts[key] for key in needs)
    ]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dinoprobe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "interval": wording.interval,
        "decimal": wording.decimal,
        "integer": wording.integer,
        "shorten": wording.shorten,
    }
    environment.globals["plural"] = wording.plural
    return environment


def _asset(name: str) -> str:
    return files("dinoprobe.report").joinpath("templates", name).read_text(encoding="utf-8")


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _accuracies(summary: ReportInput, figures: Figures) -> list[Accuracy]:
    rows = []
    if figures.accuracy is not None:
        rows.append(Accuracy("This classifier", figures.accuracy, figures.interval, "this"))
    clean = summary.without_leaks
    if clean is not None and clean.accuracy is not None:
        name = f"Without {wording.plural(clean.left_out, 'leaked test image')}"
        rows.append(Accuracy(name, clean.accuracy, clean.interval, "other"))
    if summary.baseline:
        base = summary.baseline
        rows.append(Accuracy(base.name, base.accuracy, base.interval, "other"))
    if figures.majority is not None:
        rows.append(Accuracy("Always the most frequent class", figures.majority, None, "other"))
    return rows


def _matrix_parts(figures: Figures) -> dict[str, object]:
    small = len(figures.classes) <= matrix.LARGEST_TABLE
    complete = bool(figures.confusion) and len(figures.confusion) == len(figures.classes)
    return {
        "matrix": matrix.table(figures.classes, figures.confusion) if complete and small else (),
        "picture": (
            matrix.picture(figures.classes, figures.confusion) if complete and not small else None
        ),
        "turned": len(figures.classes) > 5 and max(map(len, figures.classes)) > 4,
        "confusions": figures.worst_confusions[:MAX_CONFUSIONS],
        "supports": {row.name: row.support for row in figures.per_class},
    }


def _class_parts(figures: Figures) -> dict[str, object]:
    rows: Sequence[ClassFigures] = figures.per_class
    if len(rows) > MAX_CLASS_ROWS:
        rows = sorted(rows, key=lambda row: 2.0 if row.f1 is None else row.f1)[:MAX_CLASS_ROWS]
    return {"class_rows": rows, "classes_hidden": len(figures.per_class) - len(rows)}


def _mistake_parts(summary: ReportInput) -> dict[str, object]:
    wrong = [p for p in summary.predictions if p.true != p.predicted]
    wrong.sort(key=lambda p: (-p.probability, p.key))
    return {
        "mistakes": _with_pictures(wrong[:MAX_MISTAKES], summary.thumbnails),
        "mistakes_total": len(wrong),
        "suspects": _with_pictures(summary.suspects[:MAX_SUSPECTS], summary.thumbnails),
        "suspects_total": len(summary.suspects),
    }


def _with_pictures(
    wrong: Sequence[Prediction], thumbnails: Mapping[str, bytes]
) -> tuple[Mistake, ...]:
    mistakes, budget = [], MAX_THUMBNAIL_BYTES
    for prediction in wrong:
        image = thumbnails.get(prediction.key, b"")
        uri = _data_uri(image) if len(image) <= budget else None
        budget -= len(image) if uri else 0
        mistakes.append(Mistake(prediction, uri))
    return tuple(mistakes)


def _data_uri(image: bytes) -> str | None:
    kind = _media_type(image)
    return kind and f"data:{kind};base64,{base64.b64encode(image).decode()}"


def _media_type(image: bytes) -> str | None:
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "image/webp"
    return None


def _training_parts(summary: ReportInput, figures: Figures) -> dict[str, object]:
    found = [summary.head.get(name) for name in ("strength", "alpha", "shrinkage")]
    strength = next((value for value in found if value is not None), None)
    chosen = float(strength) if isinstance(strength, (int, float)) else None
    return {
        "trust": [text for text in (summary.sets, summary.novelty, summary.abstention) if text],
        "head_facts": wording.facts(summary.head, _HEAD),
        "selection_chart": charts.selection_chart(summary.selection, chosen),
        "compared": summary.compared,
        "curve_chart": charts.curve_chart(summary.curve),
        "loss_chart": charts.loss_chart(summary.epochs),
        "abstention_chart": charts.abstention_chart(figures.kept, summary.answered),
        "reliability_chart": (
            charts.reliability_chart(figures.reliability) if figures.reliability else None
        ),
    }


def _data_parts(summary: ReportInput) -> dict[str, object]:
    splits = tuple(summary.counts)
    names = sorted({name for counts in summary.counts.values() for name in counts})
    rows = [
        ClassCounts(name, tuple(summary.counts[split].get(name, 0) for split in splits))
        for name in names
    ]
    failures: Sequence[Failure] = summary.failures[:MAX_FAILURES]
    return {
        "splits": splits,
        "split_totals": [sum(summary.counts[split].values()) for split in splits],
        "count_rows": rows[:MAX_CLASS_ROWS],
        "counts_hidden": max(len(rows) - MAX_CLASS_ROWS, 0),
        "failures": failures,
        "failures_hidden": len(summary.failures) - len(failures),
        "ignored": summary.ignored,
        "notes": summary.notes[:MAX_NOTES],
        "notes_hidden": max(len(summary.notes) - MAX_NOTES, 0),
    }


def _protocol_parts(summary: ReportInput) -> dict[str, object]:
    versions = summary.run.get("versions")
    return {
        "encoder_facts": wording.facts(summary.encoder, _ENCODER),
        "run_facts": wording.facts(summary.run, _RUN),
        "versions": wording.as_text(versions) if versions else "",
        "command": str(summary.run.get("command") or ""),
        "encoder_name": str(summary.encoder.get("id") or "unnamed encoder"),
        "created": str(summary.run.get("created") or "")[:10],
    }
