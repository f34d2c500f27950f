"""One admitted image on its way through the service, and what comes of it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dinoprobe.server.predictor import Sent


class Row(NamedTuple):
    """The outputs of one image."""

    probabilities: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32] | None
    novelty: float | None


@final
class Job:
    """One admitted image. `done` gets its `Row`, an ImageError or a ProblemError, once."""

    __slots__ = ("data", "deadline_s", "done", "image", "ready_s")

    def __init__(self, data: Sent, deadline_s: float) -> None:
        self.data: Sent | None = data
        self.image: Any = None
        self.deadline_s = deadline_s
        self.ready_s = 0.0
        self.done: Future[Row] = Future()
