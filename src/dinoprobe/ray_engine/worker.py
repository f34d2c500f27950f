"""What runs in a worker's process: the engine of one machine, on the samples that it is handed.

Nothing here knows of Ray. A worker opens the encoder once, writes the features where the driver
can commit them, and reports; what it has not reported when it dies is done again.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from dinoprobe.datasets.transport import from_bytes
from dinoprobe.engine.estimate import Measured, measure
from dinoprobe.engine.facts import Facts, facts_of
from dinoprobe.engine.ledger import Claims, RowKind, row_kind
from dinoprobe.engine.pipeline import run
from dinoprobe.errors import DinoprobeError, MismatchError
from dinoprobe.ray_engine.report import Done, Report
from dinoprobe.store import FeatureStore
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.engine.pipeline import Auto, EncoderLike
    from dinoprobe.store import KnownHashes

_SIGN_OF_LIFE_S = 2.0
_ROWS_PER_FILE = 1 << 17  # what the store's compaction leaves alone
_BYTES_PER_FILE = 1 << 30


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a run is told. `open` gives the encoder."""

    open: Callable[[], EncoderLike]
    cores: int
    version: str
    store_uri: str = ""
    fingerprint: str | None = None
    batch_size: int | Auto = "auto"
    timeout_s: float | None = None
    report_every_s: float = 30.0

    def encoder(self) -> EncoderLike:
        """The encoder, held to the cores that the worker was given. Raises MismatchError where it
        would give other features than the driver was told.
        """
        own = own_version()
        if own != self.version:
            raise MismatchError(
                f"a worker runs dinoprobe {own}, the driver {self.version}. Expected one "
                "version on the whole cluster. Install the same on every node."
            )
        os.environ["DINOPROBE_CORES"] = str(self.cores)
        encoder = self.open()
        if self.fingerprint not in (None, encoder.fingerprint):
            raise MismatchError(
                f"a worker's encoder has the fingerprint {encoder.fingerprint}, the first one had "
                f"{self.fingerprint}: their nodes differ in what they compute with. Expected one. "
                "Name --precision and --backend, or use nodes of one kind."
            )
        return encoder


def examine(job: Job) -> Facts | Report:
    """The facts of a job's encoder, or the error that it can not be opened with."""
    try:
        return facts_of(job.encoder())
    except DinoprobeError as error:
        return Report.of_error(error)


def measured(job: Job, chunk: bytes) -> Measured | Report:
    """How fast one worker is with these samples, alone on its node or not, or its error."""
    try:
        encoder = job.encoder()
        samples = [sample for _, sample in from_bytes(chunk)]
        return measure(samples, encoder, batch_size=job.batch_size, workers=job.cores)
    except DinoprobeError as error:
        return Report.of_error(error)


@final
class Worker:
    """One process's share. Calls come one after the other."""

    def __init__(self, job: Job, known: KnownHashes) -> None:
        self._job = job
        self._claims = Claims(known)
        self._encoder: EncoderLike | None = None

    def reports(self, chunk: bytes) -> Iterator[Report]:
        """Work off packed samples. The last report is an error where the job has to end."""
        try:
            yield from self._reports(chunk)
        except DinoprobeError as error:
            yield Report.of_error(error)

    def _reports(self, chunk: bytes) -> Iterator[Report]:
        if self._encoder is None:
            self._encoder = self._job.encoder()
        numbered = from_bytes(chunk)
        share = _Share(FeatureStore(self._job.store_uri), row_kind(self._encoder))
        most = min(_ROWS_PER_FILE, max(1, _BYTES_PER_FILE // (4 * self._encoder.dimension)))
        results = run(
            [sample for _, sample in numbered],
            self._encoder,
            wanted=self._claims.claim,
            batch_size=self._job.batch_size,
            workers=self._job.cores,
            timeout_s=self._job.timeout_s,
        )
        with closing(results):
            for (number, _), (loaded, row) in zip(numbered, results, strict=True):
                share.add(Done.of(number, loaded, encoded=row is not None), row)
                if share.age_s() >= self._job.report_every_s or len(share.rows) >= most:
                    yield share.report()
                elif share.silent_s() >= _SIGN_OF_LIFE_S:
                    yield share.sign_of_life()
        yield share.report()


@final
@dataclass
class _Share:
    """What a worker has not reported yet."""

    store: FeatureStore
    kind: RowKind
    done: list[Done] = field(default_factory=list)
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)
    images: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self._begun = self._spoken = time.monotonic()

    def add(self, done: Done, row: npt.NDArray[np.float32] | None) -> None:
        """One result of the engine."""
        self.done.append(done)
        if row is not None:
            self.rows.append(row)
        failed = done.failure_kind is not None
        self.images += not failed
        self.failures += failed

    def age_s(self) -> float:
        """Seconds since the last report of samples."""
        return time.monotonic() - self._begun

    def silent_s(self) -> float:
        """Seconds since the last report of any kind."""
        return time.monotonic() - self._spoken

    def sign_of_life(self) -> Report:
        """Counts alone."""
        report = Report(images=self.images, failures=self.failures)
        self.images = self.failures = 0
        self._spoken = time.monotonic()
        return report

    def report(self) -> Report:
        """Write the features, and tell of all that is done."""
        import numpy as np

        staged: list[str] = []
        if self.rows:
            fingerprint, parts, description = self.kind
            hashes = [done.content_hash or "" for done in self.done if done.encoded]
            X = np.stack(self.rows)
            staged = self.store.stage(fingerprint, hashes, X, parts=parts, description=description)
        report = Report(self.done, staged, self.images, self.failures)
        self.done, self.rows = [], []
        self.images = self.failures = 0
        self._begun = self._spoken = time.monotonic()
        return report
