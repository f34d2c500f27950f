"""A whole dataset to features, with a store in between: what is known is not computed again.

Progress is committed every 4,096 rows or 10 s, whichever is first, so a kill costs at most 10 s of
work and Lance gets at most 360 small fragments an hour, which the end of the run joins. Features
are committed before the manifest; an entry without its row only costs one more reading.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from dinoprobe.engine.pipeline import TIMEOUT_S, Auto, EncoderLike, Pools, run
from dinoprobe.engine.readers import RETRIED_KINDS, Loaded
from dinoprobe.errors import MismatchError, StoreError
from dinoprobe.files import write_atomic
from dinoprobe.pooling import parts_of
from dinoprobe.store import WHOLE, Entry, MemoryStore, Rows, RowStore
from dinoprobe.types import Dataset, Failure, Features, NoProgress, Progress, Sample

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.engine.pipeline import Result
    from dinoprobe.store import KnownHashes

_PASSES = 2  # the second one replaces stored rows that turned out to be damaged


@dataclass(frozen=True, slots=True)
class Flush:
    """What is finished is committed after so many rows or seconds, whichever is first."""

    rows: int = 4096
    seconds: float = 10.0


_FLUSH = Flush()


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
        """SHA-256 in hex over the sorted keys, their content hashes and their features.

        Features are rounded to 1/1000 of the root mean square of their row. On one machine and
        backend runs are bit-identical and so are digests. Another machine's rounding noise of
        1e-6 moves about one value in a thousand over an edge: equal digests prove agreement,
        unequal ones of two machines prove nothing, and `numpy.allclose` decides.
        """
        digest = hashlib.sha256()
        features = self.features
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
    even read. A decoding failure with an unchanged stamp is listed again without a new try; a file
    that could not be read, or not within `timeout_s`, is tried each time. On Ctrl-C, or any error,
    what is finished is committed before it goes on to the caller. Raises StoreError, EncoderError,
    MismatchError and ConfigurationError.
    """
    started = time.perf_counter()
    ledger = _Ledger(dataset, encoder, store or MemoryStore(), flush)
    progress = progress or NoProgress()
    samples = ledger.open()
    progress.start(len(dataset), len(ledger.hashes))
    progress.advance(0, len(ledger.failures))
    read = partial(
        run,
        encoder=encoder,
        wanted=ledger.claim,
        batch_size=batch_size,
        workers=workers,
        timeout_s=timeout_s,
    )
    for _ in range(_PASSES):
        _work_off(samples, read, ledger, progress)
        rows = ledger.rows()
        samples = ledger.take_back(rows)
        if not samples:
            break
    else:
        raise StoreError(
            f"{len(samples)} rows that were just stored can not be read back, the first for "
            f"{samples[0].key}. Expected sound rows. Check the disk, or use another store."
        )
    ledger.tidy()
    progress.finish()
    return ledger.embedding(rows, time.perf_counter() - started)


def write_failures(path: str | os.PathLike[str], failures: Iterable[Failure]) -> None:
    """A CSV file with the columns key, kind and reason, all or nothing."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(Failure._fields)
    table.writerows(failures)
    write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _work_off(
    samples: Sequence[Sample],
    read: Callable[[Sequence[Sample]], Generator[Result, None, None]],
    ledger: _Ledger,
    progress: Progress,
) -> None:
    if not samples:
        ledger.flush()
        return
    with closing(read(samples)) as results:
        try:
            for loaded, row in results:
                ledger.add(loaded, row)
                failed = loaded.failure is not None
                progress.advance(int(not failed), int(failed))
        finally:
            ledger.flush()


@final
@dataclass
class _Ledger:
    """What one run knows of its dataset, and what it has not committed yet.

    `hashes` and `failures` are by key. `claim` is called from the reader threads, all else from the
    calling thread.
    """

    dataset: Dataset
    encoder: EncoderLike
    store: RowStore
    due: Flush
    hashes: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    encoded: set[str] = field(default_factory=set)
    known_failures: int = 0
    damaged: int = 0
    untidy: str = ""

    def __post_init__(self) -> None:
        self._fingerprint, self._parts = _row_kind(self.encoder)
        self._entries: dict[str, Entry] = {}
        self._known: KnownHashes = frozenset()
        self._claimed: set[str] = set()
        self._lock = Lock()
        self._new_entries: list[Entry] = []
        self._new_hashes: list[str] = []
        self._new_rows: list[npt.NDArray[np.float32]] = []
        self._flushed_at = time.monotonic()

    def open(self) -> list[Sample]:
        """Read what is known; the samples that are left to do."""
        self._known = self.store.known(self._fingerprint, parts=self._parts)
        self._entries = self.store.manifest(self._fingerprint, self.dataset.uri)
        left = [sample for sample in self.dataset.samples if not self._recall(sample)]
        self.known_failures = len(self.failures)
        return left

    def claim(self, content_hash: str) -> bool:
        """True for the first sample of a hash that has no features yet."""
        with self._lock:
            if content_hash in self._claimed or content_hash in self._known:
                return False
            self._claimed.add(content_hash)
            return True

    def add(self, loaded: Loaded, row: npt.NDArray[np.float32] | None) -> None:
        """Take one result of the pipeline, and commit where that is due."""
        key, name = loaded.sample.key, loaded.content_hash
        self.failures.pop(key, None)
        if loaded.failure is not None:
            self.failures[key] = loaded.failure
        if name is not None:
            self.hashes[key] = name
        self._note(_entry(loaded))
        if row is not None and name is not None:
            self.encoded.add(name)
            self._new_hashes.append(name)
            self._new_rows.append(row)
        overdue = time.monotonic() - self._flushed_at >= self.due.seconds
        if len(self._new_entries) >= self.due.rows or overdue:
            self.flush()

    def flush(self) -> None:
        """Commit the features, then the manifest."""
        import numpy as np

        if self._new_rows:
            self.store.append(
                self._fingerprint,
                self._new_hashes,
                np.stack(self._new_rows),
                parts=self._parts,
                description=self._description(),
            )
            self._new_hashes, self._new_rows = [], []
        self.store.record(self._fingerprint, self.dataset.uri, self._new_entries)
        self._new_entries = []
        self._flushed_at = time.monotonic()

    def rows(self) -> Rows:
        """The features of every hash of this dataset, from the store."""
        rows = self.store.get(self._fingerprint, self.hashes.values(), parts=self._parts)
        if len(rows.X) and rows.X.shape[1] != self.encoder.dimension:
            raise MismatchError(
                f"the store holds rows of {rows.X.shape[1]} values under the fingerprint "
                f"{self._fingerprint}, the encoder gives {self.encoder.dimension}. "
                "Use another store, or delete that folder of it."
            )
        return rows

    def take_back(self, rows: Rows) -> list[Sample]:
        """Samples whose features should be stored and are not, to be done once more.

        A copy of an image that failed fails as its first one did.
        """
        failed = {self.hashes[key]: f for key, f in self.failures.items() if key in self.hashes}
        again = []
        for sample in self.dataset.samples:
            name = self.hashes.get(sample.key)
            if name is None or name in rows.position or sample.key in self.failures:
                continue
            if name in failed:
                self.failures[sample.key] = failed[name]._replace(key=sample.key)
            else:
                again.append(sample)
        missing = {self.hashes[sample.key] for sample in again}
        self.damaged += len(missing)
        self._known = frozenset(rows.position)
        self._claimed -= missing
        return again

    def tidy(self) -> None:
        """Compact the store; where that fails the features are there all the same."""
        try:
            self.store.compact(self._fingerprint, self.dataset.uri)
        except StoreError as error:
            self.untidy = str(error)

    def embedding(self, rows: Rows, seconds: float) -> Embedding:
        """The result, in the order of the dataset."""
        used = [s for s in self.dataset.samples if s.key not in self.failures]
        hashes = [self.hashes[sample.key] for sample in used]
        failures = tuple(
            self.failures[s.key] for s in self.dataset.samples if s.key in self.failures
        )
        cached = sum(name not in self.encoded for name in hashes)
        return Embedding(
            features=_features(self.dataset, used, hashes, rows, failures, self.encoder),
            embedded=len(used),
            cached=cached,
            encoded=len(self.encoded),
            failed=len(failures),
            skipped=sum(self.dataset.ignored.values()),
            seconds=seconds,
            notes=self._notes(len(used) - cached - len(self.encoded)),
        )

    def _description(self) -> dict[str, Any]:
        """What the rows of the store's table have in common."""
        described = dict(self.encoder.description)
        if isinstance(self.encoder, Pools):
            described.pop("pooling", None)
        return described

    def _recall(self, sample: Sample) -> bool:
        """Whether the manifest already says all about this sample."""
        entry = self._entries.get(sample.key)
        if entry is None or entry.stamp is None or not _unchanged(sample, entry):
            return False
        if entry.failure_kind is not None:
            if entry.failure_kind in RETRIED_KINDS:
                return False
            reason = entry.failure_reason or ""
            self.failures[sample.key] = Failure(sample.key, entry.failure_kind, reason)
        elif entry.content_hash is not None and entry.content_hash in self._known:
            self.hashes[sample.key] = entry.content_hash
        else:
            return False
        self._note(entry._replace(label=sample.label, split=sample.split, group=sample.group))
        return True

    def _note(self, entry: Entry) -> None:
        if self._entries.get(entry.key) != entry:
            self._entries[entry.key] = entry
            self._new_entries.append(entry)

    def _notes(self, copies: int) -> tuple[str, ...]:
        counts = {
            "{} images are animated or have pages: the first frame was used.": sum(
                self._entries[key].more_frames for key in self.hashes if key not in self.failures
            ),
            "{} images have the same bytes as another one and were encoded once.": copies,
            "{} failures are known from an earlier run; only touched files are tried again.": (
                self.known_failures
            ),
            "{} stored rows were damaged and were encoded again.": self.damaged,
        }
        notes = [text.format(f"{count:,}") for text, count in counts.items() if count]
        if self.untidy:
            notes.append(f"The features are stored, but the store was not compacted: {self.untidy}")
        return tuple(notes)


def _row_kind(encoder: EncoderLike) -> tuple[str, tuple[str, ...]]:
    """The fingerprint that the store's table is found by, and the parts of a row."""
    if isinstance(encoder, Pools):
        return encoder.base_fingerprint, parts_of(encoder.pooling)
    return encoder.fingerprint, WHOLE


def _unchanged(sample: Sample, entry: Entry) -> bool:
    try:
        return sample.source.stamp() == entry.stamp
    except OSError:
        return False


def _entry(loaded: Loaded) -> Entry:
    sample, failure = loaded.sample, loaded.failure
    return Entry(
        key=sample.key,
        stamp=loaded.stamp,
        content_hash=loaded.content_hash,
        label=sample.label,
        split=sample.split,
        group=sample.group,
        failure_kind=failure.kind if failure else None,
        failure_reason=failure.reason if failure else None,
        more_frames=loaded.more_frames,
    )


def _features(
    dataset: Dataset,
    samples: Sequence[Sample],
    hashes: Sequence[str],
    rows: Rows,
    failures: tuple[Failure, ...],
    encoder: EncoderLike,
) -> Features:
    import numpy as np

    y = np.empty(len(samples), dtype=object)
    y[:] = [sample.label for sample in samples]
    positions = np.asarray([rows.position[name] for name in hashes], dtype=np.intp)
    X = rows.X[positions] if len(samples) else np.empty((0, encoder.dimension), np.float32)
    return Features(
        keys=tuple(sample.key for sample in samples),
        X=X,
        y=y,
        classes=dataset.classes,
        fingerprint=encoder.fingerprint,
        hashes=tuple(hashes),
        splits=tuple(sample.split for sample in samples),
        groups=tuple(sample.group for sample in samples),
        failures=failures,
        pooling=encoder.pooling if isinstance(encoder, Pools) else None,
        base_fingerprint=encoder.base_fingerprint if isinstance(encoder, Pools) else None,
    )


def _rounded(row: npt.NDArray[np.float32]) -> bytes:
    import numpy as np

    wide = row.astype(np.float64)
    scale = float(np.sqrt(np.mean(wide**2))) or 1.0
    return np.rint(wide / scale * 1000).astype("<i4").tobytes()
