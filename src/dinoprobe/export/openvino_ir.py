"""OpenVINO's form: model.xml with its model.bin, from images of the encoder's size.

The resize stays outside: `prepare_plain` does it without torch. The document is in the run-time
information under `dinoprobe`. Of float32 files smaller ones are made: weights in float16, or the
encoder in int8 by NNCF, with ranges from training images.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier

FILE = "model.xml"
KEY = "dinoprobe"
_FLOATING = (".*novelty.*", "aten::.*")
"""Names of operations behind the encoder: they stay in floating point."""


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """FILE and its .bin in `folder`, in float32. Raises MissingExtraError without OpenVINO."""
    if find_spec("openvino") is None:
        raise MissingExtraError("OpenVINO", "cpu")
    from dinoprobe.encoder.backends.graphs import example
    from dinoprobe.encoder.backends.openvino import convert, load
    from dinoprobe.export.network import Network

    network = Network(classifier).eval()
    model = convert(network, example(classifier.encoder.preprocessing))
    for name, output in zip(network.outputs, model.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"images"})
    model.set_rt_info(json.dumps(document), [KEY])
    path = folder / FILE
    load().save_model(model, path, compress_to_fp16=False)
    return path


def to_float16(path: Path) -> None:
    """Rewrite the files with weights in float16; sums are OpenVINO's choice, as before."""
    from dinoprobe.encoder.backends.openvino import core

    _replace(path, core().read_model(str(path)))


def to_int8(path: Path, images: npt.NDArray[Any], *, is_convnext: bool) -> None:
    """Rewrite the files with the encoder in int8, its ranges from `images`
    `(n, 3, height, width)`. Raises MissingExtraError without NNCF.
    """
    from dinoprobe.encoder.backends.int8 import quantized, require_nncf
    from dinoprobe.encoder.backends.openvino import core

    require_nncf()
    model = core().read_model(str(path))
    made = quantized(model, images, is_convnext=is_convnext, left=_FLOATING)
    if not made.has_rt_info([KEY]):
        made.set_rt_info(model.get_rt_info([KEY]).value, [KEY])
    _replace(path, made)


def _replace(path: Path, model: Any) -> None:
    """Written beside first: weights of a model that was read may still be mapped from its file."""
    from dinoprobe.encoder.backends.openvino import load

    made = path.with_name(f"new-{path.name}")
    load().save_model(model, made, compress_to_fp16=True)
    for suffix in (".bin", ".xml"):
        made.with_suffix(suffix).replace(path.with_suffix(suffix))


def opened(path: Path) -> Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """What a file says of images `(n, 3, height, width)` of its size, in float32 on the CPU."""
    from dinoprobe.encoder.backends.openvino import core

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(str(path), "CPU", options)

    def run(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        found = compiled(images)
        return {name: found[out] for out in compiled.outputs for name in out.get_names()}

    return run
