"""Several processes of one machine on one dataset, a device each: `Crew` hands out and gathers.

Each process has a pipe of its own, so that one that is killed leaves no lock behind. What it had
begun and not told of is suspect when it dies, and goes through alone, image by image, in processes
that do nothing else; an image whose process dies again is a failure of the kind `killed`.
"""

from __future__ import annotations

import signal
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self, cast, final

from dinoprobe.engine.pipeline import BATCH_SIZE_CPU, BATCH_SIZE_CUDA
from dinoprobe.engine.readers import Loaded, killed
from dinoprobe.engine.worker import (
    Begin,
    Failed,
    Idle,
    Job,
    Report,
    Said,
    Share,
    Taken,
    work,
)
from dinoprobe.errors import ConfigurationError, EncoderError, MismatchError
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from types import TracebackType

    from dinoprobe.engine.facts import Facts
    from dinoprobe.engine.ledger import Ledger
    from dinoprobe.engine.pipeline import Result
    from dinoprobe.store import KnownHashes
    from dinoprobe.types import Sample

MOST_DEATHS = 5  # of one device's processes in a row, without a result in between
_MOST_SAMPLES = 256  # in a share
_SHARES = 8  # of each device, so that all of them end at about the same time
_PATIENCE_S = 5.0


@final
@dataclass(eq=False)
class _Member:
    """The parent's side of one process. `waiting` was sent to it, `taken` it has begun; `told` says
    how many hashes of others it knows, `is_told` whether it knows what the store has.
    """

    slot: int
    process: SpawnProcess
    pipe: Connection
    is_open: bool = False
    is_busy: bool = False
    is_ending: bool = False
    is_alone: bool = False
    is_told: bool = False
    told: int = 0
    waiting: list[Sample] = field(default_factory=list)
    taken: dict[str, Sample] = field(default_factory=dict)

    def heard(self) -> Any:
        """Its next message, or None where it is dead and everything it had sent was heard."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def send(self, message: object) -> None:
        """Send, unless it is dead, which shows when it is heard. Raises ConfigurationError."""
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except Exception as error:  # pickle: each type has its own
            key = self.waiting[0].key if self.waiting else "a sample"
            raise ConfigurationError(
                f"{key}: can not be handed to another process ({error}). Expected images that are "
                "files, bytes or arrays. Use one device."
            ) from error

    def end(self) -> str:
        """How the process ended, in words; it is gone then."""
        self.pipe.close()
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"


@final
class Crew:
    """Processes that encode, from `open` to the end of the `with`. Of a call it is a `Reader`."""

    def __init__(
        self, job: Job, devices: Sequence[str], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._job, self._devices, self._say = job, devices, say
        self._cores = max(1, usable_cores() // len(devices))
        self._facts: Facts | None = None
        self._members: list[_Member] = []
        self._deaths = [0] * len(devices)
        self._begin(frozenset(), [])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, within seconds. What they have not told of is dropped."""
        for member in self._members:
            member.pipe.close()
        for member in self._members:
            member.end()
        self._members = []

    def open(self) -> Facts:
        """Start the first process, alone: what it fetches, tests and compiles is there for others.

        Raises what `open_encoder` does.
        """
        self._hire(0)
        while self._facts is None:
            message = self._members[0].heard()
            if message is None:
                how = self._members.pop().end()
                raise EncoderError(self._ended(0, how, "while it opened the encoder"))
            self._greet(self._members[0], message)
        return self._facts

    def __call__(
        self, samples: Sequence[Sample], ledger: Ledger, /
    ) -> Generator[Result, None, None]:
        """As `pipeline.run`, but in the order in which they are done. Raises EncoderError where the
        processes of a device die one after the other, MismatchError where devices would give
        different features, and ConfigurationError where a sample can not be handed over.
        """
        shares = _shares(samples, self._devices)
        self._begin(ledger.claims.known, shares)
        for member in self._members:
            if member.is_open:
                self._occupy(member)
        missing = set(range(min(len(self._devices), len(shares)))) - {m.slot for m in self._members}
        for slot in sorted(missing):
            self._hire(slot)
        while self._todo or self._suspects or any(member.is_busy for member in self._members):
            pipes = {member.pipe: member for member in self._members}
            for pipe in wait(list(pipes)):
                yield from self._hear(pipes[cast("Connection", pipe)], ledger)

    def _begin(self, known: KnownHashes, shares: Sequence[list[Sample]]) -> None:
        self._known = known
        self._todo: deque[list[Sample]] = deque(shares)
        self._suspects: deque[Sample] = deque()
        self._encoded: list[str] = []
        for member in self._members:
            member.is_told = False

    def _hire(self, slot: int) -> None:
        context, device = get_context("spawn"), self._devices[slot]
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work,
            args=(self._job, device, self._cores, theirs),
            name=f"dinoprobe-{device}",
            daemon=True,
        )
        with _without_interrupts():
            process.start()
        theirs.close()
        self._members.append(_Member(slot, process, ours))

    def _hear(self, member: _Member, ledger: Ledger) -> Iterator[Result]:
        message = member.heard()
        if message is None:
            yield from self._died(member)
        elif isinstance(message, Report):
            yield from self._results(member, message, ledger)
        elif isinstance(message, Taken):
            member.taken.update((sample.key, sample) for sample in member.waiting)
            member.waiting = []
            if not member.is_ending:
                self._hand_out(member)
        elif isinstance(message, Idle):
            member.is_busy = False
            self._occupy(member)
        else:
            self._greet(member, message)
            if member.is_open:
                self._occupy(member)

    def _greet(self, member: _Member, message: Any) -> None:
        """What a process says until its encoder is there."""
        if isinstance(message, Failed):
            raise message.error
        if isinstance(message, Said):
            if self._facts is None:
                self._say(message.text)
            return
        facts: Facts = message.facts
        if self._facts is not None and facts.fingerprint != self._facts.fingerprint:
            raise MismatchError(
                f"{self._devices[member.slot]}: its features have the fingerprint "
                f"{facts.fingerprint} ({facts.precision} by {facts.backend}), those of "
                f"{self._devices[0]} {self._facts.fingerprint} ({self._facts.precision} by "
                f"{self._facts.backend}). Expected devices of one kind. Name --precision and "
                "--backend, or fewer --devices."
            )
        self._facts = self._facts or facts
        member.is_open = True

    def _occupy(self, member: _Member) -> None:
        """Work for one that has none: suspects first, one at a time."""
        if not (self._suspects or self._todo):
            return
        if not member.is_told:
            member.send(Begin(self._known))
            member.is_told, member.told = True, 0
        member.is_busy, member.is_alone, member.is_ending = True, bool(self._suspects), False
        if member.is_alone:
            self._hand_over(member, [self._suspects.popleft()])
            self._end_of_work(member)
        else:
            self._hand_out(member)

    def _hand_out(self, member: _Member) -> None:
        if self._todo:
            self._hand_over(member, self._todo.popleft())
        else:
            self._end_of_work(member)

    def _hand_over(self, member: _Member, samples: list[Sample]) -> None:
        member.waiting = samples
        member.send(Share(samples, self._encoded[member.told :]))
        member.told = len(self._encoded)

    def _end_of_work(self, member: _Member) -> None:
        member.is_ending = True
        member.send(None)

    def _results(self, member: _Member, report: Report, ledger: Ledger) -> Iterator[Result]:
        """An image that two processes have encoded counts once."""
        rows = iter(() if report.X is None else report.X)
        for done in report.done:
            self._deaths[member.slot] = 0
            row, name = next(rows) if done.is_encoded else None, done.content_hash
            if name is not None and row is not None:
                if ledger.claims.claim(name):
                    self._encoded.append(name)
                else:
                    row = None
            sample = member.taken.pop(done.key)
            yield Loaded(sample, done.stamp, name, None, done.failure, done.more_frames), row

    def _died(self, member: _Member) -> Iterator[Result]:
        how, slot = member.end(), member.slot
        self._members.remove(member)
        self._deaths[slot] += 1
        if member.is_alone:
            self._suspects.extendleft(member.waiting)
            for sample in member.taken.values():
                yield killed(sample, how), None
        else:
            self._suspects.extend(member.taken.values())
            self._todo.extendleft([member.waiting] if member.waiting else [])
        if self._deaths[slot] >= MOST_DEATHS:
            raise EncoderError(self._ended(slot, how, "without a result in between"))
        for other in self._members:
            if other.is_open and not other.is_busy:
                self._occupy(other)
        if self._todo or self._suspects:
            self._hire(slot)

    def _ended(self, slot: int, how: str, when: str) -> str:
        device, count = self._devices[slot], self._deaths[slot]
        who = f"{count} processes for {device}" if count else f"the process for {device}"
        return (
            f"{who} died {when} (the last: {how}). Expected them to live: memory may have run out, "
            "or a driver or library crashes here. What was finished is kept. Use fewer --devices, "
            "a smaller --batch-size or --device cpu; a script needs `if __name__ == '__main__':`."
        )


def _shares(samples: Sequence[Sample], devices: Sequence[str]) -> list[list[Sample]]:
    """Neighbours, several shares for each device, and no less than a batch."""
    on_cpu = devices[0].startswith("cpu")
    least = BATCH_SIZE_CPU if on_cpu else BATCH_SIZE_CUDA
    size = min(_MOST_SAMPLES, max(least, -(-len(samples) // (_SHARES * len(devices)))))
    return [list(samples[start : start + size]) for start in range(0, len(samples), size)]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: those that are started here never get it."""
    resource_tracker.ensure_running()  # which would let the signal through again
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
