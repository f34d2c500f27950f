"""The tables of docs/scaling.md, from what `benchmarks/scaling.py` computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

START, END = "<!-- written by benchmarks/scaling.py -->", "<!-- end -->"
NAMES = {"cpu": "16 CPU cores", "h200": "H200, 16 cores (assumed)"}


def text(result: dict[str, Any]) -> str:
    """All tables, as they stand in the document."""
    runs = result["runs"]
    source = f"`{runs['command']}`, {runs['date']}, {runs['machine']}, beside other work."
    return "\n\n".join([
        source, "### Time and nodes", _time(result["plans"]),
        "### Store, commits, requests, driver", _store(result["plans"]),
        "### Many rows under one fingerprint", _rows(result["tables"]),
        "### Predicted and observed", _checks(result["checks"]),
        "### Inputs", _inputs(result["inputs"]),
    ])  # fmt: skip


def write_document(result: dict[str, Any], document: Path) -> None:
    """Put the tables between the two marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{START}\n{text(result)}\n{END}{after}", encoding="utf-8")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def size(images: float) -> str:
    """1M, 100M, 1B."""
    return f"{images / 1e9:g}B" if images >= 1e9 else f"{images / 1e6:g}M"


def number(value: float) -> str:
    """Three digits, or all of a whole number."""
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _time(plans: list[dict[str, Any]]) -> str:
    columns = ["images", "encoder", "node", "images/s a node", "node hours", "nodes for 8 hours",
               "read, MB/s a node", "bound by", "next, and how near",
               "cores that feed it"]  # fmt: skip
    rows = []
    for one in plans:
        feeds = str(one["cores_a_gpu"]) if one["node"] == "h200" else "its own"
        rows.append([
            size(one["images"]), one["encoder"], NAMES[one["node"]],
            f"{one['images_per_s_a_node']:,.0f}", number(one["node_hours"]),
            f"{one['nodes_for_a_night']:,}", f"{one['read_bytes_per_s_a_node'] / 1e6:,.0f}",
            one["bound"], f"{one['next']}, {100 * one['next_share']:.0f} %", feeds,
        ])  # fmt: skip
    return table(columns, rows)


def _store(plans: list[dict[str, Any]]) -> str:
    columns = ["images", "encoder", "node", "jobs, at once", "store, TB", "files before, after",
               "commits", "a version, MB", "requests", "prefixes", "a driver, GB"]  # fmt: skip
    rows = [
        [
            size(one["images"]), one["encoder"], NAMES[one["node"]],
            f"{one['jobs']}, {one['jobs_at_once']}", f"{one['store_bytes'] / 1e12:.3f}",
            f"{one['files_before']:,}, {one['files_after']:,}", f"{one['commits']:,}",
            f"{one['version_bytes'] / 1e6:.3f}", f"{one['requests']:,.0f}", f"{one['prefixes']}",
            f"{one['driver_bytes'] / 1e9:.1f}",
        ]
        for one in plans
    ]  # fmt: skip
    return table(columns, rows)


def _rows(tables: list[dict[str, Any]]) -> str:
    columns = ["rows", "jobs", "files", "at most, while the next job runs",
               "files not compacted, commit every 60, 300, 600 s",
               "a version, MB", "driver of all in one job, GB", "driver of a job, GB",
               "known hashes a node, GB", "hashes read by all jobs, GB"]  # fmt: skip
    rows = [
        [
            size(one["rows"]), f"{one['jobs']}", f"{one['files_after']:,}",
            f"{one['files_most']:,}",
            ", ".join(f"{count:,}" for count in one["files_before_of_slow_workers"].values()),
            f"{one['version_bytes'] / 1e6:.3f}", f"{one['driver_bytes_one_job'] / 1e9:,.1f}",
            f"{one['driver_bytes_a_job'] / 1e9:.1f}", f"{one['known_bytes_a_node'] / 1e9:.2f}",
            f"{one['known_bytes_read'] / 1e9:,.1f}",
        ]
        for one in tables
    ]  # fmt: skip
    return table(columns, rows)


def _checks(lines: list[dict[str, Any]]) -> str:
    columns = ["run", "what", "predicted", "observed", "observed to predicted"]
    return table(columns, [
        [one["run"], one["what"], number(one["predicted"]), number(one["observed"]),
         f"{one['ratio']:.2f}"]
        for one in lines
    ])  # fmt: skip


def _inputs(inputs: dict[str, dict[str, Any]]) -> str:
    return table(["input", "value", "unit", "kind", "where from"], [
        [name, number(one["value"]), one["unit"], one["kind"], one["source"]]
        for name, one in inputs.items()
    ])  # fmt: skip
