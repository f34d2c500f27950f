"""Save: the recipe of `dinoprobe train` with the corrections as they stand, as a run of its own.

The corrections are copied first, under their version: a run must stay what it was when more are
made. The split of the run is kept, so that the test part is the same.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from threading import Lock, Thread
from typing import TYPE_CHECKING, final

from dinoprobe.errors import ConfigurationError, DinoprobeError
from dinoprobe.files import write_atomic
from dinoprobe.train import TrainConfig, read_train_config, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dinoprobe.page.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Saving:
    """How far it is: `state` is "idle", "runs", "done" or "failed"."""

    state: str = "idle"
    text: str = ""
    run: str | None = None
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    version: int | None = None


@final
class Saver:
    """Trains in a thread, one run at a time."""

    def __init__(self, work: Workspace, say: Callable[[str], None]) -> None:
        self._work, self._say = work, say
        self._lock = Lock()
        self.now = Saving()

    def start(self) -> Saving:
        """Begin a run. Raises ConfigurationError while one is under way."""
        with self._lock:
            if self.now.state == "runs":
                raise ConfigurationError("a run is being made already; wait for its end.")
            version = self._work.log.version
            self.now = Saving("runs", "copies the labels", version=version)
        Thread(target=self._run, args=(version,), name="dinoprobe-save", daemon=True).start()
        return self.now

    def _run(self, version: int) -> None:
        try:
            config = settings(self._work, version)
            snapshot(self._work, version)
            done = train(config, say=self._told)
        except (DinoprobeError, OSError) as error:
            self.now = replace(self.now, state="failed", text=str(error))
            return
        except Exception as error:
            self.now = replace(self.now, state="failed", text=f"{type(error).__name__}: {error}")
            raise
        figures = done.outcome.evaluation
        self.now = replace(
            self.now,
            state="done",
            text=f"Saved: {done.path}",
            run=str(done.path),
            accuracy=figures.accuracy,
            interval=figures.accuracy_interval,
        )

    def _told(self, text: str) -> None:
        self.now = replace(self.now, text=text)
        self._say(text)


def snapshot_path(work: Workspace, version: int) -> Path:
    """Where the corrections of a version are kept for a run."""
    return work.origin.labels.with_name(f"labels-{version:06d}.csv")


def snapshot(work: Workspace, version: int) -> None:
    """Copy the corrections up to a version."""
    from dinoprobe.datasets.corrections import header, row_of, to_bytes

    rows = [row_of(change) for change in work.log.refresh() if change.action <= version]
    write_atomic(snapshot_path(work, version), header() + to_bytes(rows))


def settings(work: Workspace, version: int) -> TrainConfig:
    """The configuration of the run with the corrections of a version.

    It goes into a directory of its own beside the run it comes from.
    """
    origin, labels = work.origin, str(snapshot_path(work, version))
    command = save_command(work, version)
    if origin.run is None:
        data = replace(origin.data, labels=labels)
        out = str(_next(origin.labels.parent.parent / origin.title))
        return TrainConfig(
            data=data, encoder=origin.encoder, store=origin.store, out=out, command=command
        )
    config = read_train_config(origin.run / "config.json")
    data = replace(config.data, labels=labels, split=str(origin.run / "split.csv"))
    out = str(_next(origin.run.parent / f"{origin.run.name}-corrected"))
    return replace(config, data=data, out=out, store=origin.store, command=command)


def save_command(work: Workspace, version: int | None = None) -> str:
    """What does the same in a terminal: with the corrections of a version, or as they grow."""
    origin = work.origin
    words = ["dinoprobe", "train"]
    if origin.run is None:
        words += [origin.data.source, "--encoder", origin.encoder.name]
    else:
        words += ["--config", str(origin.run / "config.json")]
        words += ["--split", str(origin.run / "split.csv")]
    if version is not None:
        words += ["--labels", str(snapshot_path(work, version))]
    elif work.log.version:
        words += ["--labels", str(origin.labels)]
    return shlex.join(words)


def _next(path: Path) -> Path:
    """The first number that is free."""
    numbers = (path.with_name(f"{path.name}-{number:03d}") for number in range(1, 100_000))
    return next(place for place in numbers if not place.exists())
