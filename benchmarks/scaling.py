"""What 1, 100 and 1,000 million images cost: a model of named inputs, held against real runs.

    python benchmarks/scaling.py            # the tables, from benchmarks/results/scaling.json
    python benchmarks/scaling.py --run      # the runs of scaling_run.py first (2 minutes)

Every input is `measured` (with its command), `published` or `assumed`; docs/scaling.md has the
tables. A projection from runs of thousands is no measurement of millions.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from scaling_inputs import CHECK_BYTES, HASH_BYTES, Input, inputs, per_image, row_bytes
from scaling_run import CHECKPOINT_S, DIMENSION, ROWS_PER_COMMIT, run, write_images

HERE = Path(__file__).resolve().parent
RESULT, SPEED = HERE / "results" / "scaling.json", HERE / "results" / "embed-cpu.json"
DOCUMENT = HERE.parent / "docs" / "scaling.md"

SIZES = (1_000_000, 100_000_000, 1_000_000_000)
WIDTHS = {"vits16": 384, "vitb16": 768, "vitl16": 1024}
NODES = {"16 CPU cores": "cpu", "H200 and 16 cores": "h200"}
CORES, NIGHT_H, JOB_IMAGES, CHECKPOINT = 16, 8, 20_000_000, 300
ROWS_PER_FILE, CHUNKS_PER_WORKER, SMALLEST_CHUNK, MOST_FRAGMENTS = 1 << 17, 16, 16, 32
PREFIX_BYTES = 8
RUN_SIZES = {
    "local": (2_000, 6_000, 20_000), "ray": (2_000, 6_000, 20_000),
    "driver": (50_000, 100_000, 200_000),
}  # fmt: skip
RUNS = ("small", "middle", "large")


def expected(sizes: dict[str, Any], what: str) -> float:
    """Of the large run, by a line through the small and the middle one."""
    added = sizes["large"]["images"] - sizes["small"]["images"]
    return float(sizes["small"][what]) + added * per_image(sizes, what, "middle")


def node_rate(given: dict[str, Input], encoder: str, node: str) -> dict[str, float]:
    """Images/s of a node: what the model and what the decoding allow, and the less of both."""
    cores = CORES * given["cores that scale"].value
    decode = cores * given["decoding, a core"].value
    if node == "cpu":
        rate = cores * given[f"{encoder}, a core"].value
        return {"model": rate, "decode": decode, "rate": rate}
    model = given[f"{encoder}, H200"].value
    return {"model": model, "decode": decode, "rate": min(model, decode)}


def files_of_job(images: int, workers: int, rate: float, half_s: float) -> int:
    """Files of features before compaction: a worker closes one with each chunk, each half interval
    and each 131,072 rows. `rate` is a worker's.
    """
    chunk = ceil(images / (workers * CHUNKS_PER_WORKER))
    chunk = min(max(SMALLEST_CHUNK, chunk), ROWS_PER_FILE)
    return ceil(images / chunk) * max(1, ceil(chunk / rate / half_s))


def compacted(images: int, files: int) -> int:
    """Files of features of a job after its compaction."""
    return files if files <= MOST_FRAGMENTS else ceil(images / ROWS_PER_FILE)


def commits_of_job(images: int, rate: float, half_s: float) -> int:
    """Of the driver; each is one of the features and one of the manifest."""
    return max(1, ceil(images / rate / half_s))


def driver_bytes(given: dict[str, Input], images: int, rows: int) -> float:
    """Memory of the driver of a job, with 8 bytes for each row that the table has."""
    each = given["memory of a driver"].value + given["chunks on their way"].value
    return images * each + rows * PREFIX_BYTES


def plan(given: dict[str, Input], images: int, encoder: str, node: str) -> dict[str, Any]:
    """One line of the table: jobs of 20 million in a night, commits each 150 s, cls+mean."""
    found = node_rate(given, encoder, node)
    rate, half = found["rate"], CHECKPOINT / 2
    nodes = ceil(images / rate / 3600 / NIGHT_H)
    limit = given["results of a driver"].value * given["of it beside Ray"].value
    jobs = ceil(images / JOB_IMAGES)
    at_once = min(jobs, ceil(nodes * rate / limit))
    size, workers = min(images, JOB_IMAGES), ceil(nodes / at_once)
    files = files_of_job(size, workers, rate, half)
    commits = jobs * commits_of_job(size, rate * workers, half)
    after = jobs * compacted(size, files)
    row = row_bytes(WIDTHS[encoder], 2) + given["features beyond their rows"].value
    writes = jobs * files + 7 * commits  # versions, transactions and hints, a file of the manifest
    result = {
        "images": images, "encoder": encoder, "node": node, "images_per_s_a_node": rate,
        "node_hours": images / rate / 3600, "nodes_for_a_night": nodes, "jobs": jobs,
        "jobs_at_once": at_once, "read_bytes_per_s_a_node": rate * given["bytes of an image"].value,
        "store_bytes": images * (row + given["manifest"].value),
        "files_before": jobs * files, "files_after": after, "commits": 2 * commits,
        "version_bytes": after * given["version of the table"].value,
        "requests": images + writes + 2 * commits * given["reads a commit"].value,
        "driver_bytes": driver_bytes(given, size, images),
    }  # fmt: skip
    return result | limits(given, found, nodes * rate, at_once * limit)


def limits(
    given: dict[str, Input], found: dict[str, float], total: float, driver: float
) -> dict[str, Any]:
    """What bounds a line now, and what would be next, with the share of it that is in use."""
    bound = "model" if found["model"] <= found["decode"] else "decoding"
    rate = found["rate"]
    shares = {
        "decoding": rate / found["decode"],
        "model": rate / found["model"],
        "network": rate * given["bytes of an image"].value / given["network of a node"].value,
        "driver": total / driver,
    }
    shares.pop(bound)
    following = max(shares, key=shares.__getitem__)
    return {
        "bound": bound, "next": following, "next_share": shares[following],
        "prefixes": ceil(total / given["requests a prefix"].value),
        "cores_a_gpu": ceil(found["model"] / given["decoding, a core"].value),
    }  # fmt: skip


def table_of_rows(given: dict[str, Input], rows: int) -> dict[str, Any]:
    """What so many rows under one fingerprint are to the store and to a driver."""
    jobs, size = ceil(rows / JOB_IMAGES), min(rows, JOB_IMAGES)
    slow = {
        str(seconds): jobs * files_of_job(size, 32, 100, seconds / 2) for seconds in (60, 300, 600)
    }
    of_one = files_of_job(size, 32, 100, 30)
    after = jobs * compacted(size, of_one)
    return {
        "rows": rows, "jobs": jobs, "files_after": after, "files_before_of_slow_workers": slow,
        "files_most": after + 2 * of_one,
        "version_bytes": after * given["version of the table"].value,
        "driver_bytes_one_job": driver_bytes(given, rows, rows),
        "driver_bytes_a_job": driver_bytes(given, size, rows),
        "known_bytes_a_node": rows * PREFIX_BYTES,
        "known_bytes_read": sum(
            2 * min((job + 0.5) * size, rows) * (HASH_BYTES + CHECK_BYTES) for job in range(jobs)
        ),
    }  # fmt: skip


def checks(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Predicted by the smaller runs and the model, observed in the largest."""
    lines = []

    def line(run_of: str, what: str, predicted: float, observed: float) -> None:
        lines.append({
            "run": f"{run_of}, {runs[run_of]['large']['images']:,} images", "what": what,
            "predicted": predicted, "observed": observed, "ratio": observed / predicted,
        })  # fmt: skip

    sizes = runs["local"]
    large, n = sizes["large"], sizes["large"]["images"]
    commits = ceil(n / ROWS_PER_COMMIT)
    joined = commits > MOST_FRAGMENTS
    line("local", "bytes of features", n * row_bytes(DIMENSION, 1), large["features_bytes"])
    line("local", "versions of the table", 1 + commits + 2 * joined, large["versions"])
    line("local", "files of features after compaction", compacted(n, commits), large["fragments"])
    line("local", "files in the store, old ones too", local_files(commits), large["files"])
    for what, key in (("bytes of the manifest", "manifest_bytes"), ("s to list", "listing_s"),
                      ("s in all", "seconds"), ("bytes of memory", "memory_bytes")):  # fmt: skip
        line("local", what, expected(sizes, key), large[key])
    sizes = runs["ray"]
    large, n = sizes["large"], sizes["large"]["images"]
    rate, half = n / large["work_s"], CHECKPOINT_S / 2
    line("ray", "bytes of features", n * row_bytes(DIMENSION, 1), large["features_bytes"])
    line("ray", "files of features", files_of_job(n, 1, rate, half), large["data_files"])
    line("ray", "versions of the table", 1 + commits_of_job(n, rate, half), large["versions"])
    line(
        "ray",
        "bytes of its version, a file",
        sizes["small"]["largest_version_bytes"] / sizes["small"]["fragments"],
        large["largest_version_bytes"] / large["data_files"],
    )
    sizes = runs["driver"]
    line("driver", "bytes of memory", expected(sizes, "memory_bytes"),
         sizes["large"]["memory_bytes"])  # fmt: skip
    line("driver", "results/s", sizes["middle"]["results_per_s"], sizes["large"]["results_per_s"])
    return lines


def local_files(commits: int) -> int:
    """Of a young store: each of its two tables has a hint; for its making a version and a
    transaction; for a commit these and a file of rows. A compaction is two commits with one file.
    """
    return 2 * (1 + 2 + 3 * commits + 5 * (commits > MOST_FRAGMENTS))


def measured() -> dict[str, Any]:
    """The runs of each kind, the smallest first."""
    found: dict[str, Any] = {
        "command": "python benchmarks/scaling.py --run",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": json.loads(SPEED.read_text(encoding="utf-8"))["machine"]
        if platform.machine() == "x86_64" else platform.machine(),
    }  # fmt: skip
    for kind, sizes in RUN_SIZES.items():
        found[kind] = {}
        for name, images in zip(RUNS, sizes, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                if kind != "driver":
                    write_images(Path(folder) / "images", images)
                found[kind][name] = run(kind, images, Path(folder))
    return found


def document(runs: dict[str, Any], speed: dict[str, Any]) -> dict[str, Any]:
    """All that follows from the runs."""
    given = inputs(runs, speed)
    lines = [plan(given, size, encoder, node)
             for size in SIZES for encoder in WIDTHS for node in NODES.values()]  # fmt: skip
    return {
        "runs": runs,
        "inputs": {name: asdict(one) for name, one in given.items()},
        "checks": checks(runs),
        "plans": lines,
        "tables": [table_of_rows(given, rows) for rows in (*SIZES[:2], 500_000_000, SIZES[2])],
    }


def main() -> None:
    """Measure where that is asked for, compute, write and print."""
    from scaling_tables import text, write_document

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    runs = measured() if options.run else json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    result = document(runs, json.loads(SPEED.read_text(encoding="utf-8")))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_document(result, DOCUMENT)
    print(text(result))


if __name__ == "__main__":
    main()
