"""What a person or a program reads: results on stdout, everything else on stderr.

With `--json` stdout holds exactly one JSON document, for an error too. Bars and colours appear on a
terminal only; elsewhere one plain line every few seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, final

from dinoprobe.errors import (
    EXIT_BAD_INPUT,
    EXIT_BROKEN_PIPE,
    EXIT_BUG,
    EXIT_FAILURES,
    EXIT_INTERRUPTED,
    DinoprobeError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from dinoprobe.cli.transfer import TransferMeter

_LINE_EVERY_S = 5.0


def printable(text: object) -> str:
    """The text with control characters escaped: a file name must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@final
class Console:
    """Where a verb speaks. `as_json` and `quiet` are the flags of the command line.

    `spoken` says whether this process has put its document on stdout.
    """

    spoken: ClassVar[bool] = False

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._has_document = False

    def say(self, text: str) -> None:
        """A sentence on the way, on stderr."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)  # noqa: T201

    def line(self, text: str = "") -> None:
        """A line of the result, on stdout; nothing with `--json`."""
        if not self.as_json:
            print("\n".join(map(printable, text.split("\n"))), flush=True)  # noqa: T201

    def table(self, rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
        """Aligned columns on stdout, the columns in `right` flush right."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = [
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.line("  " + "  ".join(padded).rstrip())

    def document(self, value: dict[str, Any]) -> None:
        """The JSON document, with `--json` only."""
        if self.as_json:
            Console.spoken = self._has_document = True
            print(json.dumps(value, ensure_ascii=True, allow_nan=False), flush=True)  # noqa: T201

    def progress(self) -> Meter:
        """Who shows how far embedding is."""
        return Meter(quiet=self.quiet)

    def transfer(self) -> TransferMeter:
        """Who shows how far a download is."""
        from dinoprobe.cli.transfer import TransferMeter

        return TransferMeter(quiet=self.quiet)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Maps errors to exit codes: a user's mistake never shows a traceback."""
        try:
            yield
        except DinoprobeError as error:
            self._fail(str(error), type(error).__name__, error.exit_code)
        except KeyboardInterrupt:
            text = "Interrupted. What was finished is kept: the same command goes on from there."
            self._fail(text, "KeyboardInterrupt", EXIT_INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        except OSError as error:
            self._fail(f"{error}.", type(error).__name__, EXIT_BAD_INPUT)
        except Exception as error:  # a bug: its traceback is shown, and the document is whole
            self.document(_error(str(error), type(error).__name__, EXIT_BUG))
            raise

    def _fail(self, message: str, kind: str, code: int) -> None:
        shown = "\n".join(map(printable, message.split("\n")))
        print(f"dinoprobe: {shown}", file=sys.stderr, flush=True)  # noqa: T201
        if not self._has_document:  # one of the verb's own may tell of the error already
            with suppress(OSError):  # a full disk may be what is reported
                self.document(_error(message, kind, code))
        raise SystemExit(code) from None

    def strict(self, failures: int, *, asked: bool) -> None:
        """Exit with 4 after failures when `--strict` was given."""
        if asked and failures:
            raise SystemExit(EXIT_FAILURES)


def _error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"schema": "dinoprobe.error/1", "error": kind, "message": message, "exit_code": code}


@final
class Meter:
    """Progress of embedding: a bar on a terminal, else a line every few seconds."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._total = self._done = self._failed = 0
        self._start = self._spoken = 0.0

    def start(self, total: int, already: int) -> None:
        """`total` images in all, `already` of them known from the store."""
        self._total, self._done = total - already, 0
        self._start = self._spoken = time.perf_counter()
        if self._quiet or self._total <= 0:
            return
        if sys.stderr.isatty():
            self._open_bar()
        elif already:
            self._print(f"{already:,} of {total:,} images are in the store")

    def advance(self, images: int, failures: int) -> None:
        """So many more images were encoded, so many more could not be used."""
        self._done += images + failures
        self._failed += failures
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif not self._quiet and time.perf_counter() - self._spoken >= _LINE_EVERY_S:
            self._spoken = time.perf_counter()
            left = (self._total - self._done) / max(self._rate(), 1e-9)
            counts = f"{self._done:,} of {self._total:,} images"
            self._print(f"{counts}, {self._rate():.1f} images/s, {duration(left)} left")

    def finish(self) -> None:
        """The run is over."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self) -> float:
        return self._done / max(time.perf_counter() - self._start, 1e-9)

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def _open_bar(self) -> None:
        from rich import progress as rich_progress
        from rich.console import Console as RichConsole

        self._bar = rich_progress.Progress(
            "{task.description}",
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            "{task.fields[rate]:.1f} images/s",
            rich_progress.TimeRemainingColumn(),
            console=RichConsole(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("embedding", total=self._total, rate=0.0)


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
