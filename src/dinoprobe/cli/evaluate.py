"""`dinoprobe evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console
from dinoprobe.errors import ConfigurationError


def evaluate(
    run: Annotated[str, typer.Argument(help="A run directory, or a classifier's directory.")],
    data: Annotated[
        str | None,
        typer.Argument(help="Labelled images (default: the run's own test part)."),
    ] = None,
    *,
    encoder: options.SameEncoder = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    store: options.Store = None,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
) -> None:
    """Evaluate a saved classifier on labelled images; nothing is fitted."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        if data is None and (path_column or label_column or split_column or group_column):
            msg = "columns belong to images that are given, and none are. Name a table."
            raise ConfigurationError(msg)
        from dinoprobe.cli.show import show_outcome
        from dinoprobe.datasets import DataSettings
        from dinoprobe.encoder import EncoderPlace
        from dinoprobe.scoring import score

        settings = None
        if data is not None:
            settings = DataSettings(
                source=data,
                path_column=path_column,
                label_column=label_column,
                split_column=split_column,
                group_column=group_column,
            )
        scored = score(
            run,
            settings,
            place=EncoderPlace(encoder, device, device_map, max_memory, backend),
            store=store,
            out=out,
            progress=console.progress(),
            transfer=console.transfer(),
            say=console.say,
        )
        n = scored.outcome.evaluation.n
        console.line(f"{n:,} images; {scored.context.protocol}")
        show_outcome(console, scored.path, scored.outcome, scored.context)
        console.document(scored.summary)
        console.strict(len(scored.context.failures), asked=strict)
