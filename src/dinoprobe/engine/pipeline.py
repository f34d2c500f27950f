"""Samples to rows, in their order: read ahead, decode, batch, encode.

A batch is only a matter of speed. On CPU 4 to 8 images are the optimum (larger ones leave the
cache), on CUDA 128; on CPU the features are bit-identical whatever the batch. Where memory runs out
the batch is halved and the same rows are run again.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from itertools import chain, islice
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from dinoprobe.engine.memory import Batcher, images_ahead
from dinoprobe.engine.pool import Pool, Task
from dinoprobe.engine.readers import Loaded, Reading, load, read_ahead
from dinoprobe.errors import ConfigurationError
from dinoprobe.processor import usable_cores
from dinoprobe.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.types import Sample

    Result = tuple["Loaded", npt.NDArray[np.float32] | None]

Auto = Literal["auto"]
BATCH_SIZE_CPU, BATCH_SIZE_CUDA = 4, 128
LANES_CUDA = 2  # one batch is copied and fetched while the other one computes
MAX_WORKERS = 16
TIMEOUT_S = 120.0  # of one image; 200 megapixels take some 4 s
# Results without an image that may wait in order, for each image of a batch: batches are full where
# one image in 128 is new. A waiting result takes 0.3 kB.
_WAITING_PER_IMAGE = 128


class Described(Protocol):
    """What a store needs to know of an encoder."""

    @property
    def dimension(self) -> int:
        """The length of a row."""

    @property
    def fingerprint(self) -> str:
        """Hex; changes with whatever changes the numbers of a feature."""

    @property
    def description(self) -> dict[str, Any]:
        """What the fingerprint stands for, as JSON values."""


class EncoderLike(Described, Protocol):
    """What the engine needs of an encoder."""

    @property
    def preprocessing(self) -> Any:
        """Handed to `preprocess.prepare`."""

    def encode(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        """`(n, 3, height, width)` as `prepare` gives it to `(n, dimension)` float32.

        Called from several threads at once, unless its `device` is neither a CPU nor CUDA or it
        has `is_spread` set.
        """


@runtime_checkable
class Pools(Protocol):
    """An encoder whose rows are the parts of a pooling, which a store hands out one by one."""

    @property
    def pooling(self) -> str:
        """Names the parts (`dinoprobe.pooling`)."""

    @property
    def base_fingerprint(self) -> str:
        """As `fingerprint`, of all but the pooling."""


class Encoded(NamedTuple):
    """The features of one sample: a row `(dimension,)` float32."""

    key: str
    content_hash: str
    row: npt.NDArray[np.float32]


def encode(
    samples: Iterable[Sample],
    encoder: EncoderLike,
    *,
    batch_size: int | Auto = "auto",
    workers: int | Auto = "auto",
    timeout_s: float | None = TIMEOUT_S,
) -> Iterator[Encoded | Failure]:
    """One result per sample, in their order, a few batches ahead of the caller.

    Raises EncoderError when memory does not suffice for a single image; a broken image is a
    `Failure` and stops nothing. So is one that is not read and decoded within `timeout_s`, which
    may be None, and ConfigurationError says when too many of those do not end.
    """
    results = run(samples, encoder, batch_size=batch_size, workers=workers, timeout_s=timeout_s)
    with closing(results):
        for loaded, row in results:
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
    timeout_s: float | None = TIMEOUT_S,
) -> Generator[Result, None, None]:
    """Each sample in order with its row, or with None where it failed or was not `wanted`.

    `wanted` is asked once for each sample that could be read, with its content hash, from several
    threads; on False the image is not decoded. When the generator ends or is closed its threads
    have ended, save those that hang.
    """
    from dinoprobe.preprocess import prepare

    size, threads = _batch_size(batch_size, encoder), _workers(workers)
    preprocessing = encoder.preprocessing

    def work(reading: Reading) -> Loaded:
        return load(reading, lambda image: prepare(image, preprocessing), wanted)

    loaded = read_ahead(
        samples,
        work,
        threads,
        start=single_threaded(),
        ahead=images_ahead(size, threads),
        limit_s=_limit(timeout_s),
    )
    with closing(loaded):
        yield from _encoded(loaded, encoder, size, min(threads, _workers("auto")))


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

    def encode_paired(batch: list[Loaded]) -> list[Result]:
        return list(_paired(batch, encode_batch(batch)))

    first = deque(islice(batches, 2))
    on_cuda = _device(encoder).startswith("cuda")
    one_by_one = (
        len(first) < 2 or not (on_cuda or _on_cpu(encoder)) or getattr(encoder, "is_spread", False)
    )
    every = chain((first.popleft() for _ in range(len(first))), batches)
    if one_by_one:
        for batch in every:
            yield from encode_paired(batch)
    else:
        yield from _in_lanes(every, encode_paired, LANES_CUDA if on_cuda else lanes)


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
    batches: Iterator[list[Loaded]], work: Callable[[list[Loaded]], list[Result]], lanes: int
) -> Iterator[Result]:
    """Each core encodes a batch of its own, on one thread.

    A batch spread over the cores waits at every layer for the slowest one: on two cores that other
    processes used too, a small ViT did 8 images/s so, and 234 on one thread.
    """
    pool = Pool("dinoprobe-encoder", lanes, work, start=single_threaded(), stoppable=True)
    pending: deque[Task[list[Loaded], list[Result]]] = deque()
    try:
        while True:
            pending.extend(map(pool.submit, islice(batches, lanes + 1 - len(pending))))
            if not pending:
                return
            yield from pool.result(pending.popleft())
    finally:
        pool.close()


def _on_cpu(encoder: EncoderLike) -> bool:
    return _device(encoder).startswith("cpu")


def _device(encoder: EncoderLike) -> str:
    return str(getattr(encoder, "device", "cpu"))


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
        return max(1, min(usable_cores(), MAX_WORKERS))
    return _positive("workers", workers)


def _limit(timeout_s: float | None) -> float | None:
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ConfigurationError(
            f"timeout {timeout_s!r}: expected seconds, more than 0, or None for never. Leave it "
            f"out for {TIMEOUT_S:g}."
        )
    return timeout_s


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{name} {value!r}: expected a whole number of at least 1, or 'auto'. Leave it out."
        )
    return value
