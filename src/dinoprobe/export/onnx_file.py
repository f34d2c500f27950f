"""One ONNX file from RGB pixels of any size to calibrated probabilities.

Resize, normalisation, encoder, head, temperature and the measure of novelty are inside. The graph
is float32 with a free batch size; `onnx_reduced` makes smaller ones of it. `Runner` is all that a
program needs of ONNX Runtime: it imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import FormatError, MissingExtraError

if TYPE_CHECKING:
    import os

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier

FILE = "model.onnx"
KEY = "dinoprobe"
"""Of the one entry in the file's metadata: a JSON document."""
INPUT = "images"
_BETWEEN = "prepared"


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """The file in `folder`, with `document` in its metadata; weights beyond what one file holds
    lie beside it.

    Raises MissingExtraError without onnx.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise MissingExtraError("ONNX", "onnx")
    import onnx

    from dinoprobe.export.onnx_prepare import prepare_model
    from dinoprobe.export.onnx_weights import save

    traced = _traced(classifier)
    whole = _joined(prepare_model(classifier.encoder.preprocessing), traced)
    onnx.helper.set_model_props(whole, {KEY: json.dumps(document)})
    path = folder / FILE
    save(whole, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def _traced(classifier: ImageClassifier) -> Any:
    """The model behind the resize."""
    import onnx

    from dinoprobe.encoder.backends.graphs import example
    from dinoprobe.encoder.backends.onnxruntime import trace
    from dinoprobe.export.network import Network
    from dinoprobe.export.onnx_prepare import IR_VERSION, OPSET

    network = Network(classifier).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        images = example(classifier.encoder.preprocessing)
        trace(network, images, path, names=(_BETWEEN, *network.outputs), opset=OPSET)
        traced = onnx.load(path)
    traced.ir_version = IR_VERSION
    return traced


def _joined(first: Any, second: Any) -> Any:
    """`second`, with `first` before it, by the name between them; names of the first get a prefix.

    onnx.compose.merge_models would copy all weights, and ends at 2 GiB.
    """
    import onnx

    first = onnx.compose.add_prefix(
        first, "prepare/", rename_inputs=False, rename_outputs=False, rename_edges=True
    )
    nodes = [*first.graph.node, *second.graph.node]
    del second.graph.node[:], second.graph.input[:]
    second.graph.node.extend(nodes)
    second.graph.input.extend(first.graph.input)
    second.producer_name = "dinoprobe"
    return second


@final
class Runner:
    """An exported file on all cores of the CPU.

    With `is_shared` its threads sleep where they wait, and do not spin: for calls from several
    threads at once.

    `document` is what the export says of itself: classes, preprocessing, thresholds. Raises
    FormatError for a file that no export wrote, MissingExtraError without ONNX Runtime.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_shared: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("ONNX", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if is_shared:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors derive from Exception, and from nothing closer
            first = str(error).strip().split("\n")[0]
            msg = f"{path}: not a readable ONNX file ({first}). Export the classifier again."
            raise FormatError(msg) from error
        found = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if found is None:
            msg = f"{path}: its metadata lacks '{KEY}'. Expected what `dinoprobe export` wrote."
            raise FormatError(msg)
        self.document: dict[str, Any] = json.loads(found)
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """`probabilities` `(n, k)`, `features` `(n, d)` and perhaps `novelty` `(n,)` of RGB images
        `(n, 3, any height, any width)` uint8; from several threads.
        """
        return dict(zip(self.outputs, self._session.run(None, {INPUT: images}), strict=True))
