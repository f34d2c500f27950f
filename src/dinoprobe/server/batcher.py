"""Images of many requests in one bounded line, encoded in batches off the event loop.

A batch is what has come while the lanes were busy: nothing waits for others to arrive. An image
that has the service to itself is encoded over all cores, which halves its time on two; beside
others each lane has a core of its own, as in the engine. The line is bounded by the number of
admitted images, so waiting is bounded too: with three batches for each lane, all in all, an image
waits for two others at most.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from concurrent.futures import Future
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, final

import numpy as np

from dinoprobe.errors import ImageError
from dinoprobe.server.decoders import Decoders, Work
from dinoprobe.server.jobs import Job, Row
from dinoprobe.server.memory import give_back
from dinoprobe.server.problems import ProblemError, overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dinoprobe.server.metrics import Metrics
    from dinoprobe.server.predictor import Outputs, Predictor, Sent

log = logging.getLogger("dinoprobe.server")
_BATCHES_PENDING = 3
_JOIN_S = 5.0
_REST_S = 2.0  # without an image, until freed memory is given back
# A GIF of one pixel.
_BLANK = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


@final
class Batcher:
    """Decodes in as many threads as there are lanes, and encodes in the lanes.

    `max_pending` bounds the admitted images, 0 for three full batches of each lane. A request with
    more images than that is admitted where nothing else is.
    """

    def __init__(
        self,
        predictor: Predictor,
        metrics: Metrics,
        *,
        max_pixels: int,
        max_pending: int = 0,
        decode_timeout_s: float = 5.0,
        max_stuck: int = 4,
    ) -> None:
        self._predictor, self._metrics, self._max_pixels = predictor, metrics, max_pixels
        full = predictor.lanes * predictor.batch_size
        self.max_pending = max_pending or _BATCHES_PENDING * full
        self._undecoded: deque[Job] = deque()
        self._ready: deque[Job] = deque()
        self._change = Condition()
        self._pending = self._busy = 0
        self._alone = self._closed = self._kept_memory = False
        self._seconds_an_image = 0.0
        self._threads: list[Thread] = []
        start = predictor.one_core()
        shared = predictor.lanes if predictor.lanes > 1 else 0
        for begin in [start] * shared + [None]:
            self._begin_lane(begin)
        self._decode_timeout_s = decode_timeout_s
        self._decoders = Decoders(
            predictor.lanes,
            Work(start, self._undecoded_job, self._decoded, self._put, self._lose),
            metrics,
            limit_s=decode_timeout_s,
            max_stuck=max_stuck,
        )

    def _begin_lane(self, start: Callable[[], None] | None) -> None:
        """One lane after the other: what is compiled at its first call is there before the first
        request. Raises what that call raises.
        """
        warm: Future[None] = Future()
        self._begin(self._lane, start, warm)
        warm.result()

    def _begin(self, loop: Callable[..., None], *arguments: Any) -> None:
        name = f"dinoprobe-{len(self._threads)}"
        thread = Thread(target=loop, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def pending(self) -> int:
        """Images that are admitted and not answered."""
        return self._pending

    def check_room(self) -> None:
        """Raise ProblemError where not one more image would be admitted now."""
        self.check_stuck()
        if self._pending >= self.max_pending or self._closed:
            raise self._full()

    @property
    def is_stuck(self) -> bool:
        """Whether so many decoders hang that no image is taken any more."""
        return self._decoders.is_stuck

    def check_stuck(self) -> None:
        """Raise ProblemError where `is_stuck`."""
        if self.is_stuck:
            hang = f"{self._decoders.stuck} decoders hang on images that were sent"
            message = f"{hang}; expected them to end. Ask another service, or start this one again."
            raise overloaded(message, "stuck")

    def admit(self, images: Sequence[Sent], deadline_s: float) -> list[Job]:
        """Put the images in the line, all or none, to be answered until `deadline_s` of
        `time.monotonic`. Raises ProblemError where the line is full.
        """
        jobs = [Job(data, deadline_s) for data in images]
        with self._change:
            if self._closed or (self._pending and self._pending + len(jobs) > self.max_pending):
                raise self._full()
            self._pending += len(jobs)
            self._metrics.pending.set(self._pending)
            self._undecoded.extend(jobs)
            self._change.notify_all()
        return jobs

    def close(self) -> None:
        """Answer what waits with 503, and end the threads."""
        with self._change:
            self._closed = True
            waiting = [*self._undecoded, *self._ready]
            self._undecoded.clear()
            self._ready.clear()
            self._change.notify_all()
        for job in waiting:
            self._end(
                job, overloaded("the service ends; expected one that runs. Ask again.", "ends")
            )
        self._decoders.close()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _full(self) -> ProblemError:
        wait_s = max(1, math.ceil(self._pending * self._seconds_an_image))
        return overloaded(
            f"{self._pending} images are waiting or under way; expected fewer than "
            f"{self.max_pending}. Ask again in {wait_s} s, with fewer requests at a time.",
            "overloaded",
            wait_s,
        )

    def _end(self, job: Job, result: Row | ImageError | ProblemError) -> None:
        job.data = job.image = None
        with self._change:
            self._pending -= 1
            self._metrics.pending.set(self._pending)
            if self._pending == 1:  # what is left may be for the lane over all cores
                self._change.notify_all()
        if not job.done.set_running_or_notify_cancel():
            return
        if isinstance(result, Row):
            job.done.set_result(result)
        else:
            job.done.set_exception(result)

    # --- decoding -------------------------------------------------------------------------------

    def _undecoded_job(self) -> Job | None:
        """The next image that somebody waits for; None at the end."""
        while True:
            with self._change:
                patience_s = _REST_S if self._kept_memory else None
                came = self._change.wait_for(
                    lambda: bool(self._undecoded) or self._closed, patience_s
                )
                if self._closed:
                    return None
                job = self._undecoded.popleft() if came else None
                rests, self._kept_memory = self._kept_memory and not came, came
            if rests:
                give_back()
            if job is not None and not self._is_given_up(job):
                return job

    def _decoded(self, job: Job) -> Any:
        """What the encoder takes, or an ImageError."""
        start = time.monotonic()
        data = b"" if job.data is None else job.data
        try:
            image = self._predictor.preprocess(data, max_pixels=self._max_pixels)
        except ImageError as error:
            return error
        except Exception:  # a bug in a decoder's wrapper: this image fails, the service goes on
            log.exception("decoding failed")
            return ImageError("an image that could not be decoded. Send another.", "broken")
        self._metrics.decode.observe(time.monotonic() - start)
        return image

    def _put(self, job: Job, image: Any) -> None:
        if isinstance(image, ImageError):
            self._end(job, image)
            return
        job.data, job.image = None, image
        job.ready_s = time.monotonic()
        with self._change:
            self._ready.append(job)
            self._change.notify_all()

    def _lose(self, job: Job) -> None:
        log.error("a decoder hangs", extra={"fields": {"stuck": self._decoders.stuck}})
        took = f"an image that was not decoded within {self._decode_timeout_s:g} s"
        self._end(job, ImageError(f"{took}; expected one that can be. Send another.", "timeout"))

    def _is_given_up(self, job: Job) -> bool:
        """Whether nobody waits for it any more; then it is ended."""
        late = time.monotonic() >= job.deadline_s
        if late or job.done.cancelled():
            self._end(job, overloaded("too late to begin; expected less load. Ask again.", "late"))
            return True
        return False

    # --- encoding -------------------------------------------------------------------------------

    def _lane(self, start: Callable[[], None] | None, warm: Future[None]) -> None:
        """With `start` on one core beside other lanes, else over all cores, when alone."""
        only = self._predictor.lanes == 1
        try:
            if start is not None:
                start()
            blank = self._predictor.preprocess(_BLANK, max_pixels=1)
            self._predictor.predict([blank], alone=start is None)
        except Exception as error:  # noqa: BLE001 - it goes to who waits
            warm.set_exception(error)
            return
        warm.set_result(None)
        while (batch := self._take(alone=start is None, only=only)) is not None:
            wanted = [job for job in batch if not self._is_given_up(job)]
            if wanted:
                self._encode(wanted, alone=start is None)
            del batch, wanted  # a lane without work holds no image
            self._leave(alone=start is None)

    def _take(self, *, alone: bool, only: bool) -> list[Job] | None:
        """The next batch for a lane, None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._is_for(alone=alone, only=only))
            if self._closed:
                return None
            lanes = max(1, self._predictor.lanes - self._busy)
            share = math.ceil(len(self._ready) / lanes)
            count = min(self._predictor.batch_size, share)
            self._busy += 1
            self._alone = alone
            return [self._ready.popleft() for _ in range(count)]

    def _is_for(self, *, alone: bool, only: bool) -> bool:
        """Whether a lane of this kind is to take what is ready."""
        if not self._ready or only:
            return bool(self._ready)
        if self._alone and self._busy:
            return False
        return alone == (self._pending == 1 and not self._busy)

    def _leave(self, *, alone: bool) -> None:
        with self._change:
            self._busy -= 1
            self._alone = self._alone and not alone
            self._change.notify_all()

    def _encode(self, batch: list[Job], *, alone: bool) -> None:
        start = time.monotonic()
        for job in batch:
            self._metrics.queue.observe(start - job.ready_s)
        try:
            outputs = self._predictor.predict([job.image for job in batch], alone=alone)
        except Exception:  # out of memory, or a bug: these images fail, the lane goes on
            log.exception("encoding failed")
            for job in batch:
                self._end(
                    job, overloaded("encoding failed; the log says more. Ask again.", "encoder")
                )
            return
        seconds = time.monotonic() - start
        self._seconds_an_image = seconds / len(batch) / self._predictor.lanes
        self._metrics.batch.observe(len(batch))
        for number, job in enumerate(batch):
            self._metrics.encode.observe(seconds)
            self._end(job, _row(outputs, number))


def _row(outputs: Outputs, number: int) -> Row | ImageError:
    """The outputs of one image of a batch; a failure where they are not finite."""
    probabilities = outputs.probabilities[number]
    if not np.isfinite(probabilities).all():
        return ImageError("an image that gave NaN or infinity. Send another.", "non-finite")
    features = None if outputs.features is None else outputs.features[number]
    novelty = None if outputs.novelty is None else float(outputs.novelty[number])
    return Row(probabilities, features, novelty)
