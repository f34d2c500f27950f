"""Options that several verbs share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dinoprobe.errors import ConfigurationError

_COLUMNS = "Tables"
_ENCODER = "Encoder"
_OUTPUT = "Output"

Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=_OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=_OUTPUT)
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit with 4 when an image could not be used.", rich_help_panel=_OUTPUT
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Where to write; must be new.", rich_help_panel=_OUTPUT
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Where features are kept between runs (default: the user's cache).",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        "-e",
        metavar="NAME",
        help="vits16, vitb16, convnext-tiny (dinoprobe models lists them), a hub id, timm:NAME, "
        "a folder or file, or builtin.",
        rich_help_panel=_ENCODER,
    ),
]
SameEncoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        "-e",
        metavar="NAME",
        help="Where the classifier's encoder is now, if it was moved.",
        rich_help_panel=_ENCODER,
    ),
]
PoolingName = Annotated[
    str,
    typer.Option(
        "--pooling",
        help="auto, cls, mean, cls+mean, or blocksN, blocksN+mean: CLS of a ViT's last N blocks.",
        rich_help_panel=_ENCODER,
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_ENCODER)
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16: the type itself, untested.",
        rich_help_panel=_ENCODER,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, exact, bf16 or int8: a class that is tested against plain float32.",
        rich_help_panel=_ENCODER,
    ),
]
Backend = Annotated[
    str, typer.Option(help="auto, torch, openvino or onnxruntime.", rich_help_panel=_ENCODER)
]
Compiled = Annotated[
    bool,
    typer.Option(
        "--compile", help="Have torch compile the layers: for a GPU.", rich_help_panel=_ENCODER
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        metavar="PX",
        min=1,
        help="Side of the model's input (default: the checkpoint's).",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="squash, crop or pad (default: the checkpoint's).",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="The processor's float arithmetic, bit for bit.", rich_help_panel=_ENCODER
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        metavar="3,2,1",
        help="Bands to take as red, green, blue, counted from 1.",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Mean and deviation: imagenet or sat493m (default: the checkpoint's).",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
Rope = Annotated[
    str,
    typer.Option(
        help="float32, or meta-bf16: position frequencies rounded as in Meta's own files.",
        rich_help_panel=_ENCODER,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="Spread a large model over devices: auto, balanced or sequential (extra 'big').",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="0=8GB,cpu=30GB",
        help="With --device-map: memory to use on each device.",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images in one pass (default: by device).",
        show_default=False,
        rich_help_panel=_ENCODER,
    ),
]
PathColumn = Annotated[
    str | None, typer.Option(help="Column with the path.", rich_help_panel=_COLUMNS)
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column with the label.", rich_help_panel=_COLUMNS)
]
SplitColumn = Annotated[
    str | None, typer.Option(help="Column with the part.", rich_help_panel=_COLUMNS)
]
GroupColumn = Annotated[
    str | None,
    typer.Option(help="Column with the group that stays together.", rich_help_panel=_COLUMNS),
]


def refuse_overwriting(data: str, *targets: str | None) -> None:
    """Raises ConfigurationError where a target is what is read, or in no folder."""
    for target in targets:
        if target is None:
            continue
        if Path(target).resolve() == Path(data).resolve():
            msg = f"{target}: is what the images are read from. Give another file."
            raise ConfigurationError(msg)
        if not Path(target).expanduser().absolute().parent.is_dir():
            msg = f"{target}: its folder does not exist. Make it, or give another file."
            raise ConfigurationError(msg)


def parse_bands(text: str | None) -> tuple[int, ...] | None:
    """Band numbers of `3,2,1`. Raises ConfigurationError."""
    if text is None:
        return None
    try:
        bands = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        msg = f"--bands {text}: expected whole numbers with commas, such as 3,2,1."
        raise ConfigurationError(msg) from error
    if min(bands) < 1:
        raise ConfigurationError(f"--bands {text}: bands are counted from 1.")
    return bands


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers of `1,8`, each 1 or more. Raises ConfigurationError."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        msg = f"--{option} {text}: expected whole numbers of 1 or more with commas, such as 1,8."
        raise ConfigurationError(msg)
    return counts


def require_encoder(name: str | None) -> str:
    """The name, for an encoder is never chosen silently. Raises ConfigurationError."""
    if name:
        return name
    msg = (
        "no encoder was given. Add --encoder NAME: vits16 (small, fast), vitb16, vitl16, "
        "convnext-tiny, a hub id or a folder with weights; builtin needs no download and is for "
        "demos and tests only."
    )
    raise ConfigurationError(msg)


def parse_value(text: str) -> Any:
    """A number, true, false, null or a list where the text is JSON, else the text."""
    import json

    def refuse(name: str) -> None:
        raise ConfigurationError(f"{name} was given as a value, expected a finite number.")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError:
        return text


def parse_memory_size(text: str | None) -> int | None:
    """Bytes of `2GB`, None for None. Raises ConfigurationError."""
    from dinoprobe.encoder.placement import parse_size

    size = None if text is None else parse_size(text)
    if text is not None and not size:
        raise ConfigurationError(f"--memory {text}: expected such as 2GB, 512MB or 1GiB.")
    return size


def parse_by_label(option: str, text: str | None, word: str) -> str | dict[str, float] | None:
    """The word itself, or a number for each label from `LABEL=NUMBER,...`."""
    if text is None or text == word:
        return text
    found: dict[str, float] = {}
    for item in text.split(","):
        label, separator, number = item.rpartition("=")
        try:
            found[label] = float(number)
        except ValueError:
            separator = ""
        if not separator or not label:
            msg = f"--{option} {text}: expected {word}, or LABEL=NUMBER,... such as cat=0.9,dog=0.1"
            raise ConfigurationError(f"{msg}. Found {item!r} in it.")
    return found
