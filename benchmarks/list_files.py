"""Times listing a folder of empty files: `python benchmarks/list_files.py --files 200000`.

Writes one JSON document: how many files, how many seconds each repeat took, and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from dinoprobe.datasets import open_dataset


def make_files(root: Path, files: int, classes: int) -> None:
    """Empty files `root/class_000/000000.jpg`, spread evenly over the classes."""
    folders = [root / f"class_{number:03d}" for number in range(classes)]
    for folder in folders:
        folder.mkdir()
    for number in range(files):
        (folders[number % classes] / f"{number:06d}.jpg").touch()


def measure(root: Path, repeats: int) -> list[float]:
    """Seconds of each `open_dataset`, in the order they ran."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        open_dataset(root)
        seconds.append(round(time.perf_counter() - start, 3))
    return seconds


def main() -> None:
    """Makes the files, lists them, prints the JSON or writes it to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), options.files, options.classes)
        seconds = measure(Path(folder), options.repeats)
    result = {
        "files": options.files,
        "classes": options.classes,
        "seconds": seconds,
        "best_s": min(seconds),
        "files_per_s": round(options.files / min(seconds)),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=2)
    if options.output is None:
        sys.stdout.write(text + "\n")
    else:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
