"""Exports in float16 and int8, and ONNX weights beside the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.labelled_run import EACH, write_run

from dinoprobe.classifier import ImageClassifier
from dinoprobe.errors import ConfigurationError, FormatError, MismatchError
from dinoprobe.export import Runner, export, onnx_reduced, onnx_weights
from dinoprobe.heads import MultiLabelProbe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, "onnx", out=str(tmp_path_factory.mktemp("out") / "e")).path


@pytest.fixture(scope="module")
def whole_ir(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, "openvino", out=str(tmp_path_factory.mktemp("out") / "e")).path


def images() -> Any:
    return np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


def weight_types(path: Path) -> set[str]:
    """Of matrices in an ONNX file."""
    tensors = [t for t in onnx.load(path).graph.initializer if len(t.dims) == 2]
    return {onnx.TensorProto.DataType.Name(t.data_type) for t in tensors}


def test_float16_weights_halve_the_onnx_file(run: Path, whole: Path) -> None:
    done = export(run, "onnx", precision="fp16")
    assert done.path == run / "exports" / "onnx-fp16-001" / "model.onnx"
    assert done.path.stat().st_size < 0.6 * whole.stat().st_size
    assert weight_types(done.path) == {"FLOAT16"}
    assert done.report["precision"] == Runner(done.path).document["precision"] == "float16"
    assert done.report["accuracy"] is None
    assert {way["tolerance"] for way in done.report["ways"]} == {0.03}
    first, second = Runner(whole)(images()), Runner(done.path)(images())
    assert np.abs(first["probabilities"] - second["probabilities"]).max() < 0.01
    assert np.abs(first["features"] - second["features"]).max() > 0


def test_int8_onnx_is_judged_by_its_accuracy_on_the_test_part(run: Path, whole: Path) -> None:
    done = export(run, "onnx", precision="int8")
    assert done.path.stat().st_size < 0.5 * whole.stat().st_size
    assert weight_types(done.path) == {"INT8", "FLOAT16"}
    assert Runner(done.path).document["precision"] == "int8"
    assert set(Runner(done.path).outputs) == set(Runner(whole).outputs)
    report = json.loads((done.folder / "gate.json").read_text())
    accuracy = report["accuracy"]
    assert accuracy["n"] == report["images"] == 2 * EACH
    assert accuracy["judged_on"] == "the run's test part"
    assert accuracy["calibration_images"] == 0
    assert accuracy["classifier"] - accuracy["export"] <= accuracy["allowed_drop"] == 0.005
    assert [way["tolerance"] for way in report["ways"]] == [None] * 3
    assert min(way["accuracy"] for way in report["ways"]) == accuracy["export"]


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.6), ("int8", 0.45)])
def test_openvino_files_are_smaller(
    run: Path, whole_ir: Path, tmp_path: Path, precision: str, share: float
) -> None:
    done = export(run, "openvino", precision=precision, out=str(tmp_path / "e"))
    small, large = (path.with_suffix(".bin").stat().st_size for path in (done.path, whole_ir))
    assert small < share * large
    from dinoprobe.encoder.backends.openvino import core

    information = core().read_model(str(done.path)).get_rt_info(["dinoprobe"])
    assert json.loads(information.astype(str))["precision"] == done.report["precision"]
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"model.xml", "model.bin", "gate.json", "NOTICE.txt", "README.md"}
    if precision == "int8":
        assert done.report["accuracy"]["calibration_images"] == 2 * EACH // 3


def test_int8_that_is_less_accurate_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(path: Path) -> None:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name == "bias":
                bias = np.array([-90, 90], np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "bias"))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_reduced, "to_int8", worse)
    expected = r"int8 is less accurate: 50.00 % of 80 images .* has 100.00 % .*; 40 answers differ"
    with pytest.raises(MismatchError, match=expected):
        export(run, "onnx", precision="int8", out=str(tmp_path / "e"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_test_part_training_images_judge_that_calibrated_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, ("train",), each=60)
    report = export(run, "openvino", precision="int8").report
    assert report["accuracy"]["calibration_images"] == 40
    assert report["accuracy"]["n"] == 80
    assert "training part that int8 was not calibrated on" in report["images_are"]
    (run / "classifier").rename(tmp_path / "alone")
    with pytest.raises(ConfigurationError, match=r"has left its run, .*--precision fp16"):
        export(tmp_path / "alone", "onnx", precision="int8", out=str(tmp_path / "e"))


def test_int8_without_enough_images_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, each=12)
    expected = r"24 labelled test images and 24 training images can be read"
    for to in ("onnx", "openvino"):
        with pytest.raises(ConfigurationError, match=expected):
            export(run, to, precision="int8", out=str(tmp_path / "e"))


def test_int8_of_several_labels_is_refused(run: Path, tmp_path: Path) -> None:
    encoder = ImageClassifier.load(run / "classifier", device="cpu").encoder
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, encoder.dimension)).astype(np.float32)
    head = MultiLabelProbe(C=1.0).fit(X, rng.integers(0, 2, (60, 3)), classes=["a", "c", "b"])
    ImageClassifier(encoder, head).save(tmp_path / "c")
    with pytest.raises(ConfigurationError, match="one label an image"):
        export(tmp_path / "c", "onnx", precision="int8", out=str(tmp_path / "e"))


def test_a_precision_that_a_form_has_not_is_refused(run: Path, tmp_path: Path) -> None:
    for to, precision, names in (
        ("onnx", "bf16", "exact, fp16, int8"),
        ("transformers", "fp16", r"exact \(exact is float32\)"),
    ):
        with pytest.raises(ConfigurationError, match=rf"--precision {precision}: .*{names}"):
            export(run, to, precision=precision, out=str(tmp_path / "e"))


@pytest.mark.parametrize("precision", ["exact", "fp16", "int8"])
def test_weights_beyond_one_file_lie_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    inside = export(run, "onnx", precision=precision, out=str(tmp_path / "inside")).path
    monkeypatch.setattr(onnx_weights, "MAX_BYTES", 100_000)
    monkeypatch.setattr(onnx_reduced, "MAX_BYTES", 100_000)
    done = export(run, "onnx", precision=precision, out=str(tmp_path / "beside"))
    beside = done.folder / "model.onnx.data"
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "gate.json", "NOTICE.txt", "README.md"}
    assert done.path.stat().st_size < 250_000 < beside.stat().st_size
    assert beside.stat().st_mode == done.path.stat().st_mode
    assert done.report["size_bytes"] > beside.stat().st_size
    for name, value in Runner(inside)(images()).items():
        np.testing.assert_array_equal(Runner(done.path)(images())[name], value)
    beside.unlink()
    with pytest.raises(FormatError, match=r"model.onnx.data"):
        Runner(done.path)
