"""Progress of a download: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY_S = 5.0


@final
class TransferMeter:
    """Megabytes, their rate and the time left, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._total = self._done = self._before = 0
        self._start = self._spoken = 0.0

    def start(self, total_bytes: int, already_bytes: int, name: str) -> None:
        """`total_bytes` in all, `already_bytes` of them here before; `name` of the repository."""
        self._total, self._done, self._before = total_bytes, already_bytes, already_bytes
        self._start = self._spoken = time.perf_counter()
        if self._quiet:
            return
        begins = f"going on at {_mb(already_bytes)} of" if already_bytes else "fetching"
        print(f"{name}: {begins} {_mb(total_bytes)} MB", file=sys.stderr, flush=True)  # noqa: T201
        if sys.stderr.isatty():
            self._open_bar()

    def advance(self, count: int) -> None:
        """So many more bytes came in; negative where a server began again."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif not self._quiet and time.perf_counter() - self._spoken >= _LINE_EVERY_S:
            self._spoken = time.perf_counter()
            print(self._line(), file=sys.stderr, flush=True)  # noqa: T201

    def finish(self) -> None:
        """The download is over."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self) -> str:
        rate = max(self._done - self._before, 0) / max(time.perf_counter() - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else 0
        minutes, seconds = divmod(round(left), 60)
        return (
            f"{_mb(self._done)} of {_mb(self._total)} MB, {rate / 1e6:.1f} MB/s, "
            f"{minutes}:{seconds:02d} left"
        )

    def _open_bar(self) -> None:
        from rich import progress as rich_progress
        from rich.console import Console as RichConsole

        self._bar = rich_progress.Progress(
            rich_progress.BarColumn(),
            rich_progress.DownloadColumn(),
            rich_progress.TransferSpeedColumn(),
            rich_progress.TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, completed=self._done)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f}"
