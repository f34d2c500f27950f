"""The file of corrections while several tabs and processes write to it.

State is always what the file says, so nobody can overwrite what another one wrote: an append is one
action, under a lock that processes share, checked against the state that the person saw, and synced
before it is confirmed. Appending one action to a file with 10,000 takes about 50 ms.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple, final

from filelock import FileLock

from dinoprobe.datasets.corrections import (
    Change,
    State,
    header,
    parse_corrections,
    row_of,
    states,
    to_bytes,
)
from dinoprobe.errors import DinoprobeError
from dinoprobe.files import WriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LOCK_S = 10.0


class ConflictError(DinoprobeError, RuntimeError):
    """What a change starts from is not so any more: another tab was faster."""


class Wanted(NamedTuple):
    """A change that a person asks for: from `old`, as it was seen, to `new`."""

    key: str
    content_hash: str
    old: State
    new: State


@final
class CorrectionLog:
    """`base` gives the state of an image that was never corrected."""

    def __init__(self, path: Path, base: Callable[[str], State]) -> None:
        self.path = path
        self._base = base
        self._lock = RLock()
        self._shared = FileLock(f"{path}.lock", timeout=LOCK_S)
        self._size = -1
        self._changes: list[Change] = []
        self._states: dict[str, tuple[str, State]] = {}

    def refresh(self) -> list[Change]:
        """All changes so far, also those of other processes. Raises FormatError."""
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size != self._size:
                data = self.path.read_bytes() if size else b""
                self._changes = parse_corrections(data, self.path).changes
                self._states = states(self._changes)
                self._size = len(data)
            return self._changes

    @property
    def version(self) -> int:
        """The number of the last action, 0 before the first."""
        changes = self.refresh()
        return changes[-1].action if changes else 0

    def since(self, action: int) -> list[Change]:
        """The changes of later actions."""
        return [change for change in self.refresh() if change.action > action]

    def state(self, key: str, content_hash: str) -> State:
        """What an image is now; a correction of other bytes is none of this image."""
        known, state = self._states.get(key, ("", self._base(key)))
        return state if known == content_hash else self._base(key)

    def append(self, wanted: Sequence[Wanted], *, undoes: int | None = None) -> int:
        """Write one action, and give its number once it is on the disk.

        Raises ConflictError where an image is not as it was seen, and WriteError.
        """
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self._shared:
                    return self._append(wanted, undoes)
            except (OSError, TimeoutError) as error:
                raise WriteError(
                    f"{self.path}: can not be written ({error}); the correction is not kept. "
                    "Make room, or let the other process end, and do it again."
                ) from error

    def _append(self, wanted: Sequence[Wanted], undoes: int | None) -> int:
        action = self.version + 1
        for each in wanted:
            found = self.state(each.key, each.content_hash)
            if found != each.old:
                raise ConflictError(_conflict(each, found))
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = [
            row_of(
                Change(
                    now,
                    action,
                    len(wanted),
                    each.key,
                    each.content_hash,
                    each.old.label,
                    each.new.label,
                    each.new.dropped,
                    undoes,
                )
            )
            for each in wanted
        ]
        self._write(to_bytes(rows))
        self.refresh()
        return action

    def _write(self, data: bytes) -> None:
        """Behind the last whole action; what a kill cut off there was never confirmed."""
        self.path.touch()
        with open(self.path, "r+b") as file:
            whole = parse_corrections(file.read(), self.path).size_bytes
            file.truncate(whole)
            file.seek(whole)
            file.write(data if whole else header() + data)
            file.flush()
            os.fsync(file.fileno())

    def undo(self, action: int | None = None) -> int:
        """Take back an action, the last one by default. Gives the number of the undo.

        Raises ConflictError where there is nothing to undo, or its images were changed since.
        """
        with self._lock:
            changes = self.refresh()
            undone = {change.undoes for change in changes}
            open_ = [c for c in changes if c.undoes is None and c.action not in undone]
            number = open_[-1].action if action is None and open_ else action
            rows = [change for change in open_ if change.action == number]
            if not rows:
                raise ConflictError("There is nothing to undo.")
            before = _before(changes, number or 0, self._base)
            wanted = [
                Wanted(c.key, c.content_hash, State(c.new, c.dropped), before(c)) for c in rows
            ]
            return self.append(wanted, undoes=number)


def _before(
    changes: Sequence[Change], action: int, base: Callable[[str], State]
) -> Callable[[Change], State]:
    earlier = states(change for change in changes if change.action < action)

    def before(change: Change) -> State:
        known, state = earlier.get(change.key, ("", base(change.key)))
        return state if known == change.content_hash else base(change.key)

    return before


def _conflict(wanted: Wanted, found: State) -> str:
    def word(state: State) -> str:
        return "dropped" if state.dropped else f"labelled {state.label!r}"

    return (
        f"{wanted.key} is {word(found)} now, and was {word(wanted.old)} when you saw it: another "
        "tab or process changed it. Nothing was written; look at it again."
    )
