"""One process of several on a machine: the engine, on the samples that it is handed.

It opens the encoder once, asks for more samples before it runs out of them, and tells of results as
they come, so that its death costs a fraction of a second. It ends by itself when its parent does.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, final

from dinoprobe.engine.facts import facts_of
from dinoprobe.engine.ledger import Claims
from dinoprobe.engine.pipeline import TIMEOUT_S, run
from dinoprobe.errors import DinoprobeError, EncoderError

if TYPE_CHECKING:
    from collections.abc import Generator
    from multiprocessing.connection import Connection

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.encoder import Encoder, EncoderReference, EncoderSettings, Int8
    from dinoprobe.engine.facts import Facts
    from dinoprobe.engine.pipeline import Auto
    from dinoprobe.store import KnownHashes
    from dinoprobe.types import Failure, Sample, Stamp

_REPORT_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of a run is told; `reference` is where the weights of `settings` are."""

    settings: EncoderSettings
    reference: EncoderReference
    int8: Int8 | None = None
    batch_size: int | Auto = "auto"
    timeout_s: float | None = TIMEOUT_S


class Begin(NamedTuple):
    """To a worker: what has features already, from now on."""

    known: KnownHashes


class Share(NamedTuple):
    """To a worker: samples, and the content hashes that others have encoded meanwhile. None after
    some of them is the end; then every sample is told of before new ones are begun.
    """

    samples: list[Sample]
    encoded: list[str]


class Said(NamedTuple):
    """From a worker: a sentence for the user."""

    text: str


class Opened(NamedTuple):
    """From a worker: the encoder is there."""

    facts: Facts


class Failed(NamedTuple):
    """From a worker: the run has to end."""

    error: DinoprobeError


class Taken(NamedTuple):
    """From a worker: the last share that it was sent is begun, and it wants another one."""


class Idle(NamedTuple):
    """From a worker: all it was given is told of."""


class Done(NamedTuple):
    """What became of one sample, without its pixels; `is_encoded` says that it has a row."""

    key: str
    stamp: Stamp | None
    content_hash: str | None
    failure: Failure | None
    more_frames: bool
    is_encoded: bool


class Report(NamedTuple):
    """From a worker: samples that are done, and the rows `(n, d)` of those that were encoded."""

    done: list[Done]
    X: npt.NDArray[np.float32] | None


def work(job: Job, device: str, cores: int, pipe: Connection) -> None:
    """The whole life of a worker's process, which has a share of the machine's cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes the pipe
    with suppress(OSError):
        os.dup2(2, 1)  # what a library prints is no part of the parent's document
    os.environ["DINOPROBE_CORES"] = str(cores)
    worker = _Worker(job, device, cores, pipe)
    try:
        worker.run()
    except DinoprobeError as error:
        worker.send(Failed(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        worker.send(Failed(_unexpected(device, error)))
    os._exit(0)  # threads that hang must not keep the process


def _unexpected(device: str, error: Exception) -> EncoderError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return EncoderError(
        f"the process for {device} failed ({reason}). Expected it to encode to the end. What was "
        "finished is kept; leave that device out, or run without --devices to see more."
    )


@final
class _Worker:
    """One thread receives, so that the parent never waits for this process to take something."""

    def __init__(self, job: Job, device: str, cores: int, pipe: Connection) -> None:
        self._job, self._device, self._cores, self._pipe = job, device, cores, pipe
        self._claims = Claims(frozenset())
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        Thread(target=self._receive, name="dinoprobe-inbox", daemon=True).start()

    def send(self, message: tuple[Any, ...]) -> None:
        """Tell the parent. Without one there is nothing left to do."""
        try:
            self._pipe.send(message)
        except OSError:
            os._exit(0)

    def run(self) -> None:
        """Open the encoder, and work for as long as the process lives. Raises what opening does."""
        encoder = self._open()
        self.send(Opened(facts_of(encoder)))
        while True:
            message = self._next()
            if isinstance(message, Begin):
                self._claims = Claims(message.known)
            else:
                self._work_off(message, encoder)
                self.send(Idle())

    def _open(self) -> Encoder:
        import torch

        from dinoprobe.encoder import open_encoder

        job = self._job
        torch.set_num_threads(self._cores)
        if self._device.startswith("cuda"):
            torch.cuda.set_device(self._device)  # else each process takes memory of the first one
        return open_encoder(
            replace(job.settings, device=self._device),
            say=lambda text: self.send(Said(text)),
            int8=job.int8,
            reference=job.reference,
        )

    def _work_off(self, first: Share, encoder: Encoder) -> None:
        job, report = self._job, _Pending()
        results = run(
            self._samples(first),
            encoder,
            wanted=self._claims.claim,
            batch_size=job.batch_size,
            workers="auto",
            timeout_s=job.timeout_s,
        )
        with closing(results):
            for loaded, row in results:
                encoded = row is not None
                name, failure = loaded.content_hash, loaded.failure
                about = (loaded.stamp, name, failure, loaded.more_frames, encoded)
                report.add(Done(loaded.sample.key, *about), row)
                if report.is_due():
                    self.send(report.take())
        self.send(report.take())

    def _samples(self, share: Share | None) -> Generator[Sample, None, None]:
        while share is not None:
            self.send(Taken())
            self._claims.learn(share.encoded)
            yield from share.samples
            share = self._next()

    def _next(self) -> Any:
        message = self._inbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    def _receive(self) -> None:
        while True:
            try:
                self._inbox.put(self._pipe.recv())
            except (EOFError, OSError):
                os._exit(0)  # the parent has closed the pipe, or is no more
            except Exception as error:  # noqa: BLE001 - of a source that can not be made here
                self._inbox.put(error)


@final
@dataclass
class _Pending:
    """What was not told of yet."""

    done: list[Done] = field(default_factory=list)
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)
    sent_at: float = field(default_factory=time.monotonic)

    def add(self, done: Done, row: npt.NDArray[np.float32] | None) -> None:
        """One result."""
        self.done.append(done)
        if row is not None:
            self.rows.append(row)

    def is_due(self) -> bool:
        """Whether it is time to tell."""
        return time.monotonic() - self.sent_at >= _REPORT_EVERY_S

    def take(self) -> Report:
        """All of it, and hold none."""
        import numpy as np

        report = Report(self.done, np.stack(self.rows) if self.rows else None)
        self.done, self.rows, self.sent_at = [], [], time.monotonic()
        return report
