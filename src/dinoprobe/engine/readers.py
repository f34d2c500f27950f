"""Samples to images, in their order, by threads that read, hash and decode ahead.

A sample that takes longer than its limit is a failure like another. Its thread may go on, and holds
what it holds, so there is a limit for those too.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, final

from dinoprobe.engine.pool import LateError, Pool, Task
from dinoprobe.errors import ConfigurationError, ImageError
from dinoprobe.types import Failure, Sample, Stamp, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    import torch

STUCK_PER_WORKER = 4  # threads that were given up and do not end, each with what it holds
# What may go well the next time with the same bytes: another disk, another extra, more memory,
# another pooling, for which a manifest is kept together.
RETRIED_KINDS = frozenset(
    {"unreadable", "unsupported-format", "too-large", "timeout", "non-finite"}
)
_YOUNG_NS = 2_000_000_000  # a file this young can change again without its stamp changing


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


@final
@dataclass(slots=True)
class Reading:
    """A sample on its way through a reader thread: what is known of it, should it get stuck.

    The thread notes the hash before it looks at `given_up`, the other side sets that before it
    looks for a hash. So a thread that was given up claims no image that nobody hears of.
    """

    known: Loaded
    given_up: bool = False


def load(
    reading: Reading, decode: Callable[[Any], torch.Tensor], wanted: Callable[[str], bool]
) -> Loaded:
    """Read, hash and, where wanted, decode one sample. The stamp is taken before the reading, so a
    change in between shows at the next run.
    """
    from dinoprobe.preprocess import has_more_frames

    sample = reading.known.sample
    try:
        stamp = lasting_stamp(sample)
        content = sample.source.read()
    except OSError as error:
        return Loaded(sample, failure=Failure(sample.key, "unreadable", _text(error)))
    name = content_hash(content)
    reading.known = Loaded(sample, stamp, name)
    more = isinstance(content, bytes) and has_more_frames(content)
    loaded = reading.known._replace(more_frames=more)
    if reading.given_up or not wanted(name):
        return loaded
    try:
        return loaded._replace(image=decode(content))
    except ImageError as error:
        return loaded._replace(failure=Failure(sample.key, error.kind, _text(error)))
    except MemoryError:
        reason = "not enough memory to decode it; use fewer workers"
        return loaded._replace(failure=Failure(sample.key, "too-large", reason))


def lasting_stamp(sample: Sample) -> Stamp | None:
    """The stamp, or None where the file is so young that a change might leave the stamp as it is:
    file systems count time in steps of up to 2 s. Raises OSError when the file is gone.
    """
    stamp = sample.source.stamp()
    if stamp is None or time.time_ns() - stamp.mtime_ns < _YOUNG_NS:
        return None
    return stamp


def killed(sample: Sample, how: str) -> Loaded:
    """The failure of a sample whose process died twice; `how` is in words."""
    try:
        stamp = lasting_stamp(sample)
    except OSError:
        stamp = None
    reason = (
        f"the process that read it died ({how}), and so did a second one that did nothing else. "
        "It is not tried again before the file changes; --retry-failures does"
    )
    return Loaded(sample, stamp, failure=Failure(sample.key, "killed", reason))


def read_ahead(
    samples: Iterable[Sample],
    work: Callable[[Reading], Loaded],
    workers: int,
    *,
    start: Callable[[], None],
    ahead: int,
    limit_s: float | None,
) -> Generator[Loaded, None, None]:
    """`work` on each sample, in order, with at most `ahead` of them under way or waiting."""
    readings = (Reading(Loaded(sample)) for sample in samples)
    pool = Pool("dinoprobe-reader", workers, work, start=start, limit_s=limit_s)
    pending: deque[tuple[Reading, Task[Reading, Loaded]]] = deque()
    try:
        pending.extend((reading, pool.submit(reading)) for reading in islice(readings, ahead))
        while pending:
            reading, task = pending.popleft()
            try:
                loaded = pool.result(task)
            except LateError:
                loaded = _given_up(reading, limit_s)
                _check_stuck(pool.stuck, workers, reading.known.sample.key)
            del task
            pending.extend((reading, pool.submit(reading)) for reading in islice(readings, 1))
            yield loaded
    finally:
        pool.close()


def _given_up(reading: Reading, limit_s: float | None) -> Loaded:
    reading.given_up = True
    known = reading.known
    reason = (
        f"not decoded within {limit_s:g} s; its disk or its decoder hangs. It is tried again the "
        "next time; copy it anew if that does not help"
    )
    return known._replace(failure=Failure(known.sample.key, "timeout", reason))


def _check_stuck(stuck: int, workers: int, key: str) -> None:
    limit = STUCK_PER_WORKER * workers
    if stuck > limit:
        raise ConfigurationError(
            f"{key}: one of {stuck} images that are stuck beyond the timeout; expected at most "
            f"{limit} at a time. Check the disk that they are on, or give a longer timeout."
        )


def _text(error: Exception) -> str:
    """The message on one line, as valid UTF-8: it names files."""
    if isinstance(error, FileNotFoundError):
        return "no such file. Check the path"
    return " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
