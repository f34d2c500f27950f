"""`render_card`: the README.md of a saved classifier, as the Hugging Face hub reads it.

The front matter is written by a YAML library and the body escapes names for Markdown, because both
hold what users called their classes and data.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, PackageLoader, StrictUndefined

from dinoprobe.catalog import HUB_IDS, is_dinov3_licensed
from dinoprobe.report import wording
from dinoprobe.report.input import Figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dinoprobe.report.input import ReportInput

MAX_CLASSES = 50
DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")
_TEXT_METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "precision": "Precision, macro",
    "recall": "Recall, macro",
    "f1": "F1, macro",
}


def render_card(summary: ReportInput, *, directory: str = "DIR", bundled: bool = False) -> str:
    """The model card as text.

    `directory` is where the commands say the classifier lies; `bundled` says that the weights of
    the encoder lie there too.
    """
    figures = Figures.from_evaluation(summary.evaluation)
    hub_id = _hub_id(summary.encoder)
    body = (
        _environment()
        .get_template("card.md.j2")
        .render(
            summary=summary,
            figures=figures,
            directory=directory,
            bundled=bundled,
            encoder=hub_id or str(summary.encoder.get("id") or "unnamed encoder"),
            is_dinov3=_is_dinov3(summary, hub_id),
            is_builtin=wording.is_builtin(summary.encoder),
            caveats=wording.caveats(summary, figures),
            metrics=_metric_rows(figures),
            split_totals={name: sum(counts.values()) for name, counts in summary.counts.items()},
            shown_classes=figures.classes[:MAX_CLASSES],
        )
    )
    front = yaml.safe_dump(
        _front_matter(summary, figures, hub_id), sort_keys=False, allow_unicode=True, width=100
    )
    return wording.clean(f"---\n{front}---\n\n{body}")


def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - Markdown, escaped by the filter `md`
        loader=PackageLoader("dinoprobe.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "interval": wording.interval,
        "integer": wording.integer,
        "text": wording.as_text,
        "md": markdown,
        "fence": _fence,
        "quoted": _python_string,
    }
    environment.globals["plural"] = wording.plural
    return environment


def markdown(text: object, limit: int = 300) -> str:
    """Text that Markdown and HTML leave as it is, in one line."""
    line = " ".join(wording.shorten(str(text), limit).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", line)


def _fence(text: str) -> str:
    """A fence of more backticks than any run of them in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _python_string(text: str) -> str:
    return repr(text) if not text.isidentifier() else f'"{text}"'


def _hub_id(encoder: Mapping[str, object]) -> str | None:
    if "hub_id" in encoder:
        return str(encoder["hub_id"]) if encoder["hub_id"] else None
    name = str(encoder.get("id") or "").partition("@")[0]
    name = HUB_IDS.get(name, name)
    return name if _HUB_ID.fullmatch(name) else None


def _is_dinov3(summary: ReportInput, hub_id: str | None) -> bool:
    if wording.is_builtin(summary.encoder):
        return False
    if hub_id:
        return is_dinov3_licensed(hub_id)
    return str(summary.encoder.get("model_type") or "").startswith("dinov3")


def _front_matter(summary: ReportInput, figures: Figures, hub_id: str | None) -> dict[str, Any]:
    front: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "library_name": "dinoprobe",
    }
    if hub_id:
        front["base_model"] = hub_id
    front |= _license(summary, hub_id)
    front["tags"] = ["image-classification", "linear-probe", "dinoprobe"]
    front["metrics"] = ["accuracy", "f1"]
    if figures.accuracy is not None:
        front["model-index"] = [_model_index(summary, figures)]
    return front


def _license(summary: ReportInput, hub_id: str | None) -> dict[str, str]:
    if _is_dinov3(summary, hub_id):
        return {
            "license": "other",
            "license_name": "dinov3-license",
            "license_link": DINOV3_LICENSE,
        }
    return {"license": "apache-2.0"} if wording.is_builtin(summary.encoder) else {}


def _model_index(summary: ReportInput, figures: Figures) -> dict[str, Any]:
    name = " ".join(wording.clean(summary.dataset).split())  # no line of its own, no "---"
    values = {key: getattr(figures, key) for key in _TEXT_METRICS}
    metrics = [
        {"type": key, "value": round(value, 6), "name": _TEXT_METRICS[key]}
        for key, value in values.items()
        if value is not None
    ]
    return {
        "name": f"{name} classifier",
        "results": [
            {
                "task": {"type": "image-classification"},
                "dataset": {"name": name, "type": "custom", "split": "test"},
                "metrics": metrics,
            }
        ],
    }


def _metric_rows(figures: Figures) -> list[tuple[str, str]]:
    rows = [
        (label, wording.percent(getattr(figures, key)))
        for key, label in _TEXT_METRICS.items()
        if key != "accuracy" and getattr(figures, key) is not None
    ]
    if figures.log_loss is not None:
        rows.append(("Log loss", wording.decimal(figures.log_loss)))
    if figures.calibration_error is not None:
        rows.append(("Expected calibration error", wording.percent(figures.calibration_error, 2)))
    return rows
