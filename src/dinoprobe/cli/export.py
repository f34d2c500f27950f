"""`dinoprobe export`."""

from __future__ import annotations

from typing import Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console


def export(
    run: Annotated[str, typer.Argument(help="A run directory, or a classifier's directory.")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="onnx (one file for ONNX Runtime), head (the linear layer alone, kilobytes), "
            "transformers (a folder for its pipeline), timm (a folder for timm.create_model) or "
            "openvino (model.xml).",
        ),
    ],
    encoder: options.SameEncoder = None,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a classifier for other programs, if it answers there as it does here."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        from dinoprobe.export import export as write

        exported = write(
            run,
            to,
            out=out,
            encoder=encoder,
            transfer=console.transfer(),
            say=console.say,
        )
        report = exported.report
        console.line(f"{exported.path}  ({report['size_bytes'] / 1e6:,.1f} MB)")
        console.line(
            f"On {report['images']} images ({report['images_are']}) the best label agrees on "
            f"{100 * report['top1_agreement']:.1f} %, and probabilities within "
            f"{report['max_probability_difference']:.1g}; the figures are in gate.json beside it."
        )
        console.document(exported.summary)
