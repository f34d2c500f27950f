"""The exported ONNX file: what is in it, that it agrees, that nothing is left where it fails."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tests.checkpoints import save_convnext, save_dinov2, save_vit
from typer.testing import CliRunner

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.encoder import Encoder
from dinoprobe.errors import ConfigurationError, FormatError, MismatchError
from dinoprobe.export import Runner, export, onnx_file
from dinoprobe.heads import (
    Abstention,
    KNNProbe,
    LogisticProbe,
    MultiLabelProbe,
    PredictionSets,
    fit_novelty,
    left_out_scores,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.heads import ProbeBase

LABELS = np.array(["cat", "dog", "猫"] * 20, dtype=object)


def rows(encoder: Encoder) -> np.ndarray:
    """Features of rendered noise: near those of real images, so that probabilities vary."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) // (1 + i % 3) for i in range(60)]
    from dinoprobe.datasets import open_dataset
    from dinoprobe.engine import encode

    found = encode(open_dataset(images).samples, encoder)
    return np.stack([item.row for item in found])  # type: ignore[union-attr]


def classifier_of(encoder: Encoder, head: ProbeBase | MultiLabelProbe | None = None) -> Any:
    X = rows(encoder)
    left_out = left_out_scores(X, LABELS, np.arange(60) % 5, "mahalanobis")
    return ImageClassifier(
        encoder,
        head or LogisticProbe(C=0.1).fit(X, LABELS),
        sets=PredictionSets("lac", 0.9, (0.6,), 60),
        novelty=fit_novelty(X, LABELS, left_out),
        abstention=Abstention("probability", 0.5, 0.9, 0.8, 0.95, 60),
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.from_pretrained(str(save_vit(tmp_path_factory.mktemp("vit"))), device="cpu")


@pytest.fixture(scope="module")
def saved(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "c"
    classifier_of(encoder).save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(saved, "onnx", out=str(tmp_path_factory.mktemp("out") / "e")).path


def test_one_file_answers_as_the_classifier(saved: Path, exported: Path) -> None:
    classifier = ImageClassifier.load(saved, device="cpu")
    runner = Runner(exported)
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    found = runner(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
    expected = {p.key: p for p in classifier.predict(list(batch), top_k=3)}
    for row, prediction in zip(found["probabilities"], expected.values(), strict=True):
        by_label = dict(zip(classifier.classes, row, strict=True))
        for score in prediction.top:
            assert by_label[score.label] == pytest.approx(score.probability, abs=1e-5)
    scores = [prediction.novelty for prediction in expected.values()]
    np.testing.assert_allclose(found["novelty"], scores, rtol=1e-3, atol=1e-3)
    assert found["features"].shape == (3, classifier.encoder.dimension)
    assert found["probabilities"].dtype == np.float32


def test_the_document_in_it_says_all_that_predict_uses(saved: Path, exported: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    document = Runner(exported).document
    assert document["classes"] == ["cat", "dog", "猫"]
    for key in ("preprocessing", "fingerprint", "sets", "abstention", "pooling"):
        assert document[key] == config[key], key
    assert document["novelty"].items() <= config["novelty"].items()
    assert document["encoder"]["weights_digest"] == config["encoder"]["weights_digest"]
    assert document["licence"]["name"] == "dinov3-license"
    assert not document["multilabel"]
    assert [entry.version for entry in onnx.load(exported).opset_import if not entry.domain] == [18]


def test_gate_and_notice_lie_beside_it(exported: Path) -> None:
    report = json.loads((exported.parent / "gate.json").read_text())
    assert report["images"] == 64
    assert report["images_are"] == "64 rendered"
    assert report["top1_agreement"] == 1
    assert {found["way"]: found["passes"] for found in report["ways"]} == {
        "images resized in the graph": True,
        "images resized by prepare": True,
        "images resized by prepare_plain": True,
    }
    assert (
        max(f["max_probability_difference"] for f in report["ways"])
        == (report["max_probability_difference"])
    )
    assert "DINOv3 License" in (exported.parent / "NOTICE.txt").read_text()


def test_a_runner_imports_neither_torch_nor_transformers(exported: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from dinoprobe.export import Runner\n"
        "from dinoprobe.preprocess import Preprocessing, prepare_plain\n"
        "runner = Runner(sys.argv[1])\n"
        "preprocessing = Preprocessing.from_dict(runner.document['preprocessing'])\n"
        "image = prepare_plain(np.zeros((50, 70, 3), np.uint8), preprocessing)\n"
        "print(runner(image[None])['probabilities'].shape)\n"
        "print({'torch', 'transformers', 'sklearn'} & sys.modules.keys())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(1, 3)", "set()"]


@pytest.mark.parametrize("save", [save_convnext, save_dinov2])
def test_other_architectures_agree(save: Callable[[Path], Path], tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save(tmp_path / "encoder")), device="cpu")
    classifier_of(encoder).save(tmp_path / "c")
    report = export(tmp_path / "c", "onnx", out=str(tmp_path / "e")).report
    assert report["top1_agreement"] == 1
    assert report["max_probability_difference"] < 0.02


def test_a_smaller_pooling_and_the_exact_mode_agree(encoder: Encoder, tmp_path: Path) -> None:
    exact = replace(encoder.preprocessing, arithmetic="exact")
    other = Encoder.from_pretrained(encoder.reference, device="cpu", preprocessing=exact)
    classifier_of(other.with_pooling("mean")).save(tmp_path / "c")
    report = export(tmp_path / "c", "onnx", out=str(tmp_path / "e")).report
    assert report["max_probability_difference"] < 1e-3
    assert [found["way"] for found in report["ways"]] == ["images resized in the graph"]


def test_several_labels_an_image(encoder: Encoder, tmp_path: Path) -> None:
    X, y = rows(encoder), np.random.default_rng(0).integers(0, 2, (60, 3))
    head = MultiLabelProbe(C=1.0).fit(X, y, classes=["a", "c", "b"])
    ImageClassifier(encoder, head).save(tmp_path / "c")
    runner = Runner(export(tmp_path / "c", "onnx", out=str(tmp_path / "e")).path)
    assert runner.document["multilabel"]
    assert runner.document["thresholds"] == head.thresholds_.tolist()
    assert runner.document["novelty"] is None
    assert "novelty" not in runner.outputs


def test_a_head_of_training_rows_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    head = KNNProbe(k=3).fit(rows(encoder), LABELS)
    ImageClassifier(encoder, head).save(tmp_path / "c")
    with pytest.raises(ConfigurationError, match=r"KNNProbe.*--head logistic.*serve RUN"):
        export(tmp_path / "c", "onnx", out=str(tmp_path / "e"))
    with pytest.raises(ConfigurationError, match="expected one of onnx"):
        export(tmp_path / "c", "coreml", out=str(tmp_path / "e"))


def test_what_answers_otherwise_is_not_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_network = onnx_file._traced

    def wrong(classifier: ImageClassifier) -> Any:
        classifier.head.intercept_ = classifier.head.intercept_ + np.float32([0.2, 0, 0])
        traced = true_network(classifier)
        classifier.head.intercept_ = classifier.head.intercept_ - np.float32([0.2, 0, 0])
        return traced

    monkeypatch.setattr(onnx_file, "_traced", wrong)
    with pytest.raises(MismatchError, match=r"probabilities differ by up to 0\.0.*on 64 images"):
        export(saved, "onnx", out=str(tmp_path / "e"))
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_named(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(FormatError, match=r"no.onnx: not a readable ONNX file"):
        Runner(tmp_path / "no.onnx")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(FormatError, match=r"lacks 'dinoprobe'"):
        Runner(tmp_path / "bare.onnx")


def test_exports_of_a_run_show_its_test_images(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    for i in range(70):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        (tmp_path / "photos" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "cat" / f"{i}.jpg").write_bytes(file.getvalue())
    run = tmp_path / "run"
    ImageClassifier.load(saved, device="cpu").save(run / "classifier")
    (run / "config.json").write_text(json.dumps({"data": {"source": str(tmp_path / "photos")}}))
    parts = ["test" if i < 66 else "train" for i in range(70)]
    lines = [f"cat/{i}.jpg,cat,{part},,h{i}" for i, part in enumerate(parts)]
    (run / "split.csv").write_text("\n".join(["key,label,split,group,content_hash", *lines]) + "\n")
    first, second = export(run, "onnx"), export(run, "onnx")
    assert first.report["images_are"] == "66 of the run's test part"
    assert first.path == run / "exports" / "onnx-001" / "model.onnx"
    assert second.path == run / "exports" / "onnx-002" / "model.onnx"
    (run / "classifier").rename(tmp_path / "alone")
    assert export(tmp_path / "alone", "onnx").path.parent.name == "alone-onnx-001"


def test_the_verb_says_path_and_figures(saved: Path, tmp_path: Path) -> None:
    arguments = ["export", str(saved), "--to", "onnx", "--out", str(tmp_path / "e"), "--json", "-q"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["path"] == str(tmp_path / "e" / "model.onnx")
    assert value["images"] == 64
    assert value["top1_agreement"] == 1
    described = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    for key in value.keys() | value["ways"][0].keys():
        assert f"`{key}`" in described or key == "schema", key
