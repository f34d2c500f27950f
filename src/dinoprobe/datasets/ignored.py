"""Files that are passed over: how many for each reason, and which.

A folder of a million text files beside its images must not fill the memory with their names, so
beyond a limit they are only counted.
"""

from __future__ import annotations

from collections import Counter
from typing import final

MAX_FILES = 100_000


@final
class Ignored:
    """`counts` by reason; `files` are (path, reason), the first `MAX_FILES` of them."""

    __slots__ = ("counts", "files")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.files: list[tuple[str, str]] = []

    def add(self, path: str, reason: str) -> None:
        """One more."""
        self.counts[reason] += 1
        if len(self.files) < MAX_FILES:
            self.files.append((path, reason))

    def update(self, other: Ignored, prefix: str = "") -> None:
        """All of another, their paths below `prefix`."""
        self.counts.update(other.counts)
        room = MAX_FILES - len(self.files)
        self.files += [(prefix + path, reason) for path, reason in other.files[:room]]

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.items())
