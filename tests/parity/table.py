"""Writes the table of docs/checkpoints.md from what the parity tests measured: `make parity`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.parity.test_sources import CASES, CONVNEXTS, DEPTHS, SIZES, SOURCES, TOLERANCE, VITS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
START, END = "<!-- parity: written by make parity -->", "<!-- parity: end -->"


def table(measured: dict[tuple[str, str], float]) -> str:
    """Rows are sources, columns architectures; a cell is the largest difference, relative."""
    names = (*VITS, *CONVNEXTS)
    lines = [
        "| source | " + " | ".join(f"{n}{'*' if n in DEPTHS else ''}" for n in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for source, entry in SOURCES.items():
        cells = [f"{measured[source, n]:.0e}" if (source, n) in CASES else "" for n in names]
        lines.append(f"| {entry.label} | " + " | ".join(cells) + " |")
    sizes = ", ".join(f"{height} x {width}" for height, width in SIZES)
    caption = (
        f"Largest difference over {sizes}, as a share of the largest feature; the tests allow "
        f"{TOLERANCE:.0e}. *: the published widths with fewer layers."
    )
    return "\n".join([*lines, "", caption])


def main() -> None:
    """Read one JSON file for each case from the folder that is given, and rewrite the document."""
    measured = {}
    for path in Path(sys.argv[1]).glob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        measured[value["source"], value["name"]] = float(value["difference"])
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{START}\n{table(measured)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
