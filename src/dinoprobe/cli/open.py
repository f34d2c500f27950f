"""`dinoprobe open`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console
from dinoprobe.cli.serve import require_serving

if TYPE_CHECKING:
    from dinoprobe.page.workspace import Workspace

SCHEMA = "dinoprobe.open/1"


def open_(
    place: Annotated[
        str, typer.Argument(metavar="RUN|DATA", help="A run's directory, or images without one.")
    ],
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where corrections of images without a run go "
            "(default: runs/<name>-labels/labels.csv).",
            show_default=False,
        ),
    ] = None,
    encoder: options.EncoderName = None,
    pooling: options.PoolingName = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    precision: options.Precision = "auto",
    backend: options.Backend = "auto",
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    store: options.Store = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Open a page on this machine: predict, review, relabel, refit. Images are embedded first."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        require_serving("dinoprobe open")
        from dinoprobe.datasets import DataSettings
        from dinoprobe.encoder import EncoderPlace, EncoderSettings
        from dinoprobe.page.opening import Hearers, is_run, open_data, open_run
        from dinoprobe.page.run import open_page

        hearers = Hearers(console.say, console.progress(), console.transfer())
        work: Workspace
        if is_run(place):
            where = EncoderPlace(encoder, device, backend=backend)
            work = open_run(place, encoder=where, store=store, hearers=hearers)
        else:
            work = open_data(
                DataSettings(
                    source=place,
                    path_column=path_column,
                    label_column=label_column,
                    split_column=split_column,
                    group_column=group_column,
                ),
                EncoderSettings(
                    name=options.require_encoder(encoder),
                    pooling=pooling,
                    device=device,
                    dtype=dtype,
                    precision=precision,
                    backend=backend,
                ),
                store=store,
                labels=labels,
                hearers=hearers,
            )

        def ready(address: str) -> None:
            console.line(f"The page: {address}")
            console.say("Only this machine reaches it, with this address. Ctrl-C ends it.")
            console.document({"schema": SCHEMA, "url": address})
            if not no_browser:
                import webbrowser

                webbrowser.open(address)

        open_page(work, port=port, ready=ready, say=console.say)
