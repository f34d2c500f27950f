"""An exported file is served without torch, and answers as the classifier does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.checkpoints import save_vit
from tests.labelled_run import png as coloured
from tests.labelled_run import write_run
from tests.served import Process, png
from typer.testing import CliRunner

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import encode
from dinoprobe.export import export
from dinoprobe.heads import (
    Abstention,
    LogisticProbe,
    PredictionSets,
    fit_novelty,
    left_out_scores,
)
from dinoprobe.preprocess import Preprocessing
from dinoprobe.server.exported import OnnxPredictor
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "lance", "pyarrow", "onnx")
# The command line in a process where none of them can be imported.
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
from dinoprobe.cli import main
main()
"""
TOLERANCE = 0.02  # Pillow's resize is within one grey level of torch's


def saved(folder: Path, *, arithmetic: str = "uint8") -> ImageClassifier:
    """A classifier with sets, a rule and a measure of novelty, of noise."""
    name = str(save_vit(folder / "vit"))
    preprocessing = Preprocessing(size=(32, 32), arithmetic=arithmetic)  # type: ignore[arg-type]
    encoder = Encoder.from_pretrained(name, device="cpu", preprocessing=preprocessing)
    rows = encode(open_dataset([png(seed) for seed in range(100, 140)]).samples, encoder)
    X = np.stack([row.row for row in rows if not isinstance(row, Failure)])
    y = np.array(["cat", "dog"] * 20, dtype=object)
    scores = left_out_scores(X, y, np.arange(40) % 4, "mahalanobis")
    classifier = ImageClassifier(
        encoder,
        LogisticProbe(C=1.0).fit(X, y),
        sets=PredictionSets("lac", 0.9, (0.55,), 40),
        novelty=fit_novelty(X, y, scores, method="mahalanobis", share=0.2),
        abstention=Abstention("energy", 0.75, 0.9, 0.5, 0.95, 40),
    )
    classifier.save(folder / "c")
    return ImageClassifier.load(folder / "c", device="cpu")


@pytest.mark.parametrize("arithmetic", ["uint8", "exact"])
def test_it_answers_as_the_classifier_without_torch(tmp_path: Path, arithmetic: str) -> None:
    classifier = saved(tmp_path, arithmetic=arithmetic)
    path = export(tmp_path / "c", "onnx", out=str(tmp_path / "onnx")).path
    images = [png(seed) for seed in range(12)]
    expected = classifier.predict(images)
    served = path.parent if arithmetic == "uint8" else path  # a folder is its file
    server = Process("-c", WITHOUT, "serve", str(served), "--port", "0", "--json")
    try:
        found = [json.loads(server.post(image).content)["predictions"][0] for image in images]
        embedded = json.loads(server.post(images[0], "/embed").content)["embeddings"][0]
        several = server.request(
            "POST", "/predict", b"", {"content-type": "image/png", "content-length": "0"}
        )
        server.end()
    finally:
        server.close()
    assert several.status == 422
    _agree([row["probability"] for row in found], [p.probability for p in expected])
    assert [row["top"][0]["label"] for row in found] == [p.top[0].label for p in expected]
    for row, prediction in zip(found, expected, strict=True):
        assert row["novelty"] == pytest.approx(prediction.novelty, rel=0.05, abs=0.5)
    assert {row["abstained"] for row in found} == {p.abstained for p in expected}
    assert {len(row["labels"]) for row in found} == {len(p.labels or ()) for p in expected}
    assert len(embedded["features"]) == classifier.encoder.dimension


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_are_served_without_torch(tmp_path: Path, precision: str) -> None:
    run = write_run(tmp_path)
    path = export(run, "onnx", precision=precision, out=str(tmp_path / "onnx")).path
    images = [coloured(red, 5000 + red) for red in (0, 10, 140, 150)]
    expected = ImageClassifier.load(run / "classifier", device="cpu").predict(images)
    server = Process("-c", WITHOUT, "serve", str(path), "--port", "0", "--json")
    try:
        found = [json.loads(server.post(image).content)["predictions"][0] for image in images]
        about = json.loads(server.request("GET", "/info").content)
        server.end()
    finally:
        server.close()
    assert [row["top"][0]["label"] for row in found] == [p.top[0].label for p in expected]
    _agree([row["probability"] for row in found], [p.probability for p in expected])
    assert about["precision"] == {"fp16": "float16", "int8": "int8"}[precision]


def test_int8_answers_do_not_depend_on_what_comes_with_an_image(tmp_path: Path) -> None:
    path = export(write_run(tmp_path), "onnx", precision="int8", out=str(tmp_path / "onnx")).path
    assert OnnxPredictor(path).batch_size == 1


def _agree(found: Sequence[float], expected: Sequence[float | None]) -> None:
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_images_of_several_sizes_are_one_batch_where_the_graph_resizes(tmp_path: Path) -> None:
    classifier = saved(tmp_path, arithmetic="exact")
    predictor = OnnxPredictor(export(tmp_path / "c", "onnx", out=str(tmp_path / "o")).path)
    contents = [png(1), png(2, size=(50, 33)), png(3)]
    images = [predictor.preprocess(content, max_pixels=10_000) for content in contents]
    found = predictor.predict(images, alone=False).probabilities
    expected = [p.top for p in classifier.predict(contents, top_k=2)]
    for row, top in zip(found, expected, strict=True):
        values = dict(zip(predictor.rules.classes, row, strict=True))
        assert values == pytest.approx({s.label: s.probability for s in top}, abs=TOLERANCE)


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "a.onnx")])
    assert (result.exit_code, "not a readable ONNX file" in result.output) == (2, True)
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "a.onnx"), "--device", "cuda"])
    assert (result.exit_code, "Leave out" in result.output) == (2, True)
