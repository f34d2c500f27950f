"""Images to answers, within a deadline: what all interfaces of the service share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from dinoprobe.errors import ImageError
from dinoprobe.prediction import Prediction
from dinoprobe.server.batcher import Batcher
from dinoprobe.server.jobs import Row
from dinoprobe.server.metrics import Metrics
from dinoprobe.server.problems import ProblemError, of_image, overloaded
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dinoprobe.server.bodies import Upload
    from dinoprobe.server.predictor import Predictor
    from dinoprobe.server.settings import ServerSettings


@final
class Service:
    """`draining` says that no new work should be sent here."""

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.predictor, self.settings = predictor, settings
        self.metrics = Metrics()
        self.batcher = Batcher(
            predictor,
            self.metrics,
            max_pixels=settings.max_pixels,
            max_pending=settings.max_pending,
            decode_timeout_s=settings.decode_timeout_s,
            max_stuck=settings.max_stuck,
        )
        self.draining = False

    async def rows(self, uploads: Sequence[Upload]) -> list[Row | ImageError]:
        """The outputs of each image, or why it can not be used.

        Raises ProblemError where the service is full or late, and where there is no image but one,
        which can not be used.
        """
        deadline_s = time.monotonic() + self.settings.deadline_s
        jobs = self.batcher.admit([upload.data for upload in uploads], deadline_s)
        waiting = [asyncio.wrap_future(job.done) for job in jobs]
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                found = await asyncio.gather(*waiting, return_exceptions=True)
        except TimeoutError:
            took = f"no answer within {self.settings.deadline_s:g} s"
            message = f"{took}; expected one. Ask again, with fewer requests at a time."
            raise overloaded(message, "deadline") from None
        return [self._checked(result, alone=len(jobs) == 1) for result in found]

    def _checked(self, result: Row | BaseException, *, alone: bool) -> Row | ImageError:
        if isinstance(result, Row):
            return result
        if not isinstance(result, ImageError):
            raise result
        if alone:
            raise of_image(result)
        self.metrics.failures.labels(result.kind).inc()
        return result

    def predictions(
        self,
        uploads: Sequence[Upload],
        rows: Sequence[Row | ImageError],
        top_k: int,
        abstain_below: float | None,
    ) -> list[Prediction]:
        """One answer for each image, in their order."""
        found = []
        for upload, row in zip(uploads, rows, strict=True):
            if isinstance(row, ImageError):
                failure = Failure(upload.key, row.kind, str(row))
                found.append(Prediction(upload.key, None, None, failure=failure))
                continue
            prediction = replace(self._prediction(row, top_k, abstain_below), key=upload.key)
            self.metrics.answered(prediction)
            found.append(prediction)
        return found

    def _prediction(self, row: Row, top_k: int, abstain_below: float | None) -> Prediction:
        import numpy as np

        scores = None if row.novelty is None else np.array([row.novelty])
        (found,) = self.predictor.rules.predictions(
            row.probabilities[None], scores, top_k=top_k, abstain_below=abstain_below
        )
        return found

    def info(self) -> dict[str, Any]:
        """What is served, and the limits."""
        settings = self.settings
        limits = {
            "max_body_bytes": settings.max_body_bytes,
            "max_pixels": settings.max_pixels,
            "max_images": settings.max_images,
            "max_pending": self.batcher.max_pending,
            "max_connections": settings.max_connections,
            "deadline_s": settings.deadline_s,
            "decode_timeout_s": settings.decode_timeout_s,
            "body_timeout_s": settings.body_timeout_s,
        }
        return {"model": settings.model_name, **self.predictor.info(), "limits": limits}

    def check_ready(self) -> None:
        """Raise ProblemError where requests are not welcome."""
        if self.draining:
            raise overloaded("the service ends; expected one that runs. Ask another.", "ends")
        self.batcher.check_stuck()


def features_of(rows: Sequence[Row | ImageError]) -> list[list[float] | None]:
    """The features of each image as numbers, None after a failure.

    Raises ProblemError where what is served gives none.
    """
    found: list[list[float] | None] = []
    for row in rows:
        if isinstance(row, ImageError):
            found.append(None)
        elif row.features is None:
            message = "what is served gives no features; expected a saved classifier. Use /predict."
            raise ProblemError(404, "no-features", message)
        else:
            found.append(row.features.tolist())
    return found
