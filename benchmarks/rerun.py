"""What a second run over the same folder costs, and one after 1 % more images.

    python benchmarks/rerun.py --images 1000

`dinoprobe.embed` with a store: a first run, the same again, and with 1 % new photographs. In one
process after the model was loaded and a warm-up, and as whole `dinoprobe embed` processes, whose
time is mostly that of imports and of loading. One JSON file, and the table of docs/performance.md
from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import (
    DOCUMENT,
    RESULTS,
    dinoprobe,
    machine,
    random_checkpoint,
    table,
    write_between,
)

if TYPE_CHECKING:
    from dinoprobe.encoder import Encoder

RESULT = RESULTS / "rerun-cpu.json"
START = "<!-- written by benchmarks/rerun.py -->"
YOUNG_S = 2.5  # younger files are read again: they may change without their time changing
AGAIN = 5  # a second run is short: the median of this many
RUNS = ("first", "again", "more")


def main() -> None:
    """Measure, or only write the document anew from a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--encoder", default="vits16", help="a published shape; random weights")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--write-only", action="store_true", help="no measuring")
    options = parser.parse_args()
    if not options.write_only:
        result = measure(options)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_document(json.loads(options.out.read_text(encoding="utf-8")), DOCUMENT)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole result."""
    from dinoprobe.encoder import EncoderSettings, open_encoder
    from dinoprobe.versions import versions

    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as name:
        place = Path(name)
        weights = str(random_checkpoint(place / "weights", options.encoder))
        encoder = open_encoder(EncoderSettings(name=weights, device="cpu", dtype=options.dtype))
        runs = {
            "in_process": in_process(place, encoder, options.images),
            "processes": processes(place, weights, options),
        }
    return {
        "command": f"python benchmarks/rerun.py --images {options.images}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "encoder": options.encoder,
        "precision": options.dtype,
        "images": options.images,
        "added": added(options.images),
        "results": {kind: with_ratios(seconds) for kind, seconds in runs.items()},
    }


def added(images: int) -> int:
    """1 %, and at least one image."""
    return max(1, images // 100)


def in_process(place: Path, encoder: Encoder, images: int) -> dict[str, list[float]]:
    """Seconds of each run of `dinoprobe.embed`, the listing of the folder included."""
    from dinoprobe.api import embed

    def run(folder: Path, store: str, n: int) -> float:
        start = time.perf_counter()
        features = embed(folder, encoder, store=str(place / store))
        seconds = time.perf_counter() - start
        if len(features) != n:
            raise SystemExit(f"{len(features)} features of {n} images: {features.failures[:3]}")
        return seconds

    run(photographs(place / "warm-up", 16, seed=3), "warm-up-store", 16)
    folder = photographs(place / "photos" / "old", images, seed=0).parent
    seconds = {"first": [run(folder, "store", images)]}
    seconds["again"] = [run(folder, "store", images) for _ in range(AGAIN)]
    photographs(folder / "new", added(images), seed=1)
    seconds["more"] = [run(folder, "store", images + added(images))]
    print({name: [round(value, 3) for value in values] for name, values in seconds.items()})
    return seconds


def processes(place: Path, weights: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each `dinoprobe embed`, from start to end of the process."""
    folder = photographs(place / "other" / "old", options.images, seed=0).parent

    def run(new: int) -> float:
        document, seconds = dinoprobe(
            "embed", str(folder), "--encoder", weights, "--dtype", options.dtype,
            "--device", "cpu", "--store", str(place / "store-of-processes"),
        )  # fmt: skip
        encoded = document["embedded"] - document["cached"]
        if encoded != new:
            raise SystemExit(f"{encoded} images were encoded, {new} are new.")
        return seconds

    seconds = {"first": [run(options.images)]}
    seconds["again"] = [run(0) for _ in range(3)]
    photographs(folder / "new", added(options.images), seed=1)
    seconds["more"] = [run(added(options.images))]
    print({name: [round(value, 3) for value in values] for name, values in seconds.items()})
    return seconds


def photographs(folder: Path, count: int, *, seed: int) -> Path:
    """A folder of that many rendered photographs, old enough for their stamps to count."""
    from dinoprobe.bench.synthetic import write_photos

    folder.mkdir(parents=True)
    write_photos(folder, count, seed=seed)
    time.sleep(YOUNG_S)
    return folder


def with_ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, every measurement, and how much faster than the first run the others are."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "all_seconds": seconds,
        "first_over_again": medians["first"] / medians["again"],
        "more_share_of_first": medians["more"] / medians["first"],
    }


def write_document(result: dict[str, Any], document: Path) -> None:
    """Put the table between its marks."""
    columns = ["", "first run", "nothing changed", f"{result['added']} images more"]
    names = {
        "in_process": "`dinoprobe.embed`, model loaded",
        "processes": "`dinoprobe embed`, whole process",
    }
    rows = [[names[kind], *cells(entry)] for kind, entry in result["results"].items()]
    source = f"`{result['command']}`, {result['date']}, {result['machine']}"
    how = (
        f"torch {result['versions']['torch']}; {result['images']:,} photographs of about "
        f"500 x 375, {result['encoder']} with random weights in {result['precision']}."
    )
    write_between(document, START, [f"{source}, {how}", "", *table(columns, rows)])


def cells(entry: dict[str, Any]) -> list[str]:
    """The three times of one line."""
    first, again, more = (entry["seconds"][name] for name in RUNS)
    return [
        f"{first:.1f} s",
        f"{again:.3f} s, {entry['first_over_again']:.0f} x faster",
        f"{more:.3f} s, {100 * entry['more_share_of_first']:.1f} % of the first",
    ]


if __name__ == "__main__":
    main()
