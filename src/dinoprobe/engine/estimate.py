"""What a run would cost, from a sample: nothing is written.

A sample tells the mean of a dataset. It does not tell of an object store that slows down under many
readers, nor of workers that share a disk.
"""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.engine.ledger import Flush, Ledger
from dinoprobe.engine.pipeline import run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dinoprobe.engine.ledger import RowKind
    from dinoprobe.engine.pipeline import Auto, EncoderLike
    from dinoprobe.store import RowStore
    from dinoprobe.types import Dataset, Sample

SAMPLE = 512
_WARM_UP = 16  # the first images pay for buffers and compilation
_ENOUGH_S = 20.0
_HASH_BYTES, _CHECK_BYTES, _VALUE_BYTES = 32, 4, 4


class Measured(NamedTuple):
    """Some images, how many bytes their files have, and the seconds they took."""

    images: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do. `sampled` images gave the rate of one of `workers`, and the bytes of an
    image; of the `images`, `known` need not be read.
    """

    images: int
    known: int
    known_failures: int
    sampled: int
    left_bytes: int
    images_per_second: float
    workers: int
    store_bytes: int

    @property
    def left(self) -> int:
        """Images that would be read, and encoded where their content is new."""
        return self.images - self.known - self.known_failures

    @property
    def seconds(self) -> float:
        """Of the run, without its start."""
        return self.left / self.images_per_second if self.images_per_second else 0.0


def estimate(
    dataset: Dataset,
    kind: RowKind,
    dimension: int,
    store: RowStore,
    measure: Callable[[Sequence[Sample]], Measured],
    *,
    workers: int = 1,
    retry_failures: bool = False,
) -> Estimate:
    """What embedding a dataset would cost, by `measure` on up to 512 of the images that are left,
    drawn by chance, in one of `workers` equal workers. Reads the store and writes nothing.
    """
    ledger = Ledger(dataset, kind, store, Flush(retry_failures=retry_failures), lambda: None)
    left = ledger.open()
    drawn = random.Random(0).sample(left, min(SAMPLE, len(left)))  # noqa: S311 - a sample
    measured = measure(drawn) if drawn else Measured(0, 0, 0.0)
    share = 1 / measured.images if measured.images else 0.0
    row = _HASH_BYTES + len(kind.parts) * _CHECK_BYTES + dimension * _VALUE_BYTES
    return Estimate(
        images=len(dataset),
        known=len(ledger.hashes),
        known_failures=len(ledger.failures),
        sampled=measured.images,
        left_bytes=round(len(left) * measured.size_bytes * share),
        images_per_second=workers * measured.images / measured.seconds if measured.images else 0.0,
        workers=workers,
        store_bytes=len(left) * row,
    )


def measure(
    samples: Sequence[Sample],
    encoder: EncoderLike,
    *,
    batch_size: int | Auto = "auto",
    workers: int | Auto = "auto",
) -> Measured:
    """Images a second through the engine: of all samples, or of what is done after 20 s."""
    warm, timed = samples[:_WARM_UP], samples[_WARM_UP:] or samples
    for _ in run(warm, encoder, batch_size=batch_size, workers=workers):
        pass
    started, images, size = time.perf_counter(), 0, 0
    seconds = 0.0
    with closing(run(timed, encoder, batch_size=batch_size, workers=workers)) as results:
        for loaded, _ in results:
            images += 1
            size += loaded.stamp.size_bytes if loaded.stamp else _size(loaded.sample)
            seconds = time.perf_counter() - started
            if seconds >= _ENOUGH_S:
                break
    return Measured(images, size, seconds)


def _size(sample: Sample) -> int:
    try:
        content = sample.source.read()
    except OSError:
        return 0
    return len(content) if isinstance(content, bytes) else content.nbytes
