"""`dinoprobe compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

_DEFAULT_AT_LEAST = 10


def compare(
    a: Annotated[
        str, typer.Argument(metavar="RUN_A", help="A run's directory, or an evaluation's.")
    ],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another one, on the same images.")],
    *,
    at_least: Annotated[
        int, typer.Option(min=1, help="Fewer common images than this are refused.")
    ] = _DEFAULT_AT_LEAST,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two runs on the images that both judged, pair by pair."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        from dinoprobe.compare import compare_runs

        compared = compare_runs(a, b, at_least=at_least)
        for note in compared.notes:
            console.say(note)
        found = compared.comparison
        console.line(f"{found.n:,} common images, matched by {compared.matched_by}")
        console.table(
            [
                (f"{side.upper()} is right on", f"{100 * values['accuracy']:.1f} %", values["run"])
                for side, values in ((side, compared.summary[side]) for side in "ab")
            ],
            right=[1],
        )
        console.line()
        console.table(
            [
                ("both right", f"{found.both_right:,}"),
                ("only A", f"{found.only_a:,}"),
                ("only B", f"{found.only_b:,}"),
                ("both wrong", f"{found.both_wrong:,}"),
            ],
            right=[1],
        )
        console.line()
        console.line(found.verdict)
        console.document(compared.summary)
