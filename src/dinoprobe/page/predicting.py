"""A picture that is dropped on the page: classes, the nearest training images, and whether it is
unlike all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from dinoprobe.heads.nearest import nearest
from dinoprobe.heads.neighbors import normalized
from dinoprobe.prediction import Rules
from dinoprobe.server.predictor import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dinoprobe.encoder import Encoder
    from dinoprobe.page.workspace import Standing, Workspace
    from dinoprobe.server.predictor import Sent

TOP_K = 5
NEIGHBOURS = 6


@final
class EncoderPredictor:
    """Features alone, as the service asks for them: the page's head changes with each refit."""

    def __init__(self, encoder: Encoder) -> None:
        from dinoprobe.engine.pipeline import single_threaded

        self.rules = Rules(("",))
        self.lanes, self.batch_size = 1, 4
        self._encoder = encoder
        self._one_core = single_threaded()

    def preprocess(self, image: Sent, *, max_pixels: int) -> Any:
        """`(3, height, width)`, as `prepare` gives it. Raises ImageError."""
        from dinoprobe.preprocess import prepare

        return prepare(image, self._encoder.preprocessing, max_pixels=max_pixels)

    def predict(self, images: Sequence[Any], *, alone: bool) -> Outputs:
        """Features; NaN as the probability of an image whose features are not finite."""
        del alone
        from dinoprobe.engine.memory import encode_within_memory

        X, _ = encode_within_memory(self._encoder, images, len(images))
        sound = np.isfinite(X).all(axis=1)
        return Outputs(np.where(sound, 1.0, np.nan)[:, None], X, None)

    def one_core(self) -> Callable[[], None]:
        """Makes torch use one thread in the thread that calls it."""
        return self._one_core

    def info(self) -> dict[str, Any]:
        """The encoder's name and fingerprint."""
        return {"encoder": self._encoder.name, "fingerprint": self._encoder.fingerprint}


def answer(
    work: Workspace, features: npt.NDArray[np.float32], standing: Standing
) -> dict[str, Any]:
    """What the model says of features `(d,)`, and the labelled images nearest to them.

    `novel` is None where the run has no measure for it.
    """
    X = features[None]
    top: list[dict[str, Any]] = []
    if work.model is not None:
        probabilities = work.model.head.predict_proba(X)[0]
        order = (-probabilities).argsort(kind="stable")[:TOP_K]
        names = work.model.classes
        top = [{"label": names[i], "probability": float(probabilities[i])} for i in order]
    score = None if work.novelty is None else float(work.novelty.scores(X)[0])
    return {
        "top": top,
        "novelty": score,
        "novel": None if work.novelty is None or score is None else score > work.novelty.threshold,
        "threshold": None if work.novelty is None else work.novelty.threshold,
        "neighbours": _neighbours(work, X, standing),
    }


def _neighbours(
    work: Workspace, X: npt.NDArray[np.float32], standing: Standing
) -> list[dict[str, Any]]:
    """Training images by cosine, the nearest first; of images without labels where none has one."""
    rows = work.training_rows(standing)
    if not len(rows):
        rows = np.flatnonzero(~standing.dropped & ~work.is_test())
    if not len(rows):
        return []
    k = min(NEIGHBOURS, len(rows))
    found = nearest(normalized(X), normalized(work.features.X[rows]), k)
    return [
        {
            "key": work.features.keys[rows[place]],
            "label": standing.labels[rows[place]],
            "similarity": float(similarity),
        }
        for similarity, place in zip(found.similarity[0], found.rows[0], strict=True)
    ]
