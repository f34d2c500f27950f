"""The verbs, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from dinoprobe import __version__
from dinoprobe.cli.bench import app as bench
from dinoprobe.cli.check import check
from dinoprobe.cli.compare import compare
from dinoprobe.cli.demo import demo
from dinoprobe.cli.doctor import doctor
from dinoprobe.cli.embed import embed
from dinoprobe.cli.evaluate import evaluate
from dinoprobe.cli.export import export
from dinoprobe.cli.models import models
from dinoprobe.cli.open import open_
from dinoprobe.cli.predict import predict
from dinoprobe.cli.pull import pull
from dinoprobe.cli.serve import serve
from dinoprobe.cli.train import train

app = typer.Typer(
    name="dinoprobe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for verb in (
    demo, check, train, evaluate, compare, predict, serve, export, embed, models, pull, doctor,
):  # fmt: skip
    app.command()(verb)
app.command("open")(open_)
app.add_typer(bench, name="bench")


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it with one value
    if asked:
        typer.echo(f"dinoprobe {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Turn a frozen DINOv3 image encoder into a classifier that you can trust and ship.

    Start with: dinoprobe demo
    """
    del version
