"""`dinoprobe export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console
from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from dinoprobe.export import Destination

_HUB = "Hugging Face hub"


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
    precision: Annotated[
        str,
        typer.Option(
            help="exact (float32); with onnx and openvino also fp16 (weights in float16: half the "
            "size) or int8 (smaller and faster, judged by its accuracy on the run's images).",
        ),
    ] = "exact",
    encoder: options.SameEncoder = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the finished folder to this repository on the Hugging Face hub, in one "
            "commit. Nothing leaves without it.",
            rich_help_panel=_HUB,
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Who may read the repository (default: private).",
            show_default=False,
            rich_help_panel=_HUB,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH",
            help="Upload to this branch, which is made if it is not there (default: main).",
            show_default=False,
            rich_help_panel=_HUB,
        ),
    ] = None,
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
            precision=precision,
            out=out,
            encoder=encoder,
            push_to=_destination(push_to_hub, private=private, revision=revision),
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
        if accuracy := report["accuracy"]:
            console.line(
                f"Accuracy {100 * accuracy['export']:.2f} %, of the classifier "
                f"{100 * accuracy['classifier']:.2f} %."
            )
        if exported.pushed_to is not None:
            pushed = exported.pushed_to
            seen = "private" if pushed["private"] else "public"
            console.line(f"{pushed['url']} ({seen}) has it, as commit {pushed['commit'][:12]}.")
        console.document(exported.summary)


def _destination(
    repository: str | None, *, private: bool | None, revision: str | None
) -> Destination | None:
    """None without --push-to-hub. Raises ConfigurationError for an option that belongs to it."""
    from dinoprobe.export import Destination

    if repository is not None:
        return Destination(repository, private=private is not False, revision=revision)
    if private is None and revision is None:
        return None
    given = "--revision" if revision is not None else "--private" if private else "--public"
    msg = f"{given} without --push-to-hub, expected both. Name the repository, or leave it out."
    raise ConfigurationError(msg)
