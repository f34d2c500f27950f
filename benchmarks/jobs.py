"""What the scripts that time whole jobs share: weights, processes, a place in the document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
END = "<!-- end -->"


def random_checkpoint(folder: Path, name: str) -> Path:
    """Random weights in the published shape, as transformers saves them."""
    import torch
    from transformers.utils import logging

    from dinoprobe.catalog import CHECKPOINTS
    from dinoprobe.encoder.families import FAMILIES

    entry = CHECKPOINTS[name]
    family = FAMILIES[entry.model_type]
    torch.manual_seed(0)
    logging.disable_progress_bar()
    family.model_class()(family.config_class()(**entry.config)).save_pretrained(folder)
    size = {"size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(size), encoding="utf-8")
    return folder


def timed_process(arguments: list[str]) -> tuple[dict[str, Any], float]:
    """The JSON document that a Python process prints, and the seconds from its start to its end."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
    )
    seconds = time.perf_counter() - start
    document: dict[str, Any] = json.loads(done.stdout)
    return document, seconds


def dinoprobe(verb: str, *arguments: str) -> tuple[dict[str, Any], float]:
    """`dinoprobe VERB ... --json` in a process of its own."""
    return timed_process(["-m", "dinoprobe", verb, *arguments, "--json", "--quiet"])


def import_all(*names: str) -> None:
    """Import the modules, so that no time after it is one of theirs."""
    import importlib

    for name in names:
        importlib.import_module(name)


def machine() -> str:
    """Processor and cores, in words."""
    import platform

    found = [platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(found)} x {found[0]}"


def write_between(document: Path, start: str, lines: list[str]) -> None:
    """Put the lines between `start` and the end mark that follows it."""
    before, mark, rest = document.read_text(encoding="utf-8").partition(start)
    if not mark:
        raise SystemExit(f"{document}: no line '{start}'. Put it where the table is to stand.")
    _, _, after = rest.partition(END)
    text = "\n".join([start, *lines, END])
    document.write_text(f"{before}{text}{after}", encoding="utf-8")


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]
