"""The narrow interface between the service and what classifies, and the saved classifier as one.

The service knows images as bytes and as whatever `preprocess` makes of them. torch is imported by
`ClassifierPredictor` alone, and only when it is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.prediction import Rules

    Sent: TypeAlias = bytes | npt.NDArray[np.uint8]  # a file, or (height, width, 3) in RGB

LANES_ON_DEVICE = 2  # one batch is copied while the other one computes
BATCH_ON_DEVICE = 32


class Outputs(NamedTuple):
    """Of n images: `probabilities` `(n, classes)`, NaN for one that fails, `features`
    `(n, dimension)` and scores of novelty `(n,)`, the last two None where there are none.
    """

    probabilities: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32] | None
    novelty: npt.NDArray[np.float64] | None


class Predictor(Protocol):
    """What classifies images for the service.

    `lanes` threads may call `predict` at once, each with up to `batch_size` images.
    """

    rules: Rules
    lanes: int
    batch_size: int

    def preprocess(self, image: Sent, *, max_pixels: int) -> Any:
        """The image as `predict` takes it. Raises ImageError, and nothing else."""

    def predict(self, images: Sequence[Any], *, alone: bool) -> Outputs:
        """The outputs for images that `preprocess` gave; `alone` says that no other thread is at
        work, so that this call may use every core.
        """

    def one_core(self) -> Callable[[], None]:
        """What a thread that shares the cores with others calls before its first work."""

    def info(self) -> dict[str, Any]:
        """What is served, as JSON values."""


@final
class ClassifierPredictor:
    """An `ImageClassifier` of a run, in PyTorch, OpenVINO or ONNX Runtime.

    A batch on a CPU is a core's own, as in the engine: its optimum is 4 images.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        from dinoprobe.engine import PatchTokens
        from dinoprobe.engine.pipeline import BATCH_SIZE_CPU, single_threaded
        from dinoprobe.heads import AttentiveProbe
        from dinoprobe.processor import usable_cores

        self.classifier = classifier
        self.rules = classifier.rules
        encoder = classifier.encoder
        self._has_features = not isinstance(classifier.head, AttentiveProbe)
        self._source: Any = encoder if self._has_features else PatchTokens(encoder)
        on_cpu = encoder.device.type == "cpu" and not encoder.is_spread
        self.batch_size = BATCH_SIZE_CPU if on_cpu else BATCH_ON_DEVICE
        self.lanes = usable_cores() if on_cpu else 1
        if encoder.device.type == "cuda" and not encoder.is_spread:
            self.lanes = LANES_ON_DEVICE
        self._one_core = single_threaded()

    def preprocess(self, image: Sent, *, max_pixels: int) -> Any:
        """`(3, height, width)`, as `prepare` gives it. Raises ImageError."""
        from dinoprobe.preprocess import prepare

        return prepare(image, self.classifier.encoder.preprocessing, max_pixels=max_pixels)

    def predict(self, images: Sequence[Any], *, alone: bool) -> Outputs:
        """Outputs for images of `preprocess`; how many cores it takes is the thread's matter.

        Probabilities are NaN where features are not finite. Raises EncoderError where memory does
        not suffice for one image.
        """
        del alone
        import numpy as np

        from dinoprobe.engine.memory import encode_within_memory

        X, _ = encode_within_memory(self._source, images, len(images))
        broken = ~np.isfinite(X).all(axis=1)
        X[broken] = 0  # a head refuses the whole batch
        probabilities = self.classifier.predict_features(X)
        probabilities[broken] = np.nan
        scores = self.classifier.novelty_scores(X)
        return Outputs(probabilities, X if self._has_features else None, scores)

    def one_core(self) -> Callable[[], None]:
        """Makes torch use one thread in the thread that calls it."""
        return self._one_core

    def info(self) -> dict[str, Any]:
        """Encoder, preprocessing and rules, as JSON values."""
        classifier, encoder = self.classifier, self.classifier.encoder
        return {
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "classes": list(classifier.classes),
            "dimension": encoder.dimension if self._has_features else None,
            "preprocessing": encoder.preprocessing.to_dict(),
            "backend": encoder.backend,
            "precision": encoder.precision,
            "device": str(encoder.device),
            "sets": classifier.sets and classifier.sets.to_dict(),
            "abstention": classifier.abstention and classifier.abstention.to_dict(),
            "novelty": classifier.novelty and classifier.novelty.to_dict(),
            "figures": classifier.figures,
        }
