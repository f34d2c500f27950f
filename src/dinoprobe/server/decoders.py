"""Threads that decode, of which one that hangs is given up and replaced.

A Python thread can not be killed. One whose image takes longer than the limit is lost: the image
fails, another thread takes its place, and if it ever comes back it ends, or works again where one
is missing. More lost threads than `max_stuck` are no longer replaced, for each keeps its image's
memory: the service then says that it is stuck. What hangs while it holds the interpreter's lock
hangs all, and shows as a process that does not answer.
"""

from __future__ import annotations

import time
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.server.jobs import Job
    from dinoprobe.server.metrics import Metrics

_JOIN_S = 5.0
_POLL_S = 0.5


class Work(NamedTuple):
    """What a thread calls: `start` once, then `take`, which waits and gives None at the end, and
    `decode`, whose result goes to `give`. `lose` gets a job that took too long.
    """

    start: Callable[[], None]
    take: Callable[[], Job | None]
    decode: Callable[[Job], Any]
    give: Callable[[Job, Any], None]
    lose: Callable[[Job], None]


@final
class Decoders:
    """`count` threads, of which each may take `limit_s` for one image."""

    def __init__(
        self, count: int, work: Work, metrics: Metrics, *, limit_s: float, max_stuck: int
    ) -> None:
        self._count, self._work, self._metrics = count, work, metrics
        self._limit_s, self._max_stuck = limit_s, max_stuck
        self._change = Condition()
        self._closed = False
        self._lost: set[_Worker] = set()
        self._workers: set[_Worker] = set()
        with self._change:
            self._replace()
        self._watcher = Thread(target=self._watch, name="dinoprobe-watch", daemon=True)
        self._watcher.start()

    @property
    def stuck(self) -> int:
        """Threads that were given up and are still busy."""
        return len(self._lost)

    @property
    def is_stuck(self) -> bool:
        """Whether they are so many that no other takes their place."""
        return len(self._lost) > self._max_stuck

    def close(self) -> None:
        """End the threads, but for those that hang. `take` gives None by now."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            workers = list(self._workers)
        end = time.monotonic() + _JOIN_S
        for thread in [self._watcher, *(worker.thread for worker in workers)]:
            thread.join(max(0.0, end - time.monotonic()))

    def _replace(self) -> None:
        """Threads up to their number, while not too many are lost."""
        while len(self._workers) < self._count and not self.is_stuck and not self._closed:
            worker = _Worker(self._run)
            self._workers.add(worker)
            worker.thread.start()

    def _run(self, worker: _Worker) -> None:
        self._work.start()
        while (job := self._work.take()) is not None:
            with self._change:
                worker.begin(job)
            result = self._work.decode(job)
            with self._change:
                in_time = worker.job is not None
                worker.job = None
                goes_on = in_time or self._is_wanted_back(worker)
            if in_time:
                self._work.give(job, result)
            if not goes_on:
                return
            del job, result  # a thread without work holds no image

    def _is_wanted_back(self, worker: _Worker) -> bool:
        self._lost.discard(worker)
        self._metrics.stuck.set(len(self._lost))
        if len(self._workers) >= self._count or self._closed:
            return False
        self._workers.add(worker)
        self._replace()
        return True

    def _watch(self) -> None:
        poll_s = min(_POLL_S, self._limit_s / 10)
        while True:
            with self._change:
                if self._change.wait_for(lambda: self._closed, poll_s):
                    return
                late = self._give_up_late()
            for job in late:
                self._work.lose(job)

    def _give_up_late(self) -> list[Job]:
        before_s = time.monotonic() - self._limit_s
        late = [w for w in self._workers if w.job is not None and w.started_s < before_s]
        jobs = [worker.job for worker in late if worker.job is not None]
        for worker in late:
            worker.job = None
        self._workers.difference_update(late)
        self._lost.update(late)
        if late:
            self._metrics.stuck.set(len(self._lost))
            self._metrics.lost.inc(len(late))
            self._replace()
        return jobs


@final
class _Worker:
    """One thread. `job` is what it decodes, None once that was given up."""

    def __init__(self, run: Callable[[_Worker], None]) -> None:
        self.job: Job | None = None
        self.started_s = 0.0
        self.thread = Thread(target=run, args=(self,), name="dinoprobe-decode", daemon=True)

    def begin(self, job: Job) -> None:
        self.started_s = time.monotonic()
        self.job = job
