"""For hosted endpoints that call a class of this name in a repository's `handler.py`.

There, beside the files of a saved classifier (with `--bundle-encoder`, or an encoder that the
endpoint may fetch), one line is enough:

    from dinoprobe.server.handler import EndpointHandler
"""

from __future__ import annotations

from typing import Any, final

from dinoprobe.errors import ImageError
from dinoprobe.server.bodies import from_base64
from dinoprobe.server.predictor import ClassifierPredictor
from dinoprobe.server.problems import of_image


@final
class EndpointHandler:
    """Called with `{"inputs": IMAGE, "parameters": {"top_k": 5}}`; gives a list of labels with
    scores, as the pipelines of transformers do. IMAGE is bytes, base64, or an image of Pillow.
    """

    def __init__(self, path: str = "") -> None:
        from dinoprobe.classifier import ImageClassifier

        self._predictor = ClassifierPredictor(ImageClassifier.load(path or "."))

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """The most probable labels first. Raises ProblemError for what can not be used."""
        top_k = int(data.get("parameters", {}).get("top_k", 5))
        try:
            image = self._predictor.preprocess(_bytes(data.get("inputs")), max_pixels=50_000_000)
        except ImageError as error:
            raise of_image(error) from error
        outputs = self._predictor.predict([image], alone=True)
        found = self._predictor.rules.prediction("", outputs.probabilities[0], top_k)
        return [{"label": score.label, "score": score.probability} for score in found.top]


def _bytes(given: Any) -> bytes:
    """A file's bytes. Raises ProblemError."""
    if isinstance(given, bytes | bytearray):
        return bytes(given)
    if hasattr(given, "save"):  # of Pillow, which endpoints make of an image/* body
        import io

        file = io.BytesIO()
        given.convert("RGB").save(file, "PNG")
        return file.getvalue()
    return from_base64(given, 0)
