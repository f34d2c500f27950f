"""The model card: front matter that the hub reads, a body that names can not break."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from dinoprobe.report import Baseline, ReportInput, render_card
from dinoprobe.types import Failure

HUB_ID = "facebook/dinov3-vitb16-pretrain-lvd1689m"
HOSTILE = (
    "a: b # c",
    "---\nlicense: mit",
    "<script>alert(1)</script>",
    "| x | `y` |",
    "*x* [l](javascript:alert(1))",
    "\u202egnp.exe",
    "a\x00b\ud800",
    "yes",
)


def make_input(**changes: object) -> ReportInput:
    classes = changes.pop("classes", ("cat", "dog"))
    evaluation = {
        "n": 1200,
        "accuracy": 0.943333,
        "accuracy_interval": [0.92, 0.96],
        "balanced_accuracy": 0.94,
        "macro_precision": 0.95,
        "macro_recall": 0.94,
        "macro_f1": 0.945,
        "log_loss": 0.2,
        "expected_calibration_error": 0.01,
        "classes": list(classes),
    }
    full = ReportInput(
        dataset="pets",
        encoder={"id": HUB_ID, "commit": "c0ffee", "fingerprint": "f00d"},
        evaluation=evaluation,
        head={"name": "logistic probe"},
        run={"protocol": "dinov3-logreg", "seed": 0, "dataset_digest": "sha256:1"},
        counts={"train": {"cat": 4000}, "test": {"cat": 1200}},
    )
    return dataclasses.replace(full, **changes)


def front_matter(card: str) -> dict:
    opening, front, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front)


def body(card: str) -> str:
    return card.split("---\n", 2)[2].replace("\u00a0", " ")


def test_front_matter_of_a_dinov3_encoder():
    front = front_matter(render_card(make_input()))
    assert front["pipeline_tag"] == "image-classification"
    assert front["library_name"] == "dinoprobe"
    assert front["base_model"] == HUB_ID
    assert front["license"] == "other"
    assert front["license_name"] == "dinov3-license"
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert {"type": "accuracy", "value": 0.943333, "name": "Accuracy"} in metrics


def test_the_hub_library_reads_it():
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(render_card(make_input()))
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["accuracy"] == 0.943333


def test_a_short_name_is_written_as_its_hub_id():
    assert front_matter(render_card(make_input(encoder={"id": "vitb16"})))["base_model"] == HUB_ID


@pytest.mark.parametrize(
    ("encoder", "license_id", "base"),
    [
        ({"id": "builtin"}, "apache-2.0", None),
        ({"id": "/models/mine", "model_type": "dinov3_vit", "hub_id": None}, "other", None),
        ({"id": "/models/mine", "model_type": "dinov2"}, None, None),
        ({"id": "facebook/dinov2-base"}, None, "facebook/dinov2-base"),
        ({}, None, None),
    ],
)
def test_licence_and_base_model(encoder: dict, license_id: str | None, base: str | None):
    front = front_matter(render_card(make_input(encoder=encoder)))
    assert front.get("license") == license_id
    assert front.get("base_model") == base


def test_body_has_figures_use_and_licence():
    text = body(render_card(make_input(baseline=Baseline("pixels", 0.4)), directory="runs/a"))
    assert "**94.3 %** (95 % interval 92.0 to 96.0 %), n = 1,200" in text
    assert 'dp.ImageClassifier.load("runs/a")' in text.replace("'", '"')
    assert "dinoprobe predict runs/a image.jpg" in text
    assert "contains only the head" in text
    assert "licence binds the user of the encoder" in text
    assert "| train | 4,000 |" in text
    assert "pixels, on the same images: 40.0 %" in text


def test_the_flag_for_unlike_images_is_said_where_there_is_one():
    assert "A flag marks images" not in render_card(make_input())
    card = render_card(make_input(novelty="2 images are flagged."))
    assert "- Every image gets one of the classes above" in card
    assert "none of them. A flag marks images that are unlike all training images" in card
    assert "misses some.\n- Probabilities were" in card


def test_a_bundled_encoder_is_said():
    text = body(render_card(make_input(), bundled=True))
    assert "contains only the head" not in text
    assert "a copy of the encoder's weights" in text


def test_a_builtin_encoder_is_said():
    assert "For demos and tests only" in body(render_card(make_input(encoder={"id": "builtin"})))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_survive_yaml(name: str):
    front = front_matter(render_card(make_input(dataset=name, classes=(name, "b"))))
    assert front["license"] == "other"
    written = front["model-index"][0]["results"][0]["dataset"]["name"]
    expected = name.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert written == " ".join(expected.split())


def test_hostile_names_do_not_become_markup():
    card = render_card(
        make_input(
            dataset=HOSTILE[2],
            classes=HOSTILE,
            encoder={"id": "`x` <b>"},
            head={"name": HOSTILE[2]},
            run={"command": "dinoprobe train '```\n# boo'", "protocol": "| <b> |"},
            failures=[Failure("k", "x", "r")],
        )
    )
    text = body(card)
    assert "<script>" not in text
    assert "\\[l\\]" in text
    assert "\n````\n" in text
    card.encode("utf-8")


def test_many_classes_are_capped():
    text = body(render_card(make_input(classes=tuple(f"c{i}" for i in range(5000)))))
    assert "and 4,950 more" in text


def test_without_an_evaluation():
    card = render_card(ReportInput(dataset="d", encoder={"id": "vits16"}, evaluation={}))
    assert "model-index" not in front_matter(card)
    assert "Not evaluated" in card
