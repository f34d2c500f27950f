"""A whole dataset to features, with a store in between: what is known is not computed again.

Progress is committed every 4,096 rows or 10 s, whichever is first, so a kill costs at most 10 s of
work and Lance gets at most 360 small fragments an hour, which the end of the run joins.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, final

from dinoprobe.engine.ledger import Flush, Ledger, RowKind, lost_rows, row_kind
from dinoprobe.engine.pipeline import TIMEOUT_S, Auto, Described, EncoderLike, Pools, run
from dinoprobe.errors import MismatchError
from dinoprobe.files import write_atomic
from dinoprobe.mapped import take
from dinoprobe.store import MemoryStore, Rows, RowStore
from dinoprobe.types import Dataset, Failure, Features, NoProgress, Progress, Sample

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.engine.pipeline import Result

PASSES = 2  # the second one replaces stored rows that turned out to be damaged


_FLUSH = Flush()


class Reader(Protocol):
    """Who reads and encodes: `pipeline.run` in this process, or `crew.Crew` in several."""

    def __call__(
        self, samples: Sequence[Sample], ledger: Ledger, /
    ) -> Generator[Result, None, None]:
        """Each sample with its row, or with None where it failed or its content is in the ledger's
        claims already; in any order.
        """


@dataclass(frozen=True, slots=True)
class Embedding:
    """The features of a dataset and how they came about.

    Of the `embedded` rows, `cached` were in the store before and `encoded` went through the encoder
    in this run; the rest are copies of an image of this run. `skipped` counts files that are not
    images by name. `notes` are sentences for the user.
    """

    features: Features
    embedded: int
    cached: int
    encoded: int
    failed: int
    skipped: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images that the encoder saw, over the time of the whole run."""
        return self.encoded / self.seconds if self.seconds > 0 else 0.0

    def content_digest(self) -> str:
        """As the function `content_digest`, of the features."""
        return content_digest(self.features)


def content_digest(features: Features) -> str:
    """SHA-256 in hex over the sorted keys, their content hashes and their features.

    Features are rounded to 1/1000 of the root mean square of their row. On one machine and
    backend runs are bit-identical and so are digests. Another machine's rounding noise of
    1e-6 moves about one value in a thousand over an edge: equal digests prove agreement,
    unequal ones of two machines prove nothing, and `numpy.allclose` decides.
    """
    digest = hashlib.sha256()
    for row in sorted(range(len(features)), key=features.keys.__getitem__):
        digest.update(f"{features.keys[row]}\0{features.hashes[row]}\0".encode())
        digest.update(_rounded(features.X[row]))
    return digest.hexdigest()


def embed(
    dataset: Dataset,
    encoder: EncoderLike,
    *,
    store: RowStore | None = None,
    batch_size: int | Auto = "auto",
    workers: int | Auto = "auto",
    timeout_s: float | None = TIMEOUT_S,
    progress: Progress | None = None,
    flush: Flush = _FLUSH,
) -> Embedding:
    """The features of every image that can be used, and the failures, in the dataset's order.

    With a store, an image whose bytes are known under the encoder's fingerprint, or for a pooling
    that has all parts of this one, is not encoded again, and a file with an unchanged stamp is not
    even read. A decoding failure with an unchanged stamp is listed again without a new try, unless
    `flush` says so; a file that could not be read, or not within `timeout_s`, is tried each time.
    On Ctrl-C, or any error, what is finished is committed before it goes on to the caller. Raises
    StoreError, EncoderError, MismatchError and ConfigurationError.
    """

    read = reader_of(encoder, batch_size=batch_size, workers=workers, timeout_s=timeout_s)
    return embed_by(read, dataset, encoder, store=store, progress=progress, flush=flush)


def reader_of(
    encoder: EncoderLike,
    *,
    batch_size: int | Auto = "auto",
    workers: int | Auto = "auto",
    timeout_s: float | None = TIMEOUT_S,
) -> Reader:
    """The pipeline of this process as a `Reader`."""

    def read(samples: Sequence[Sample], ledger: Ledger) -> Generator[Result, None, None]:
        return run(
            samples,
            encoder,
            wanted=ledger.claims.claim,
            batch_size=batch_size,
            workers=workers,
            timeout_s=timeout_s,
        )

    return read


def embed_by(
    read: Reader,
    dataset: Dataset,
    encoder: Described,
    *,
    store: RowStore | None = None,
    progress: Progress | None = None,
    flush: Flush = _FLUSH,
) -> Embedding:
    """As `embed`, with the images read and encoded by `read`, as `encoder` describes it."""
    started = time.perf_counter()
    filling = Filling(read, dataset, encoder, store or MemoryStore(), progress, flush)
    ledger, samples = filling.ledger, filling.begin()
    for _ in range(PASSES):
        filling.work_off(samples)
        rows = read_rows(ledger, encoder)
        samples = ledger.take_back(frozenset(rows.position))
        if not samples:
            break
    else:
        raise lost_rows(samples)
    filling.finish()
    summary = ledger.summary()
    return Embedding(
        features=features_of(ledger, encoder, rows),
        embedded=summary.embedded,
        cached=summary.cached,
        encoded=summary.encoded,
        failed=len(summary.failures),
        skipped=summary.skipped,
        seconds=time.perf_counter() - started,
        notes=summary.notes,
    )


def write_failures(path: str | os.PathLike[str], failures: Iterable[Failure]) -> None:
    """A CSV file with the columns key, kind and reason, all or nothing."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(Failure._fields)
    table.writerows(failures)
    write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))


@final
class Filling:
    """One run of the engine into a store, for who reads the rows back himself: `begin`, `work_off`
    what it gave and what `ledger.take_back` finds missing, `finish`.
    """

    def __init__(
        self,
        read: Reader,
        dataset: Dataset,
        encoder: Described,
        store: RowStore,
        progress: Progress | None = None,
        flush: Flush = _FLUSH,
    ) -> None:
        kind = row_kind(encoder)
        self._read = read
        self._buffer = RowBuffer(store, kind)
        self._progress = progress or NoProgress()
        self.ledger = Ledger(dataset, kind, store, flush, self._buffer.commit)

    def begin(self) -> list[Sample]:
        """The samples that are left to do."""
        samples = self.ledger.open()
        self._progress.start(len(self.ledger.dataset), len(self.ledger.hashes))
        self._progress.advance(0, len(self.ledger.failures))
        return samples

    def work_off(self, samples: Sequence[Sample]) -> None:
        """Read and encode these; what is finished is committed, also on an error."""
        if not samples:
            self.ledger.flush()
            return
        with closing(self._read(samples, self.ledger)) as results:
            try:
                for loaded, row in results:
                    if row is not None and loaded.content_hash is not None:
                        self._buffer.add(loaded.content_hash, row)
                    self.ledger.add(loaded, encoded=row is not None)
                    failed = loaded.failure is not None
                    self._progress.advance(int(not failed), int(failed))
            finally:
                self.ledger.flush()

    def finish(self) -> None:
        """Tidy the store up."""
        self.ledger.tidy()
        self._progress.finish()


@final
@dataclass
class RowBuffer:
    """Rows that are not in the store yet."""

    store: RowStore
    kind: RowKind
    hashes: list[str] = field(default_factory=list)
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def add(self, name: str, row: npt.NDArray[np.float32]) -> None:
        """Take one row."""
        self.hashes.append(name)
        self.rows.append(row)

    def commit(self) -> None:
        """Append all of them, and hold none."""
        import numpy as np

        if not self.rows:
            return
        fingerprint, parts, description = self.kind
        X = np.stack(self.rows)
        self.store.append(fingerprint, self.hashes, X, parts=parts, description=description)
        self.hashes, self.rows = [], []


def read_rows(ledger: Ledger, encoder: Described) -> Rows:
    """The features of every hash of the ledger's dataset, from its store. Raises MismatchError."""
    fingerprint, parts, _ = ledger.kind
    rows = ledger.store.get(fingerprint, ledger.hashes.values(), parts=parts)
    if len(rows.X) and rows.X.shape[1] != encoder.dimension:
        raise MismatchError(
            f"the store holds rows of {rows.X.shape[1]} values under the fingerprint "
            f"{fingerprint}, the encoder gives {encoder.dimension}. "
            "Use another store, or delete that folder of it."
        )
    return rows


def features_of(ledger: Ledger, encoder: Described, rows: Rows) -> Features:
    """The features of a dataset, in its order, from rows that were read back."""
    import numpy as np

    dataset, samples = ledger.dataset, ledger.used()
    hashes = [ledger.hashes[sample.key] for sample in samples]
    y = np.empty(len(samples), dtype=object)
    y[:] = [sample.label for sample in samples]
    positions = np.asarray([rows.position[name] for name in hashes], dtype=np.intp)
    X = take(rows.X, positions) if len(samples) else np.empty((0, encoder.dimension), np.float32)
    return Features(
        keys=tuple(sample.key for sample in samples),
        X=X,
        y=y,
        classes=dataset.classes,
        fingerprint=encoder.fingerprint,
        hashes=tuple(hashes),
        splits=tuple(sample.split for sample in samples),
        groups=tuple(sample.group for sample in samples),
        failures=ledger.summary().failures,
        pooling=encoder.pooling if isinstance(encoder, Pools) else None,
        base_fingerprint=encoder.base_fingerprint if isinstance(encoder, Pools) else None,
    )


def _rounded(row: npt.NDArray[np.float32]) -> bytes:
    import numpy as np

    wide = row.astype(np.float64)
    scale = float(np.sqrt(np.mean(wide**2))) or 1.0
    return np.rint(wide / scale * 1000).astype("<i4").tobytes()
