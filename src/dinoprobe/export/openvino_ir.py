"""OpenVINO's form: model.xml with its model.bin, from images of the encoder's size.

The resize stays outside: `prepare_plain` does it without torch. The document is in the run-time
information under `dinoprobe`.
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


def opened(path: Path) -> Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """What a file says of images `(n, 3, height, width)` of its size, in float32 on the CPU."""
    from dinoprobe.encoder.backends.openvino import core

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(str(path), "CPU", options)

    def run(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        found = compiled(images)
        return {name: found[out] for out in compiled.outputs for name in out.get_names()}

    return run
