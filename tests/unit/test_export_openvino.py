"""OpenVINO's form of a classifier."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.checkpoints import save_vit

from dinoprobe.classifier import ImageClassifier
from dinoprobe.encoder import Encoder
from dinoprobe.encoder.backends.openvino import core
from dinoprobe.errors import MismatchError
from dinoprobe.export import export, openvino_ir
from dinoprobe.heads import LogisticProbe, fit_novelty, left_out_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LABELS = np.array(["cat", "dog", "猫"] * 20, dtype=object)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    encoder = Encoder.from_pretrained(str(save_vit(folder / "vit")), device="cpu")
    X = np.random.default_rng(0).normal(size=(60, encoder.dimension)).astype(np.float32)
    left_out = left_out_scores(X, LABELS, np.arange(60) % 5, "knn")
    classifier = ImageClassifier(
        encoder,
        LogisticProbe(C=0.1).fit(X, LABELS),
        novelty=fit_novelty(X, LABELS, left_out, method="knn"),
    )
    classifier.save(folder / "c")
    return folder / "c"


def test_it_answers_as_the_classifier(saved: Path, tmp_path: Path) -> None:
    done = export(saved, "openvino", out=str(tmp_path / "e"))
    assert done.path == tmp_path / "e" / "model.xml"
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"model.xml", "model.bin", "gate.json", "NOTICE.txt", "README.md"}
    assert {way["way"] for way in done.report["ways"]} == {
        "images resized by prepare",
        "images resized by prepare_plain",
    }
    model = core().read_model(str(done.path))
    document = json.loads(model.get_rt_info(["dinoprobe"]).astype(str))
    assert document["classes"] == ["cat", "dog", "猫"]
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = openvino_ir.opened(done.path)(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    expected = ImageClassifier.load(saved, device="cpu").predict(list(images), top_k=3)
    for row, score, prediction in zip(
        found["probabilities"], found["novelty"], expected, strict=True
    ):
        by_label = {s.label: s.probability for s in prediction.top}
        np.testing.assert_allclose(row, [by_label[name] for name in document["classes"]], atol=1e-4)
        assert score == pytest.approx(prediction.novelty, abs=1e-4)


def test_what_answers_otherwise_is_not_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = openvino_ir.opened

    def turned(path: Path) -> Any:
        run = true(path)

        def answer(images: Sequence[Any]) -> Any:
            return {name: value[:, ::-1] for name, value in run(images).items() if value.ndim == 2}

        return answer

    monkeypatch.setattr(openvino_ir, "opened", turned)
    with pytest.raises(MismatchError, match=r"the openvino export .* Nothing was written"):
        export(saved, "openvino", out=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists()
