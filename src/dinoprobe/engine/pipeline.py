"""Samples to rows, in their order: read ahead, decode, batch, encode.

A batch is only a matter of speed. On CPU 4 to 8 images are the optimum (larger ones leave the
cache), on CUDA 128; on CPU the features are bit-identical whatever the batch. Where memory runs out
the batch is halved and the same rows are run again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from dinoprobe.engine.memory import Batcher
from dinoprobe.errors import ConfigurationError, ImageError
from dinoprobe.types import Failure, Sample, Stamp, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    Result = tuple["Loaded", npt.NDArray[np.float32] | None]

Auto = Literal["auto"]
BATCH_SIZE_CPU, BATCH_SIZE_CUDA = 8, 128
MAX_WORKERS = 16
# What may go well the next time with the same bytes: another disk, another extra, more memory.
RETRIED_KINDS = frozenset({"unreadable", "unsupported-format", "too-large"})
_WAITING_PER_IMAGE = 16  # results without an image that may wait in order behind one with an image
_YOUNG_NS = 2_000_000_000  # a file this young can change again without its stamp changing


class EncoderLike(Protocol):
    """What the engine needs of an encoder."""

    @property
    def preprocessing(self) -> Any:
        """Handed to `preprocess.prepare`."""

    @property
    def dimension(self) -> int:
        """The length of a row."""

    @property
    def fingerprint(self) -> str:
        """Hex; changes with whatever changes the numbers of a feature."""

    @property
    def description(self) -> dict[str, Any]:
        """What the fingerprint stands for, as JSON values."""

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """`(n, 3, height, width)` as `prepare` gives it to `(n, dimension)` float32.

        Called from several threads at once, unless its `device` is something else than a CPU or it
        has `is_spread` set.
        """


class Encoded(NamedTuple):
    """The features of one sample: a row `(dimension,)` float32."""

    key: str
    content_hash: str
    row: npt.NDArray[np.float32]


class Loaded(NamedTuple):
    """A sample that was read. `image` is None where it failed or its features are not wanted.

    `more_frames` says that it is an animation or has pages, of which the first is used.
    """

    sample: Sample
    stamp: Stamp | None = None
    content_hash: str | None = None
    image: torch.Tensor | None = None
    failure: Failure | None = None
    more_frames: bool = False


def encode(
    samples: Iterable[Sample],
    encoder: EncoderLike,
    *,
    batch_size: int | Auto = "auto",
    workers: int | Auto = "auto",
) -> Iterator[Encoded | Failure]:
    """One result per sample, in their order, a few batches ahead of the caller.

    Raises EncoderError when memory does not suffice for a single image; a broken image is a
    `Failure` and stops nothing.
    """
    for loaded, row in run(samples, encoder, batch_size=batch_size, workers=workers):
        if loaded.failure is not None or row is None or loaded.content_hash is None:
            yield loaded.failure or Failure(loaded.sample.key, "unreadable", "no content")
        else:
            yield Encoded(loaded.sample.key, loaded.content_hash, row)


def run(
    samples: Iterable[Sample],
    encoder: EncoderLike,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
    batch_size: int | Auto = "auto",
    workers: int | Auto = "auto",
) -> Generator[Result, None, None]:
    """Each sample in order with its row, or with None where it failed or was not `wanted`.

    `wanted` is asked once for each sample that could be read, with its content hash, from several
    threads; on False the image is not decoded.
    """
    from dinoprobe.preprocess import prepare

    size, threads = _batch_size(batch_size, encoder), _workers(workers)
    preprocessing = encoder.preprocessing

    def load(sample: Sample) -> Loaded:
        return _load(sample, lambda image: prepare(image, preprocessing), wanted)

    loaded = _read_ahead(samples, load, threads, ahead=2 * size + 2 * threads)
    try:
        yield from _encoded(loaded, encoder, size, min(threads, _workers("auto")))
    finally:
        loaded.close()


def _load(
    sample: Sample, decode: Callable[[Any], torch.Tensor], wanted: Callable[[str], bool]
) -> Loaded:
    """Read, hash and, where wanted, decode one sample. The stamp is taken before the reading, so a
    change in between shows at the next run.
    """
    from dinoprobe.preprocess import has_more_frames

    try:
        stamp = _lasting(sample.source.stamp())
        content = sample.source.read()
    except OSError as error:
        return Loaded(sample, failure=Failure(sample.key, "unreadable", _text(error)))
    name = content_hash(content)
    more = isinstance(content, bytes) and has_more_frames(content)
    loaded = Loaded(sample, stamp, name, more_frames=more)
    if not wanted(name):
        return loaded
    try:
        return loaded._replace(image=decode(content))
    except ImageError as error:
        return loaded._replace(failure=Failure(sample.key, error.kind, _text(error)))
    except MemoryError:
        reason = "not enough memory to decode it; use fewer workers"
        return loaded._replace(failure=Failure(sample.key, "too-large", reason))


def _lasting(stamp: Stamp | None) -> Stamp | None:
    """The stamp, or None where the file is so young that a change might leave the stamp as it is:
    file systems count time in steps of up to 2 s.
    """
    if stamp is None or time.time_ns() - stamp.mtime_ns < _YOUNG_NS:
        return None
    return stamp


def _read_ahead(
    samples: Iterable[Sample], load: Callable[[Sample], Loaded], workers: int, *, ahead: int
) -> Generator[Loaded, None, None]:
    """`load` of each sample, in order, with at most `ahead` of them under way or waiting."""
    source = iter(samples)
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="dinoprobe-reader", initializer=single_threaded()
    )
    pending: deque[Future[Loaded]] = deque()
    try:
        pending.extend(pool.submit(load, sample) for sample in islice(source, ahead))
        while pending:
            loaded = pending.popleft().result()
            pending.extend(pool.submit(load, sample) for sample in islice(source, 1))
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def single_threaded() -> Callable[[], None]:
    """Makes torch use one thread in the thread that calls it, and leaves all others as they are.

    Without it the exact resize starts a team of threads for every reader: 16 times 16 on 16 cores.
    torch keeps the count per thread, but also as the first value of threads to come; a thread of
    its own puts that back.
    """
    import torch

    count, lock = torch.get_num_threads(), Lock()

    def start() -> None:
        with lock:
            torch.get_num_threads()  # takes the common value, which would else come later
            torch.set_num_threads(1)
            restore = Thread(target=torch.set_num_threads, args=(count,))
            restore.start()
            restore.join()

    return start


def _encoded(
    loaded: Iterator[Loaded], encoder: EncoderLike, size: int, lanes: int
) -> Iterator[Result]:
    """Batches in order; a first batch that is also the last one has the whole machine."""
    batches = _batches(loaded, size)
    encode_batch = Batcher(encoder, size)
    first, second = next(batches, None), next(batches, None)
    every = chain(*([batch] for batch in (first, second) if batch), batches)
    if second is None or not _on_cpu(encoder) or getattr(encoder, "is_spread", False):
        for batch in every:
            yield from _paired(batch, encode_batch(batch))
    else:
        yield from _in_lanes(every, encode_batch, lanes)


def _batches(loaded: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Neighbours with `size` images among them; fewer at the end, or where few have an image."""
    waiting: list[Loaded] = []
    images = 0
    for item in loaded:
        waiting.append(item)
        images += item.image is not None
        if images >= size or len(waiting) >= size * _WAITING_PER_IMAGE:
            yield waiting
            waiting, images = [], 0
    if waiting:
        yield waiting


def _in_lanes(
    batches: Iterable[list[Loaded]], encode_batch: Batcher, lanes: int
) -> Iterator[Result]:
    """Each core encodes a batch of its own, on one thread.

    A batch spread over the cores waits at every layer for the slowest one: on two cores that other
    processes used too, a small ViT did 8 images/s so, and 234 on one thread.
    """
    pending: deque[tuple[list[Loaded], Future[npt.NDArray[np.float32]]]] = deque()
    pool = ThreadPoolExecutor(
        lanes, thread_name_prefix="dinoprobe-encoder", initializer=single_threaded()
    )
    source = iter(batches)
    try:
        while True:
            for batch in islice(source, lanes + 1 - len(pending)):
                pending.append((batch, pool.submit(encode_batch, batch)))
            if not pending:
                return
            batch, rows = pending.popleft()
            yield from _paired(batch, rows.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _on_cpu(encoder: EncoderLike) -> bool:
    return str(getattr(encoder, "device", "cpu")).startswith("cpu")


def _paired(waiting: Sequence[Loaded], rows: npt.NDArray[np.float32]) -> Iterator[Result]:
    """Each waiting item, without its image, with its row; a row that is not finite is a failure."""
    import numpy as np

    following = iter(rows)
    for item in waiting:
        if item.image is None:
            yield item, None
            continue
        row = next(following)
        if np.isfinite(row).all():
            yield item._replace(image=None), row
        else:
            reason = "the encoder gave NaN or infinity; try dtype float32"
            failure = Failure(item.sample.key, "non-finite", reason)
            yield item._replace(image=None, failure=failure), None


def _batch_size(batch_size: int | Auto, encoder: EncoderLike) -> int:
    if batch_size == "auto":
        return BATCH_SIZE_CPU if _on_cpu(encoder) else BATCH_SIZE_CUDA
    return _positive("batch size", batch_size)


def _workers(workers: int | Auto) -> int:
    if workers == "auto":
        usable = getattr(os, "sched_getaffinity", None)
        count = len(usable(0)) if usable else os.cpu_count() or 1
        return max(1, min(count, MAX_WORKERS))
    return _positive("workers", workers)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{name} {value!r}: expected a whole number of at least 1, or 'auto'. Leave it out."
        )
    return value


def _text(error: Exception) -> str:
    """The message on one line, as valid UTF-8: it names files."""
    if isinstance(error, FileNotFoundError):
        return "no such file. Check the path"
    return " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
