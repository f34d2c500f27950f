"""README.md of an export: a model card as the Hugging Face hub reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from dinoprobe.catalog import BUILTIN_NAMES
from dinoprobe.export import loading
from dinoprobe.report import wording
from dinoprobe.report.card import MAX_CLASSES, markdown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dinoprobe.classifier import ImageClassifier

_TITLE_CLASSES = 5
_LIBRARY = {"head": "dinoprobe"}  # others are named as their form
_TEXT = """\
---
{front}---

# {title}

A linear head on frozen features of {encoder}, trained and exported with dinoprobe {version}. It
{tells}.

## Use

{before}

```python
{lines}
```

{scores}

## Figures

{figures}

## Against the classifier that it was made from

{gate}

{ways}

`gate.json` holds these figures{about}.

## Classes

{classes}

## Licence

{licence}
"""
_DINOV3 = """\
The weights are Meta's DINOv3 with a classifier, under the [DINOv3 License]({link}): whoever passes
them on, or what was derived from them, does so under that agreement and encloses a copy; uses that
it excludes stay excluded, and published research that used them must say so. See NOTICE.txt."""
_HEAD_OF_DINOV3 = """\
There are no weights of Meta's in here. The features come from DINOv3, and the
[DINOv3 License]({link}) binds whoever computes them."""


def model_card(
    classifier: ImageClassifier,
    document: dict[str, Any],
    report: dict[str, Any],
    repository: str | None = None,
) -> str:
    """Markdown with a front matter.

    `report` is what gate.json holds, `repository` the id on the hub that it is made for.
    """
    to: str = report["to"]
    count = len(classifier.classes)
    several = document["multilabel"]
    what = "finds which of" if several else "tells"
    text = _TEXT.format(
        front=yaml.safe_dump(
            _front_matter(classifier, document, to), sort_keys=False, allow_unicode=True, width=100
        ),
        title=_title(classifier.classes),
        encoder=_encoder(document["encoder"]["name"]),
        version=document["dinoprobe_version"],
        tells=f"{what} {count} classes" + (" an image shows, none or several" if several else ""),
        before=loading.before(to, document, repository),
        lines=loading.lines(to, document, repository),
        scores=_scores(document),
        figures=_figures(classifier.figures),
        gate=_gate(report),
        ways=_ways(report["ways"]),
        about=_about(to),
        classes=_classes(classifier.classes),
        licence=_licence(document["licence"], to),
    )
    return wording.clean(text)


def _encoder(name: str) -> str:
    if name in BUILTIN_NAMES:
        return "dinoprobe's small built-in encoder, which is for demos and tests only"
    return f"`{name.replace('`', chr(39))}`"


def _front_matter(classifier: ImageClassifier, document: dict[str, Any], to: str) -> dict[str, Any]:
    licence = document["licence"]
    front: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "library_name": _LIBRARY.get(to, to),
    }
    if base := _base_model(classifier):
        front["base_model"] = base
    if licence["name"] == "dinov3-license":
        front |= {"license": "other", "license_name": licence["name"]}
        front["license_link"] = licence["link"]
    elif licence["name"]:
        front["license"] = licence["name"]
    front["tags"] = ["image-classification", "linear-probe", "dinoprobe"]
    if (accuracy := _accuracy(classifier.figures)) is not None:
        front["metrics"] = ["accuracy"]
        front["model-index"] = [_model_index(classifier.classes, accuracy)]
    return front


def _base_model(classifier: ImageClassifier) -> str | None:
    """The hub id of the encoder; None where it is not from there."""
    reference = classifier.encoder.reference
    if reference.checkpoint is not None:
        return reference.checkpoint.hub_id
    return reference.name if reference.commit else None


def _accuracy(figures: Mapping[str, Any]) -> float | None:
    found = figures.get("accuracy")
    return found if isinstance(found, float) else None


def _model_index(classes: Sequence[str], accuracy: float) -> dict[str, Any]:
    metric = {"type": "accuracy", "value": round(accuracy, 6), "name": "Accuracy"}
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "the test part of its own images", "type": "custom", "split": "test"},
        "metrics": [metric],
    }
    return {"name": _title(classes), "results": [result]}


def _title(classes: Sequence[str]) -> str:
    if len(classes) > _TITLE_CLASSES:
        return f"Image classifier of {wording.integer(len(classes))} classes"
    return "Image classifier: " + ", ".join(markdown(name, 40) for name in classes)


def _scores(document: dict[str, Any]) -> str:
    kind = "Probabilities are one by one" if document["multilabel"] else "Probabilities sum to 1"
    return f"{kind}; the temperature of the calibration, where there is one, is in the weights."


def _figures(figures: Mapping[str, Any]) -> str:
    """Accuracy with its interval, and how it came about."""
    accuracy = _accuracy(figures)
    if accuracy is None:
        return "None were measured, or none are known to the classifier."
    text = f"Accuracy on the test part: **{wording.percent(accuracy)}**"
    bounds, count = figures.get("interval"), figures.get("n_test")
    if isinstance(bounds, list) and len(bounds) == 2:
        text += f" (95 % interval {wording.interval((bounds[0], bounds[1]))})"
    text += f", n = {wording.integer(count)} images." if isinstance(count, int) else "."
    protocol = figures.get("protocol")
    how = f"\n\nHow it was measured: {markdown(protocol, 600)}" if protocol else ""
    return f"{text} Images that differ from those may be answered worse.{how}"


def _gate(report: dict[str, Any]) -> str:
    images = f"{wording.integer(report['images'])} images ({report['images_are']})"
    share = wording.percent(report["top1_agreement"])
    return (
        f"{images} were given to both. The best label agrees on {share} of them, and no "
        f"probability differs by more than {report['max_probability_difference']:.1g}:"
    )


def _ways(ways: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {way['way']} | {way['max_probability_difference']:.1g} | {_allowed(way)} | "
        f"{wording.percent(way['top1_agreement'])} |"
        for way in ways
    ]
    head = "| given as | largest difference | allowed | same best label |\n|---|---:|---:|---:|"
    return "\n".join([head, *rows])


def _allowed(way: Mapping[str, Any]) -> str:
    """int8 is judged by its accuracy, whatever the difference."""
    if way["tolerance"] is not None:
        return f"{way['tolerance']:g}"
    return f"any, for accuracy decides: {wording.percent(way['accuracy'])}"


def _about(to: str) -> str:
    name = {"transformers": "dinoprobe.json", "timm": "dinoprobe.json", "head": "head.json"}.get(to)
    where = f"`{name}`" if name else "the model's metadata"
    return f", and {where} what prediction sets, novelty and abstention go by"


def _classes(classes: Sequence[str]) -> str:
    shown = [f"- {markdown(name, 160)}" for name in classes[:MAX_CLASSES]]
    more = len(classes) - len(shown)
    return "\n".join([*shown, f"- and {wording.integer(more)} more"] if more else shown)


def _licence(licence: Mapping[str, str | None], to: str) -> str:
    name, link = licence["name"], licence["link"]
    if name == "dinov3-license":
        return (_HEAD_OF_DINOV3 if to == "head" else _DINOV3).format(link=link)
    if name is None:
        return "That of the encoder's weights, which dinoprobe does not know: ask their publisher."
    return f"The encoder's weights: {name}."
