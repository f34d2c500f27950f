"""`dinoprobe bench serve`, and the handler for hosted endpoints, over the built-in encoder."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_vit
from typer.testing import CliRunner

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.encoder import Encoder
from dinoprobe.heads import LogisticProbe
from dinoprobe.server.handler import EndpointHandler
from dinoprobe.server.problems import ProblemError

ROOT = Path(__file__).parents[2]
DESCRIBED = {"schema"} | set(
    re.findall(r"`([a-z_0-9]+)`", (ROOT / "docs" / "json.md").read_text("utf-8"))
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    encoder = Encoder.from_pretrained(str(save_vit(root / "vit")), device="cpu")
    X = np.random.default_rng(0).normal(size=(40, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["cat", "dog"] * 20, dtype=object))
    ImageClassifier(encoder, head).save(root / "c")
    return root / "c"


def test_the_bench_measures_both_sides(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    arguments = ["--concurrency", "1,3", "--requests", "8", "--rounds", "1", "--json"]
    result = CliRunner().invoke(app, ["bench", "serve", str(saved), *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) | set(found["loads"][0]) <= DESCRIBED
    assert [load["concurrency"] for load in found["loads"]] == [1, 3]
    for load in found["loads"]:
        assert 0 < load["p50_s"] <= load["p95_s"] <= load["p99_s"]
        assert (load["refused"], load["images_per_second"] > 0) == (0, True)
    best = max(load["images_per_second"] for load in found["loads"])
    assert found["share_of_direct"] == pytest.approx(best / found["direct_images_per_second"])
    assert found["ratio_to_single"] == found["loads"][0]["p50_s"] / found["direct_single_s"]


@pytest.mark.parametrize("given", ["", "0", "a", "1,,2"])
def test_counts_that_are_none_are_refused(given: str) -> None:
    arguments = ["bench", "serve", "--encoder", "builtin", "--concurrency", given]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "expected whole numbers" in result.output) == (2, True)


def test_a_hosted_endpoint_answers_as_the_classifier(saved: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = file.getvalue()
    (expected,) = ImageClassifier.load(saved).predict([data], top_k=2)
    handler = EndpointHandler(str(saved))
    for given in (data, base64.b64encode(data).decode(), picture):
        found = handler({"inputs": given})
        assert [row["label"] for row in found] == [score.label for score in expected.top]
        scores = [row["score"] for row in found]
        assert scores == pytest.approx([s.probability for s in expected.top], abs=1e-5)
    assert len(handler({"inputs": data, "parameters": {"top_k": 1}})) == 1
    for wrong in (b"text", "http://127.0.0.1/a.png", None):
        with pytest.raises(ProblemError):
            handler({"inputs": wrong})
