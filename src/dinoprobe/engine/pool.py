"""Threads whose work can be given up: a stuck decoder stops no run, and nothing stops an exit.

A Python thread can not be killed, and `ThreadPoolExecutor` joins its threads when the interpreter
ends. So these are daemons. One that takes longer than its limit is left to itself, and another
takes its place. An encoder that is busy when its pool closes is asked to stop by an exception,
which arrives between two of its Python instructions, such as two layers of a model. A read that
hangs is not: an exception that never arrives keeps all threads of CPython 3.11 looking for it, and
they were seen to stand still. What hangs while it holds the interpreter's lock hangs all, and no
limit helps.
"""

from __future__ import annotations

import atexit
import ctypes
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")
Value = TypeVar("Value")

GRACE_S = 1.0  # for work under way when a pool is closed, before it is asked to stop
PATIENCE_S = 3.0  # for it to stop, before it is left behind
_POLL_S = 1.0  # Windows does not interrupt a wait


class LateError(Exception):
    """The work took longer than its limit. What it gives later is dropped."""


class _Stop(BaseException):
    """Raised in a thread that was given up; no `except Exception` of a decoder catches it."""


@final
class Task(Generic[Item, Value]):
    """One piece of work, finished or given up, whichever comes first. Lets go of its item then."""

    __slots__ = ("_decided", "done", "error", "item", "started_s", "value")

    def __init__(self, item: Item) -> None:
        self.item: Item | None = item
        self.value: Value | None = None
        self.error: BaseException | None = None
        self.started_s = 0.0
        self.done = Event()
        self._decided = Lock()

    def decide(self) -> bool:
        """True for the first caller only. One C call, which no exception can cut in two."""
        return self._decided.acquire(blocking=False)

    def end(self, value: Value | None, error: BaseException | None) -> None:
        """By whom `decide` was for."""
        self.value, self.error, self.item = value, error, None
        self.done.set()


@final
class Pool(Generic[Item, Value]):
    """`count` threads that do `work`, each after `start`. Belongs to the thread that made it.

    With `limit_s` a piece of work may take so long, from when a thread takes it up. `stoppable`
    work comes back to Python now and then: `close` ends it by an exception.
    """

    def __init__(
        self,
        name: str,
        count: int,
        work: Callable[[Item], Value],
        *,
        start: Callable[[], None] = lambda: None,
        limit_s: float | None = None,
        stoppable: bool = False,
    ) -> None:
        self._name, self._count = name, count
        self._work, self._start = work, start
        self._limit_s, self._stoppable = limit_s, stoppable
        self._poll_s = _POLL_S if limit_s is None else min(_POLL_S, limit_s / 10)
        self._todo: SimpleQueue[Task[Item, Value] | None] = SimpleQueue()
        self._workers: list[_Worker[Item, Value]] = []
        self._stuck: list[_Worker[Item, Value]] = []
        atexit.register(self.close)

    def submit(self, item: Item) -> Task[Item, Value]:
        """Work in line; `result` waits for it."""
        task: Task[Item, Value] = Task(item)
        self._todo.put(task)
        if len(self._workers) < self._count:
            self._hire()
        return task

    def result(self, task: Task[Item, Value]) -> Value:
        """What the work gave. Raises what it raised, and LateError where its time is over."""
        while not task.done.wait(self._poll_s):
            self._give_up_late()
        if task.error is not None:
            raise task.error
        return task.value  # type: ignore[return-value]

    @property
    def stuck(self) -> int:
        """Threads that were given up and are still busy."""
        self._stuck = [worker for worker in self._stuck if worker.thread.is_alive()]
        return len(self._stuck)

    def close(self) -> None:
        """Drop what waits and end the threads. One that is busy for longer than a few seconds is
        left behind, without a result.
        """
        atexit.unregister(self.close)
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in self._workers:
            self._todo.put(None)
        if not self._have_ended(GRACE_S):
            for worker in self._workers:
                if worker.task is not None and worker.task.decide() and self._stoppable:
                    worker.ask_to_stop()
            self._have_ended(PATIENCE_S)

    def _hire(self) -> None:
        worker = _Worker(self._name, self._todo, self._work, self._start)
        self._workers.append(worker)
        worker.thread.start()

    def _give_up_late(self) -> None:
        if self._limit_s is None:
            return
        now = time.monotonic()
        for worker in list(self._workers):
            task = worker.task
            if task is None or now - task.started_s < self._limit_s or not task.decide():
                continue
            task.end(None, LateError())
            self._workers.remove(worker)
            self._stuck.append(worker)
            self._hire()

    def _have_ended(self, within_s: float) -> bool:
        end = time.monotonic() + within_s
        for worker in self._workers:
            worker.thread.join(max(0.0, end - time.monotonic()))
        return not any(worker.thread.is_alive() for worker in self._workers)


@final
class _Worker(Generic[Item, Value]):
    """One thread. `task` is what it is busy with."""

    def __init__(
        self,
        name: str,
        todo: SimpleQueue[Task[Item, Value] | None],
        work: Callable[[Item], Value],
        start: Callable[[], None],
    ) -> None:
        self.task: Task[Item, Value] | None = None
        self._todo, self._work, self._start = todo, work, start
        self.thread = Thread(target=self._run, name=name, daemon=True)

    def ask_to_stop(self) -> None:
        """For a thread whose task was given up: it comes back to no other one."""
        ident = ctypes.c_ulong(self.thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Stop))

    def _run(self) -> None:
        with suppress(_Stop):
            self._start()
            while (task := self._todo.get()) is not None:
                if not self._do(task):
                    return
                del task  # a thread without work holds no image

    def _do(self, task: Task[Item, Value]) -> bool:
        """Whether it was in time."""
        value: Value | None = None
        error: BaseException | None = None
        task.started_s = time.monotonic()
        self.task = task
        try:
            value = self._work(task.item)  # type: ignore[arg-type]
        except BaseException as raised:  # noqa: BLE001 - it goes to whoever waits
            error = raised
        in_time = task.decide()
        self.task = None
        if in_time:
            task.end(value, error)
        return in_time
