"""An exported ONNX file behind the service: neither torch nor transformers nor scikit-learn.

One session over all cores serves calls from several threads and one that is alone: a second one of
one thread a call would hold the weights twice, for ONNX Runtime lays them out for its products in
each (ViT-S: a process of 257 MB in place of 375, for a tenth of the throughput of two cores). Its
threads do not spin where they wait: with spinning, two calls at once took a third longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from dinoprobe.decisions import Abstention, PredictionSets
from dinoprobe.errors import FormatError
from dinoprobe.prediction import Rules
from dinoprobe.preprocess import Preprocessing, decode, prepare_plain
from dinoprobe.processor import usable_cores
from dinoprobe.server.predictor import Outputs

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from dinoprobe.server.predictor import Sent

_BATCH = 4  # of a core, as in the engine


@final
class OnnxPredictor:
    """A file that `dinoprobe export --to onnx` wrote, on the CPU.

    Raises FormatError for another file, MissingExtraError without ONNX Runtime.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from dinoprobe.export import Runner

        self._run = Runner(path, is_shared=True)
        self._document = self._run.document
        # in int8 the images of a call share the ranges of their activations
        self.batch_size = 1 if self._document.get("precision") == "int8" else _BATCH
        self.lanes = usable_cores()
        try:
            self.rules = _rules(self._document)
            self._preprocessing = Preprocessing.from_dict(self._document["preprocessing"])
        except (KeyError, TypeError) as error:
            msg = f"{path}: its document lacks {error}. Export the classifier again."
            raise FormatError(msg) from error

    def preprocess(self, image: Sent, *, max_pixels: int) -> Any:
        """`(3, height, width)` uint8; in the exact mode of the image's own size, for the graph
        resizes. Raises ImageError.
        """
        if self._preprocessing.arithmetic == "uint8":
            return prepare_plain(image, self._preprocessing, max_pixels=max_pixels)
        prepare_plain(image, self._preprocessing, max_pixels=max_pixels)  # it refuses what is long
        decoded = decode(image, bands=self._preprocessing.bands, max_pixels=max_pixels)
        return np.ascontiguousarray(decoded.pixels.transpose(2, 0, 1))

    def predict(self, images: Sequence[Any], *, alone: bool) -> Outputs:
        """Outputs for images of `preprocess`: of one size in one call, else one by one."""
        del alone
        if len({image.shape for image in images}) == 1:
            found = self._run(np.stack(images))
        else:
            each = [self._run(image[None]) for image in images]
            found = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
        novelty = found.get("novelty")
        return Outputs(
            found["probabilities"].astype(np.float64),
            found.get("features"),
            None if novelty is None else novelty.astype(np.float64),
        )

    def one_core(self) -> Callable[[], None]:
        """Nothing: a session has its own number of threads."""
        return _nothing

    def info(self) -> dict[str, Any]:
        """What the export says of itself, and what runs it."""
        document = self._document
        return {
            "encoder": document["encoder"]["name"],
            "fingerprint": document["fingerprint"],
            "classes": document["classes"],
            "dimension": document["dimension"],
            "preprocessing": document["preprocessing"],
            "backend": "onnxruntime",
            "precision": document["precision"],
            "device": "cpu",
            "sets": document["sets"],
            "abstention": document["abstention"],
            "novelty": document["novelty"],
            "figures": {},
        }


def _rules(document: Mapping[str, Any]) -> Rules:
    """The thresholds of a document. Raises FormatError, KeyError and TypeError."""
    classes = tuple(document["classes"])
    sets, novelty, rule = document["sets"], document["novelty"], document["abstention"]
    has_novelty = novelty is not None
    return Rules(
        classes,
        sets=None if sets is None else PredictionSets.from_dict(sets, len(classes)),
        abstention=None if rule is None else Abstention.from_dict(rule, has_novelty=has_novelty),
        novelty_threshold=float(novelty["threshold"]) if has_novelty else None,
        label_thresholds=document["thresholds"],
    )


def _nothing() -> None:
    """There is nothing to set."""
