"""The values that travel between layers: samples, datasets, failures, features.

Plain data without behaviour of their own, so that every layer may import this module. A `Sample` is
a named tuple and not a frozen dataclass because folders of 200,000 files are listed in one go, and
a frozen dataclass takes 2.5 times as long to make.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from dinoprobe.errors import ConfigurationError
from dinoprobe.mapped import take
from dinoprobe.pooling import columns_of, pooled_fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Stamp(NamedTuple):
    """Cheap evidence that a file has not changed since it was last read."""

    size_bytes: int
    mtime_ns: int


class Source(ABC):
    """Where one image comes from: a file, a member of an archive, a row, an array."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> bytes | npt.NDArray[np.generic]:
        """The encoded file as bytes, or pixels as `(height, width)` or `(height, width, bands)`.

        Raises OSError, and nothing else, when it can not be read.
        """

    def stamp(self) -> Stamp | None:
        """Size and time of change without reading, or None where there is no cheap way.

        Raises OSError when the file is gone.
        """
        return None


class Sample(NamedTuple):
    """One image that is not yet decoded. `key` is unique in its dataset and valid UTF-8."""

    key: str
    source: Source
    label: str | None = None
    split: Split | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples with the place they come from.

    `classes` are the sorted labels, `ignored` counts files that are not images by name, by reason,
    `ignored_files` names the first 100,000 of them as (path, reason), and `notes` are sentences for
    the user, such as a symbolic link that was not followed.
    """

    uri: str
    samples: Sequence[Sample]
    classes: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    ignored_files: Sequence[tuple[str, str]] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)


class Failure(NamedTuple):
    """An image that could not be used: counted, listed, never dropped silently.

    `kind` is a word of those in docs/json.md, such as "unreadable", "timeout" or "truncated".
    """

    key: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Features:
    """One row per image that could be used, in the order of the dataset.

    `X` is `(n, d)` float32. `y` holds the labels as an object array of str, or None where a sample
    has no label. `hashes` are the content hashes, equal for identical images. `base_fingerprint` is
    that of all but the pooling; both are None where the encoder has no pooling.
    """

    keys: tuple[str, ...]
    X: npt.NDArray[np.float32]
    y: npt.NDArray[np.object_]
    classes: tuple[str, ...]
    fingerprint: str
    hashes: tuple[str, ...]
    splits: tuple[Split | None, ...]
    groups: tuple[str | None, ...]
    failures: tuple[Failure, ...] = ()
    pooling: str | None = None
    base_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: npt.NDArray[np.intp]) -> Features:
        """The same with only these rows, by position. Failures stay with the whole.

        Rows of an `X` in a file go to another one (`mapped.py`).
        """
        picked = [int(row) for row in rows]
        return replace(
            self,
            keys=tuple(self.keys[i] for i in picked),
            X=take(self.X, rows),
            y=self.y[rows],
            hashes=tuple(self.hashes[i] for i in picked),
            splits=tuple(self.splits[i] for i in picked),
            groups=tuple(self.groups[i] for i in picked),
            failures=(),
        )

    def pooled(self, pooling: str) -> Features:
        """The features of another pooling whose parts are in these (`pooling.sub_poolings`).

        `X` is a view of their columns, and the fingerprint that of `encoder.with_pooling`. Raises
        ConfigurationError where a part is missing.
        """
        if self.pooling is None or self.base_fingerprint is None:
            msg = (
                f"pooling '{pooling}' can not be taken from features of an encoder without a "
                "pooling. Use them whole, or embed with an Encoder."
            )
            raise ConfigurationError(msg)
        columns = columns_of(self.pooling, pooling, self.X.shape[1])
        fingerprint = pooled_fingerprint(self.base_fingerprint, pooling)
        return replace(self, X=self.X[:, columns], fingerprint=fingerprint, pooling=pooling)


class Progress(Protocol):
    """Who wants to know how far a long run is. Called from one thread."""

    def start(self, total: int, already: int) -> None:
        """`total` images in all, `already` of them known from the store."""

    def advance(self, images: int, failures: int) -> None:
        """So many more images were encoded, so many more could not be used."""

    def finish(self) -> None:
        """The run is over."""


class NoProgress:
    """Says nothing."""

    def start(self, total: int, already: int) -> None:
        """Does nothing."""

    def advance(self, images: int, failures: int) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


def content_hash(image: bytes | npt.NDArray[np.generic]) -> str:
    """SHA-256 in hex of a file's bytes, or of an array's type, shape and values."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    import numpy as np

    digest = hashlib.sha256(f"{image.dtype.str}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
