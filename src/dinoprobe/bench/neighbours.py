"""What else ran on the machine while something was timed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self


class Neighbours:
    """How many cores other processes used while a `with` block ran this one and its children.

    Where `cores` is not near 0, times are longer than the work: a loop whose threads wait for each
    other at every layer suffers most. None where the system does not tell.
    """

    cores: float | None = None

    def __enter__(self) -> Self:
        self._start = time.perf_counter(), _busy_s(), _own_s()
        return self

    def __exit__(self, *_: object) -> None:
        started, busy, own = self._start
        now = _busy_s()
        if busy is not None and now is not None:
            others = (now - busy) - (_own_s() - own)
            self.cores = round(max(0.0, others / (time.perf_counter() - started)), 2)


def _busy_s() -> float | None:
    """Seconds that all cores have worked since the machine started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, soft, stolen = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
