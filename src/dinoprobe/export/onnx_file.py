"""One ONNX file from RGB pixels of any size to calibrated probabilities.

Resize, normalisation, encoder, head, temperature and the measure of novelty are inside. The graph
is float32 with a free batch size. `Runner` is all that a program needs of ONNX Runtime: it imports
neither torch nor transformers.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import ConfigurationError, FormatError, MissingExtraError
from dinoprobe.files import write_atomic

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
_MAX_BYTES = 1_900_000_000  # a file of this format ends at 2 GiB


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """The file in `folder`, with `document` in its metadata.

    Raises MissingExtraError without onnx, and ConfigurationError for a model that is too large.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise MissingExtraError("ONNX", "onnx")
    import onnx

    from dinoprobe.export.onnx_prepare import prepare_model

    whole = _joined(prepare_model(classifier.encoder.preprocessing), _traced(classifier))
    onnx.helper.set_model_props(whole, {KEY: json.dumps(document)})
    onnx.checker.check_model(whole, full_check=True)
    path = folder / FILE
    write_atomic(path, whole.SerializeToString())
    return path


def _traced(classifier: ImageClassifier) -> Any:
    """The model behind the resize."""
    import onnx

    from dinoprobe.encoder.backends.graphs import example
    from dinoprobe.encoder.backends.onnxruntime import trace
    from dinoprobe.export.network import Network
    from dinoprobe.export.onnx_prepare import IR_VERSION, OPSET

    network = Network(classifier).eval()
    size = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    if size > _MAX_BYTES:
        msg = (
            f"the model has {size / 1e9:.1f} GB in float32, and an ONNX file holds at most "
            f"{_MAX_BYTES / 1e9:.1f}. Export with --to head, or take a smaller encoder."
        )
        raise ConfigurationError(msg)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        images = example(classifier.encoder.preprocessing)
        trace(network, images, path, names=(_BETWEEN, *network.outputs), opset=OPSET)
        traced = onnx.load(path)
    traced.ir_version = IR_VERSION
    return traced


def _joined(first: Any, second: Any) -> Any:
    """`second` behind `first`, by the name between them; names of the first get a prefix."""
    import onnx

    first = onnx.compose.add_prefix(
        first, "prepare/", rename_inputs=False, rename_outputs=False, rename_edges=True
    )
    whole = onnx.compose.merge_models(
        first, second, io_map=[(_BETWEEN, _BETWEEN)], producer_name="dinoprobe"
    )
    del whole.opset_import[1:]  # it lists the one opset of both twice
    return whole


@final
class Runner:
    """An exported file on the CPU. Without `threads` ONNX Runtime takes all cores for one call.

    `document` is what the export says of itself: classes, preprocessing, thresholds. Raises
    FormatError for a file that no export wrote, MissingExtraError without ONNX Runtime.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("ONNX", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
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
