"""The model card of an export, as the hub and a stranger read it."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tests.checkpoints import save_vit

from dinoprobe.classifier import ImageClassifier
from dinoprobe.encoder import Encoder
from dinoprobe.export import export, loading, pictures
from dinoprobe.export.card import model_card
from dinoprobe.heads import LogisticProbe, MultiLabelProbe

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = {
    "accuracy": 0.925,
    "interval": [0.88, 0.953],
    "n_test": 214,
    "protocol": "logistic on cls; C on 5 folds; tested once.",
}
RENDERED = cache(pictures._rendered)


@pytest.fixture(autouse=True)
def _rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_rendered", RENDERED)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes on CLS, with figures."""
    folder = tmp_path_factory.mktemp("saved")
    encoder = Encoder.from_pretrained(str(save_vit(folder / "e")), device="cpu", pooling="cls")
    X = np.random.default_rng(0).normal(size=(60, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=0.1).fit(X, np.array(["cat", "dog_*", "猫"] * 20, dtype=object))
    ImageClassifier(encoder, head, figures=FIGURES).save(folder / "c")
    return folder / "c"


FORMS = ["transformers", "timm", "onnx", "openvino", "head"]


@pytest.mark.parametrize("to", FORMS)
def test_the_hub_reads_what_its_page_needs(saved: Path, to: str, tmp_path: Path) -> None:
    done = export(saved, to, out=str(tmp_path / "e"))
    text = (done.folder / "README.md").read_text(encoding="utf-8")
    card: Any = ModelCard(text)
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-classification"
    assert data["library_name"] == {"head": "dinoprobe"}.get(to, to)
    assert data["license_name"] == "dinov3-license"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.925)
    assert "Accuracy on the test part: **92.5" in text
    assert "(95 % interval 88.0 to 95.3" in text
    assert "n = 214 images" in text
    assert "logistic on cls; C on 5 folds; tested once." in text
    assert "- dog\\_\\*" in text
    for path in done.folder.iterdir():  # what is passed on says nothing of this machine
        assert str(saved.parent).encode() not in path.read_bytes(), path.name
    assert ("NOTICE.txt" in text) == (to != "head")
    for way in done.report["ways"]:
        assert f"| {way['way']} | {way['max_probability_difference']:.1g} |" in text


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_its_lines_answer_as_the_classifier_does(
    saved: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    done = export(saved, to, out=str(tmp_path / "e"))
    monkeypatch.chdir(done.folder)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (done.folder / "README.md").read_text(), re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    found = eval(capsys.readouterr().out)
    (answer,) = ImageClassifier.load(saved, device="cpu").predict("cat.jpg")
    for label, probability in answer.top:
        assert found[label] == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("several", [False, True])
def test_lines_for_a_repository_name_it(to: str, several: bool) -> None:
    document = {
        "multilabel": several,
        "encoder": {"model_type": "dinov3_vit", "name": "vits16"},
        "pooling": "cls",
        "dimension": 384,
    }
    here, there = (loading.lines(to, document, place) for place in (None, "ada/pets"))
    compile(there, to, "exec")
    said = there + loading.before(to, document, "ada/pets")
    assert "ada/pets" in said
    assert "PATH_OF_THIS_FOLDER" not in said
    if to == "timm":
        assert "hf-hub:ada/pets" in there
        assert "local-dir:PATH_OF_THIS_FOLDER" in here


def test_without_figures_it_claims_none(saved: Path, tmp_path: Path) -> None:
    classifier = ImageClassifier.load(saved, device="cpu")
    classifier.figures = {}
    classifier.save(tmp_path / "c")
    done = export(tmp_path / "c", "head", out=str(tmp_path / "e"))
    text = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in text
    assert "None were measured" in text


def test_many_classes_and_several_labels_an_image(saved: Path) -> None:
    encoder = ImageClassifier.load(saved, device="cpu").encoder
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 32)).astype(np.float32), rng.integers(0, 2, (80, 60))
    head = MultiLabelProbe(C=1.0).fit(X, y, classes=[f"label {i:02}" for i in range(60)])
    from dinoprobe.export.document import describe

    classifier = ImageClassifier(encoder, head)
    report = {
        "to": "timm", "images": 64, "images_are": "64 rendered", "top1_agreement": 1.0,
        "max_probability_difference": 1e-6, "ways": [],
    }  # fmt: skip
    text = model_card(classifier, describe(classifier), report)
    assert "# Image classifier of 60 classes" in text
    assert "finds which of 60 classes an image shows, none or several" in text
    assert "- label 49\n- and 10 more" in text
    assert "logits.sigmoid()" in text
