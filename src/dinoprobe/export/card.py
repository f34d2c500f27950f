"""README.md of a folder for transformers, with the lines that load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from dinoprobe.report import wording

if TYPE_CHECKING:
    from dinoprobe.classifier import ImageClassifier

_SHOWN_CLASSES = 50
_TEXT = """\
---
{front}---
# {title}

A linear head on frozen features of {encoder}, trained and exported with dinoprobe {version}. It
tells {count} classes: {classes}.

```python
{first}from transformers import pipeline

classify = pipeline("image-classification", model="PATH_OF_THIS_FOLDER")
print(classify("cat.jpg"))
```

{figures}The scores are those of the classifier that it was made from, calibrated where that was.
`dinoprobe.json` holds what prediction sets, novelty and abstention go by, `gate.json` how far the
answers of this folder are from that classifier's. {licence}
"""


def model_card(classifier: ImageClassifier, document: dict[str, Any]) -> str:
    """Markdown with a front matter that the hub reads."""
    licence, name = document["licence"], document["encoder"]["name"]
    is_dinov3 = licence["name"] == "dinov3-license"
    front: dict[str, Any] = {"pipeline_tag": "image-classification", "library_name": "transformers"}
    if is_dinov3:
        front |= {"license": "other", "license_name": licence["name"]}
        front["license_link"] = licence["link"]
    elif licence["name"]:
        front["license"] = licence["name"]
    front["tags"] = ["image-classification", "linear-probe", "dinoprobe"]
    needs_import = document["encoder"]["model_type"] == "dinov3_vit"
    return _TEXT.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title="Image classifier",
        encoder=wording.clean(name),
        version=document["dinoprobe_version"],
        count=len(classifier.classes),
        classes=_listed(classifier.classes),
        first="import dinoprobe  # it brings the class for this architecture\n" * needs_import,
        figures=_figures(classifier),
        licence="The weights are under the DINOv3 License: see NOTICE.txt." if is_dinov3 else "",
    )


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(" ".join(wording.clean(name).split()) for name in classes[:_SHOWN_CLASSES])
    return (
        f"{shown} and {len(classes) - _SHOWN_CLASSES} more"
        if len(classes) > _SHOWN_CLASSES
        else shown
    )


def _figures(classifier: ImageClassifier) -> str:
    accuracy = classifier.figures.get("accuracy")
    if not isinstance(accuracy, float):
        return ""
    return f"Accuracy on the test part: {wording.percent(accuracy)}. "
