"""`dinoprobe doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.doctor import Check
    from dinoprobe.types import Dataset

_MARKS = {"ok": "ok", "note": "note", "failed": "FAILED", "unverified": "not verified"}
_CHECKS = "Checks"


def doctor(
    *,
    encoder: options.EncoderName = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    normalize: options.Normalize = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images on which --dtype is compared with float32.",
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    golden: Annotated[
        bool,
        typer.Option(
            "--golden",
            help="Fetch COCO's picture and compare with the published vectors.",
            rich_help_panel=_CHECKS,
        ),
    ] = False,
    golden_image: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The same, with the picture (COCO val2017/000000039769.jpg) from a file.",
            rich_help_panel=_CHECKS,
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Can I use these weights here? Versions, device, disk, token, access, weights, precision."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        _refuse_lonely(encoder, images, golden=golden or golden_image is not None)
        from dinoprobe.doctor import Wishes, examine
        from dinoprobe.encoder import EncoderSettings

        settings = None
        if encoder is not None:
            settings = EncoderSettings(
                name=encoder, device=device, dtype=dtype, normalize=normalize
            )
        found = examine(
            settings,
            device=device,
            dtype=dtype,
            wishes=Wishes(golden, golden_image, _opened(images)),
            on_check=lambda check: _show(console, check),
            progress=console.progress,
        )
        console.document({**found.to_dict(), **_ending(found.error)})
        if found.error is not None:
            raise found.error


def _ending(error: Exception | None) -> dict[str, object]:
    return {
        "message": None if error is None else str(error),
        "exit_code": 0 if error is None else int(getattr(error, "exit_code", 2)),
    }


def _refuse_lonely(encoder: str | None, images: str | None, *, golden: bool) -> None:
    from dinoprobe.errors import ConfigurationError

    if encoder is None and (images is not None or golden):
        msg = "--images and --golden belong to an encoder, and none was given. Add --encoder NAME."
        raise ConfigurationError(msg)


def _opened(images: str | None) -> Dataset | None:
    from dinoprobe.datasets import open_dataset

    return open_dataset(images) if images is not None else None


def _show(console: Console, check: Check) -> None:
    console.line(f"{_MARKS[check.state]:<12}  {check.name:<14}  {check.text}")
