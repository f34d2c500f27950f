"""The folder for transformers: loaded by its pipeline, with the classifier's answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_convnext, save_dinov2, save_vit, save_vit_of_google

from dinoprobe.classifier import ImageClassifier
from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import encode
from dinoprobe.errors import ConfigurationError, MismatchError
from dinoprobe.export import export, transformers_folder
from dinoprobe.heads import LogisticProbe, MultiLabelProbe
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LABELS = np.array(["cat", "dog", "猫"] * 20, dtype=object)


def rows(encoder: Encoder) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) // (1 + i % 3) for i in range(60)]
    found = encode(open_dataset(images).samples, encoder)
    return np.stack([item.row for item in found if not isinstance(item, Failure)])


def save(encoder: Encoder, folder: Path) -> Path:
    head = LogisticProbe(C=0.1).fit(rows(encoder), LABELS)
    ImageClassifier(encoder, head).save(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.from_pretrained(str(save_vit(tmp_path_factory.mktemp("vit"))), device="cpu")


@pytest.fixture(scope="module")
def exported(vit: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return export(save(vit, folder / "c"), "transformers", out=str(folder / "e")).path


def test_the_folder_is_whole(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "NOTICE.txt",
        "README.md",
        "config.json",
        "dinoprobe.json",
        "gate.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["DINOv3ViTForImageClassification"]
    assert config["model_type"] == "dinov3_vit"
    assert list(config["id2label"].values()) == ["cat", "dog", "猫"]
    assert (exported / "model.safetensors").stat().st_mode & 0o077
    report = json.loads((exported / "gate.json").read_text())
    differences = {f["way"]: f["max_probability_difference"] for f in report["ways"]}
    assert differences["images resized by prepare"] < 1e-5


@pytest.mark.parametrize(
    "first",
    [
        "import dinoprobe\nfrom transformers import pipeline\n",
        "from transformers import pipeline\nimport dinoprobe\n",
        "import transformers\nimport dinoprobe\nfrom transformers import pipeline\n",
        "import transformers.pipelines, dinoprobe\nfrom transformers import pipeline\n",
        "import dinoprobe\nimport transformers.modeling_utils\nfrom transformers import pipeline\n",
    ],
)
def test_a_pipeline_finds_it_after_the_import(exported: Path, first: str) -> None:
    code = first + (
        "import sys\n"
        "pipe = pipeline('image-classification', model=sys.argv[1])\n"
        "print(type(pipe.model).__module__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "dinoprobe.export.vit_classifier", done.stderr


def test_importing_dinoprobe_leaves_transformers_alone() -> None:
    code = (
        "import sys, dinoprobe\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_lines_of_the_card_work(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), (200, 10, 90)).save("cat.jpg")
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "license_name: dinov3-license" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code.replace("PATH_OF_THIS_FOLDER", str(exported)))
    assert "'label': " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        (save_convnext, "ConvNextForImageClassification"),
        (save_dinov2, "Dinov2ForImageClassification"),
        (save_vit_of_google, "ViTForImageClassification"),
    ],
)
def test_others_are_transformers_own_classes(
    checkpoint: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    pooling = "cls" if checkpoint is save_vit_of_google else "auto"
    source = str(checkpoint(tmp_path / "encoder"))
    encoder = Encoder.from_pretrained(source, device="cpu", pooling=pooling)
    done = export(save(encoder, tmp_path / "c"), "transformers", out=str(tmp_path / "e"))
    config = json.loads((done.path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [name]
    assert done.report["max_probability_difference"] < 0.02


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_half_of_the_layout_is_zero_for_a_smaller_pooling(
    vit: Encoder, pooling: str, tmp_path: Path
) -> None:
    done = export(
        save(vit.with_pooling(pooling), tmp_path / "c"), "transformers", out=str(tmp_path / "e")
    )
    from safetensors.numpy import load_file

    weight = load_file(done.path / "model.safetensors")["classifier.weight"]
    assert weight.shape == (3, 64)
    empty = weight[:, 32:] if pooling == "cls" else weight[:, :32]
    assert not empty.any()


def test_several_labels_an_image(vit: Encoder, tmp_path: Path) -> None:
    X, y = rows(vit), np.random.default_rng(0).integers(0, 2, (60, 3))
    head = MultiLabelProbe(C=1.0).fit(X, y, classes=["a", "c", "b"])
    ImageClassifier(vit, head).save(tmp_path / "c")
    done = export(tmp_path / "c", "transformers", out=str(tmp_path / "e"))
    config = json.loads((done.path / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_what_has_no_place_is_refused(vit: Encoder, tmp_path: Path) -> None:
    save(vit.with_pooling("blocks2"), tmp_path / "blocks")
    with pytest.raises(ConfigurationError, match=r"pooling 'blocks2' has no place"):
        export(tmp_path / "blocks", "transformers", out=str(tmp_path / "e"))
    padded = replace(vit.preprocessing, resize="pad")
    other = Encoder.from_pretrained(vit.reference, device="cpu", preprocessing=padded)
    save(other, tmp_path / "pad")
    with pytest.raises(ConfigurationError, match=r"resize 'pad' has no processor"):
        export(tmp_path / "pad", "transformers", out=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists()


def test_another_processor_does_not_pass(
    vit: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = transformers_folder._processor
    monkeypatch.setattr(
        transformers_folder, "_processor", lambda p: {**true(p), "image_mean": [0.1, 0.9, 0.5]}
    )
    with pytest.raises(MismatchError, match=r"with images resized by transformers' processor"):
        export(save(vit, tmp_path / "c"), "transformers", out=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists()
