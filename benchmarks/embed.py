"""Files to features for several shapes and precisions; one JSON file, and docs/performance.md from
it.

Each configuration is `dinoprobe bench embed` in a process of its own, so that peak memory is its
own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULT = ROOT / "benchmarks" / "results" / "embed-cpu.json"
QUIET = 0.05  # cores that other processes may use
START, END = "<!-- written by benchmarks/embed.py -->", "<!-- end -->"
CONFIGURATIONS = [
    ("vits16", "cls", "bf16", "openvino", 0.0), ("vits16", "cls+mean", "bf16", "openvino", 0.0),
    ("vits16", "cls", "bf16", "torch", 0.0), ("vits16", "cls+mean", "bf16", "torch", 0.0),
    ("vits16", "cls", "exact", "openvino", 0.0), ("vits16", "cls", "exact", "torch", 0.0),
    ("vits16", "cls", "exact", "onnxruntime", 0.0), ("vits16", "cls", "int8", "openvino", 0.0),
    ("vits16", "cls", "bf16", "openvino", 1.0),
    ("vitb16", "cls", "bf16", "openvino", 0.0), ("vitb16", "cls", "bf16", "torch", 0.0),
    ("vitb16", "cls", "exact", "openvino", 0.0), ("vitb16", "cls", "int8", "openvino", 0.0),
    ("convnext-tiny", "cls", "bf16", "torch", 0.0),
    ("convnext-tiny", "cls", "bf16", "openvino", 0.0),
    ("convnext-tiny", "cls", "exact", "torch", 0.0),
]  # fmt: skip


def main() -> None:
    """Measure, or only write the document anew from a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=3, help="where other processes disturb")
    parser.add_argument("--only", help="part of a configuration, such as vits16 or int8")
    parser.add_argument("--write-only", action="store_true", help="no measuring")
    options = parser.parse_args()
    if not options.write_only:
        result = {
            "command": f"python benchmarks/embed.py --images {options.images} "
            f"--rounds {options.rounds}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "results": _measured(options),
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_document(json.loads(options.out.read_text(encoding="utf-8")))


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each configuration, or those that were asked for, in the place of their old results."""
    chosen = [c for c in CONFIGURATIONS if options.only is None or options.only in c]
    new = [measure(configuration, options) for configuration in chosen]
    if options.only is None or not options.out.exists():
        return new
    kept = json.loads(options.out.read_text(encoding="utf-8"))["results"]
    at = {_place(entry): entry for entry in (*kept, *new)}
    return sorted(at.values(), key=lambda entry: _order(_place(entry)))


def _place(entry: dict[str, Any]) -> tuple[str, str, str, str, float]:
    precision = {"float32": "exact", "bfloat16": "bf16"}.get(entry["precision"], entry["precision"])
    backend, large = entry["backend"], entry["large_share"]
    return (entry["encoder"], entry["pooling"], precision, backend, large)


def _order(place: tuple[str, str, str, str, float]) -> int:
    return CONFIGURATIONS.index(place) if place in CONFIGURATIONS else len(CONFIGURATIONS)


def machine() -> str:
    """Processor and cores, in words."""
    found = [platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(found)} x {found[0]}"


def measure(
    configuration: tuple[str, str, str, str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """One configuration; fewer images where each has 12 megapixels."""
    name, pooling, precision, backend, large = configuration
    images = max(8, options.images // 4) if large else options.images
    command = [
        sys.executable, "-m", "dinoprobe", "bench", "embed", "--encoder", name, "--random-weights",
        "--pooling", pooling, "--precision", precision, "--backend", backend, "--device", "cpu",
        "--large-share", str(large), "--images", str(images),
        "--rounds", str(options.rounds), "--json", "--quiet",
    ]  # fmt: skip
    value: dict[str, Any] = {}
    for _ in range(options.tries):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        value = min(value or found, found, key=lambda one: one["cores_of_others"] or 0)
        if (value["cores_of_others"] or 0) < QUIET:
            break
    rate, ratio = value["images_per_second"], value["ratio_to_tutorial"]
    print(
        f"{name} {pooling} {precision} {backend}: {rate:.1f} images/s, {ratio:.2f} x",
        file=sys.stderr,
    )
    return value


def write_document(result: dict[str, Any]) -> None:
    """Put the table between the two marks."""
    first = result["results"][0]
    source = f"`{result['command']}`, {result['date']}, {result['machine']}"
    how = f"torch {first['versions']['torch']}; medians of {first['rounds']} interleaved rounds."
    columns = [
        "encoder", "pooling", "images", "precision", "backend", "images/s",
        "to the tutorial's loop", "forward of the best matrix product",
        "pipeline of its bound", "1 - cosine, mean", "peak memory", "cores of others",
    ]  # fmt: skip
    lines = [f"{source}, {how}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [row(entry) for entry in result["results"]]
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    text = "\n".join([START, *lines, END])
    DOCUMENT.write_text(f"{before}{text}{after}", encoding="utf-8")


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    kind = "4000 x 3000" if entry["large_share"] else "500 x 375"
    cells = [
        entry["encoder"],
        entry["pooling"],
        kind,
        entry["precision"],
        entry["backend"],
        f"{entry['images_per_second']:.1f}",
        f"{entry['ratio_to_tutorial']:.1f} x",
        f"{100 * entry['forward_share_of_ceiling']:.0f} %",
        f"{100 * entry['pipeline_share_of_bound']:.0f} %",
        f"{1 - entry['cosine_mean']:.0e}",
        f"{entry['peak_memory_bytes'] / 1e9:.1f} GB",
        f"{entry['cores_of_others']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
