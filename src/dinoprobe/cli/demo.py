"""`dinoprobe demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.demo.run import DemoRun

DEFAULT_FOLDER = "dinoprobe-demo"


def demo(
    *,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Where pictures and runs go.")
    ] = DEFAULT_FOLDER,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train on real handwritten digits with the built-in encoder: no account, no download."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        console.say("Real handwritten digits on clutter, the built-in encoder; under a minute.")
        from dinoprobe.demo.run import run_demo

        done = run_demo(out, progress=console.progress(), say=console.say)
        _show(console, done)
        console.document(done.summary)


def _show(console: Console, done: DemoRun) -> None:
    from dinoprobe.cli.show import percent
    from dinoprobe.cli.train import show_run

    show_run(console, done.trained)
    evaluation = done.trained.outcome.evaluation
    console.line()
    console.line(
        f"Against raw pixels: {percent(evaluation.accuracy)} with the built-in encoder, "
        f"{percent(done.baseline.accuracy)} with {done.baseline.name}."
    )
    _show_planted(console, done)
    _show_next(console)


def _show_planted(console: Console, done: DemoRun) -> None:
    console.line()
    console.line("Faults were planted in the training part, and reported:")
    console.line(
        f"  {done.planted} wrong labels: {done.planted_found} of them among the first "
        f"{done.looked_at} lines of suspects.csv"
    )
    failures = done.trained.context.failures
    console.line(f"  {len(failures)} broken files, listed in failures.csv:")
    for failure in failures:
        console.line(f"    {failure.key}: {failure.reason}")


def _show_next(console: Console) -> None:
    console.line()
    console.line(
        "Your images, one folder per class (the built-in encoder is for a first try only):"
    )
    console.line("  dinoprobe train YOUR_FOLDER --encoder builtin")
    console.line("With real DINOv3 weights, which Meta gates:")
    console.line("  1. accept the licence at")
    console.line("     https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m")
    console.line("  2. hf auth login")
    console.line("  3. dinoprobe train YOUR_FOLDER --encoder vits16")
