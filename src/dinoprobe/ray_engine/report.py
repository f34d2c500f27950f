"""What a worker tells the driver, as JSON text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoprobe import errors
from dinoprobe.engine.readers import Loaded
from dinoprobe.types import Failure, Stamp

if TYPE_CHECKING:
    from dinoprobe.errors import DinoprobeError
    from dinoprobe.types import Sample


class Done(NamedTuple):
    """One sample that was read. `encoded` says that the staged files have its features."""

    number: int
    size_bytes: int | None
    mtime_ns: int | None
    content_hash: str | None
    failure_kind: str | None
    failure_reason: str | None
    more_frames: bool
    encoded: bool

    @classmethod
    def of(cls, number: int, loaded: Loaded, *, encoded: bool) -> Done:
        """From what the engine gave."""
        stamp, failure = loaded.stamp, loaded.failure
        return cls(
            number=number,
            size_bytes=stamp and stamp.size_bytes,
            mtime_ns=stamp and stamp.mtime_ns,
            content_hash=loaded.content_hash,
            failure_kind=failure and failure.kind,
            failure_reason=failure and failure.reason,
            more_frames=loaded.more_frames,
            encoded=encoded,
        )

    def loaded(self, sample: Sample) -> Loaded:
        """What the engine gave, with the driver's own sample."""
        stamp = None
        if self.size_bytes is not None and self.mtime_ns is not None:
            stamp = Stamp(self.size_bytes, self.mtime_ns)
        failure = None
        if self.failure_kind is not None:
            failure = Failure(sample.key, self.failure_kind, self.failure_reason or "")
        return Loaded(sample, stamp, self.content_hash, None, failure, self.more_frames)


@dataclass(frozen=True, slots=True)
class Report:
    """Samples that are `done`, with the `staged` files of their features; and how many `images`
    and `failures` there were since the last report, which may come without the samples. `error`
    is the name and the arguments of an error that ends the job.
    """

    done: list[Done] = field(default_factory=list)
    staged: list[str] = field(default_factory=list)
    images: int = 0
    failures: int = 0
    error: list[Any] | None = None

    def to_json(self) -> str:
        """Text that travels."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["done"] = [Done(*row) for row in values["done"]]
        return cls(**values)

    @classmethod
    def of_error(cls, error: DinoprobeError) -> Report:
        """An error that would meet every other sample as well."""
        arguments = error.__reduce__()[1]
        return cls(error=[type(error).__name__, *map(str, arguments)])

    def check(self) -> None:
        """Raises the error, where there is one."""
        if self.error is not None:
            name, *arguments = self.error
            raise getattr(errors, name)(*arguments)
