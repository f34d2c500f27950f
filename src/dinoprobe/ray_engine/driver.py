"""The driver: what is left to do goes out in chunks, reports come back and are committed together.

Chunks of up to 131,072 images go through Ray Data. What a dead process had not reported goes
through again in chunks of 32 where it is much, and what was lost then is tried image by image. One
that kills its process twice, alone, is a failure like another, of the kind `killed`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, final

from dinoprobe.datasets.transport import Packed, pack, to_bytes
from dinoprobe.engine.embedding import PASSES, features_of, read_rows
from dinoprobe.engine.ledger import Flush, Ledger, Summary, lost_rows
from dinoprobe.engine.readers import Loaded, killed
from dinoprobe.types import Dataset, Failure, NoProgress, Progress, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dinoprobe.engine.facts import Facts
    from dinoprobe.ray_engine.cluster import Cluster
    from dinoprobe.ray_engine.report import Report
    from dinoprobe.ray_engine.worker import Job
    from dinoprobe.store import FeatureStore
    from dinoprobe.types import Features

_LARGEST_CHUNK = 1 << 17  # the rows of one file of features
_CHUNKS_PER_ACTOR = 16  # so that the last one to end is waited for at most so long
_SMALLEST_CHUNK = 16
_FEW = 32
_CHUNK_BYTES = 64 << 20
_SHARE_OF_ROOM = 0.25


class RayEmbedding(NamedTuple):
    """How a job ended. The features stay in the store."""

    summary: Summary
    ledger: Ledger
    seconds: float

    def features(self, facts: Facts) -> Features:
        """All of them, read back into this process. Raises StoreError where rows are damaged."""
        rows = read_rows(self.ledger, facts)
        damaged = self.ledger.take_back(frozenset(rows.position))
        if damaged:
            raise lost_rows(damaged)
        return features_of(self.ledger, facts, rows)


def embed_on_ray(
    dataset: Dataset,
    job: Job,
    facts: Facts,
    *,
    cluster: Cluster,
    store: FeatureStore,
    flush: Flush,
    progress: Progress | None = None,
) -> RayEmbedding:
    """The features of every image that can be used, in the store.

    As `engine.embed`, but rows are not read back: their checksums are for who reads them. A worker
    reports, and the driver commits, every `flush.seconds` / 2, so a kill of any process, the
    driver's too, loses at most the work of `flush.seconds`. Raises what `engine.embed` does.
    """
    started = time.perf_counter()
    staged = _Staged(store, facts.kind.fingerprint)
    due = replace(flush, rows=_LARGEST_CHUNK * 64, seconds=flush.seconds / 2)
    ledger = Ledger(dataset, facts.kind, store, due, staged.commit)
    run = _Run(cluster, job, ledger, staged, progress or NoProgress())
    samples = ledger.open()
    run.progress.start(len(dataset), len(ledger.hashes))
    run.progress.advance(0, len(ledger.failures))
    for _ in range(PASSES):
        try:
            run.work_off(samples)
        finally:
            ledger.flush()
        samples = ledger.take_back(store.known(facts.kind.fingerprint, parts=facts.kind.parts))
        if not samples:
            break
    else:
        raise lost_rows(samples)
    ledger.tidy()
    run.progress.finish()
    return RayEmbedding(ledger.summary(), ledger, time.perf_counter() - started)


@final
@dataclass
class _Staged:
    """Files that workers wrote and nobody committed yet."""

    store: FeatureStore
    fingerprint: str
    files: list[str] = field(default_factory=list)

    def commit(self) -> None:
        """All of them at once."""
        self.store.append_staged(self.fingerprint, self.files)
        self.files = []


@final
@dataclass
class _Run:
    """One run of the engine, over all of its passes."""

    cluster: Cluster
    job: Job
    ledger: Ledger
    staged: _Staged
    progress: Progress

    def work_off(self, samples: Sequence[Sample]) -> None:
        """Every sample once, whatever dies meanwhile."""
        if not samples:
            return
        known = self.cluster.share(self.ledger.claims.known)
        for wave in _waves(self._packed(samples), self.cluster.room_bytes() * _SHARE_OF_ROOM):
            actors = self.cluster.plan.actors
            size = max(_SMALLEST_CHUNK, -(-len(wave) // (actors * _CHUNKS_PER_ACTOR)))
            lost = self._stream(samples, wave, min(size, _LARGEST_CHUNK), known, queued=2)
            if len(lost) > _FEW * actors:
                lost = self._stream(samples, lost, _FEW, known, queued=1)
            self._one_by_one(samples, lost, known)

    def _packed(self, samples: Sequence[Sample]) -> Iterator[Packed]:
        """What travels. An image that only this process can read, and can not, fails here."""
        for number, sample in enumerate(samples):
            try:
                yield pack(number, sample)
            except OSError as error:
                failure = Failure(sample.key, "unreadable", " ".join(str(error).split()))
                self.ledger.add(Loaded(sample, failure=failure), encoded=False)
                self.progress.advance(0, 1)

    def _stream(
        self, samples: Sequence[Sample], packed: Sequence[Packed], size: int, known: object,
        *, queued: int,
    ) -> list[Packed]:  # fmt: skip
        """Put these through in chunks of this size; what no report came of is returned."""
        left = {one.number: one for one in packed}
        if packed:
            chunks = [to_bytes(chunk) for chunk in _chunks(packed, size)]
            for report in self.cluster.stream(chunks, self.job, known, queued=queued):
                self._take(samples, report)
                for done in report.done:
                    left.pop(done.number, None)
        return list(left.values())

    def _one_by_one(
        self, samples: Sequence[Sample], packed: Sequence[Packed], known: object
    ) -> None:
        """The last resort, which ends with a report or a failure for each of them."""
        chunks = [to_bytes([one]) for one in packed]
        for number, outcome in self.cluster.alone(chunks, self.job, known) if chunks else ():
            if not isinstance(outcome, str):
                for report in outcome:
                    self._take(samples, report)
                continue
            sample = samples[packed[number].number]
            self.ledger.add(killed(sample, outcome), encoded=False)
            self.progress.advance(0, 1)

    def _take(self, samples: Sequence[Sample], report: Report) -> None:
        report.check()
        self.progress.advance(report.images, report.failures)
        self.staged.files += report.staged
        for done in report.done:
            self.ledger.add(done.loaded(samples[done.number]), encoded=done.encoded)


def _waves(packed: Iterable[Packed], room_bytes: float) -> Iterator[list[Packed]]:
    """As many at a time as the cluster has room for on their way."""
    wave: list[Packed] = []
    size = 0
    for one in packed:
        wave.append(one)
        size += one.size_bytes
        if size >= room_bytes:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


def _chunks(packed: Sequence[Packed], size: int) -> Iterator[list[Packed]]:
    """Neighbours, so many, or fewer where they carry more than 64 MiB."""
    chunk: list[Packed] = []
    carried = 0
    for one in packed:
        chunk.append(one)
        carried += one.size_bytes
        if len(chunk) >= size or carried >= _CHUNK_BYTES:
            yield chunk
            chunk, carried = [], 0
    if chunk:
        yield chunk
