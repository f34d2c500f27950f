"""What one run knows of its dataset: shared by the engine of this machine and that of a cluster.

Features and manifest are committed together, the features first: an entry without its row only
costs one more reading. Who computes the features, and how their rows get into the store, is the
caller's: `commit` is called before the entries are recorded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, final

from dinoprobe.engine.pipeline import Described, Pools
from dinoprobe.engine.readers import RETRIED_KINDS, Loaded
from dinoprobe.errors import StoreError
from dinoprobe.pooling import parts_of
from dinoprobe.store import WHOLE, Entry, RowStore
from dinoprobe.types import Dataset, Failure, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dinoprobe.store import KnownHashes


@dataclass(frozen=True, slots=True)
class Flush:
    """What is finished is committed after so many rows or seconds, whichever is first. With
    `retry_failures` images that failed in an earlier run are tried again.
    """

    rows: int = 4096
    seconds: float = 10.0
    retry_failures: bool = False


class RowKind(NamedTuple):
    """The fingerprint that the store's table is found by, the parts of a row, and what the rows
    of the table have in common.
    """

    fingerprint: str
    parts: tuple[str, ...]
    description: dict[str, Any]


def row_kind(encoder: Described) -> RowKind:
    """What an encoder's rows are to a store."""
    description = dict(encoder.description)
    if isinstance(encoder, Pools):
        description.pop("pooling", None)
        return RowKind(encoder.base_fingerprint, parts_of(encoder.pooling), description)
    return RowKind(encoder.fingerprint, WHOLE, description)


@final
class Claims:
    """Which images are to be encoded, by their content: each of them once. For several threads."""

    def __init__(self, known: KnownHashes) -> None:
        self.known = known
        self._claimed: set[str] = set()
        self._lock = Lock()

    def claim(self, content_hash: str) -> bool:
        """True for the first sample of a hash that has no features yet."""
        with self._lock:
            if content_hash in self._claimed or content_hash in self.known:
                return False
            self._claimed.add(content_hash)
            return True

    def learn(self, encoded: Iterable[str]) -> None:
        """These have features by now, from other processes."""
        with self._lock:
            self._claimed.update(encoded)

    def give_back(self, missing: set[str], known: KnownHashes) -> None:
        """These may be claimed once more; `known` is what has features now."""
        with self._lock:
            self.known = known
            self._claimed -= missing


class Summary(NamedTuple):
    """How a run ended. Of the `embedded` images, `cached` had features before and `encoded` went
    through the encoder; the rest are copies of an image of this run. `skipped` counts files that
    are not images by name, `notes` are sentences for the user.
    """

    embedded: int
    cached: int
    encoded: int
    failures: tuple[Failure, ...]
    skipped: int
    notes: tuple[str, ...]


@final
@dataclass
class Ledger:
    """What one run knows of its dataset, and what it has not recorded yet.

    `hashes` and `failures` are by key. `claims` are for reader threads, all else for the caller's.
    """

    dataset: Dataset
    kind: RowKind
    store: RowStore
    due: Flush
    commit: Callable[[], None]
    hashes: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    encoded: set[str] = field(default_factory=set)
    claims: Claims = field(default_factory=lambda: Claims(frozenset()))
    known_failures: int = 0
    damaged: int = 0
    untidy: str = ""

    def __post_init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._new_entries: list[Entry] = []
        self._flushed_at = time.monotonic()

    def open(self) -> list[Sample]:
        """Read what is known; the samples that are left to do."""
        self.claims = Claims(self.store.known(self.kind.fingerprint, parts=self.kind.parts))
        self._entries = self.store.manifest(self.kind.fingerprint, self.dataset.uri)
        left = [sample for sample in self.dataset.samples if not self._recall(sample)]
        self.known_failures = len(self.failures)
        return left

    def add(self, loaded: Loaded, *, encoded: bool) -> None:
        """Take one result, whose features `commit` will store, and commit where that is due."""
        key, name = loaded.sample.key, loaded.content_hash
        self.failures.pop(key, None)
        if loaded.failure is not None:
            self.failures[key] = loaded.failure
        if name is not None:
            self.hashes[key] = name
            if encoded:
                self.encoded.add(name)
        self._note(_entry(loaded))
        overdue = time.monotonic() - self._flushed_at >= self.due.seconds
        if len(self._new_entries) >= self.due.rows or overdue:
            self.flush()

    def flush(self) -> None:
        """Commit the features, then the manifest."""
        self.commit()
        self.store.record(self.kind.fingerprint, self.dataset.uri, self._new_entries)
        self._new_entries = []
        self._flushed_at = time.monotonic()

    def take_back(self, found: KnownHashes) -> list[Sample]:
        """Samples whose features should be stored and are not among the `found`, to be done once
        more. A copy of an image that failed fails as its first one did.
        """
        failed = {self.hashes[key]: f for key, f in self.failures.items() if key in self.hashes}
        again = []
        for sample in self.dataset.samples:
            name = self.hashes.get(sample.key)
            if name is None or name in found or sample.key in self.failures:
                continue
            if name in failed:
                self.failures[sample.key] = failed[name]._replace(key=sample.key)
            else:
                again.append(sample)
        missing = {self.hashes[sample.key] for sample in again}
        self.damaged += len(missing)
        self.claims.give_back(missing, found)
        return again

    def tidy(self) -> None:
        """Compact the store; where that fails the features are there all the same."""
        try:
            self.store.compact(self.kind.fingerprint, self.dataset.uri)
        except StoreError as error:
            self.untidy = str(error)

    def used(self) -> list[Sample]:
        """The samples that have features, in the order of the dataset."""
        return [s for s in self.dataset.samples if s.key not in self.failures]

    def summary(self) -> Summary:
        """How it ended, with the failures in the order of the dataset."""
        hashes = [self.hashes[sample.key] for sample in self.used()]
        cached = sum(name not in self.encoded for name in hashes)
        return Summary(
            embedded=len(hashes),
            cached=cached,
            encoded=len(self.encoded),
            failures=tuple(
                self.failures[s.key] for s in self.dataset.samples if s.key in self.failures
            ),
            skipped=sum(self.dataset.ignored.values()),
            notes=self._notes(len(hashes) - cached - len(self.encoded)),
        )

    def _recall(self, sample: Sample) -> bool:
        """Whether the manifest already says all about this sample."""
        entry = self._entries.get(sample.key)
        if entry is None or entry.stamp is None or not _unchanged(sample, entry):
            return False
        if entry.failure_kind is not None:
            if self.due.retry_failures or entry.failure_kind in RETRIED_KINDS:
                return False
            reason = entry.failure_reason or ""
            self.failures[sample.key] = Failure(sample.key, entry.failure_kind, reason)
        elif entry.content_hash is not None and entry.content_hash in self.claims.known:
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


def lost_rows(samples: Sequence[Sample]) -> StoreError:
    """The error for rows that were stored, replaced once, and still can not be read back."""
    return StoreError(
        f"{len(samples)} rows that were just stored can not be read back, the first for "
        f"{samples[0].key}. Expected sound rows. Check the disk, or use another store."
    )


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
