"""`dinoprobe embed --devices`: the option, and the way to the features by several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from dinoprobe.cli.cluster import Request
    from dinoprobe.cli.console import Console
    from dinoprobe.encoder import EncoderSettings, Int8
    from dinoprobe.engine import Embedding, Facts

Devices = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto|0,1,3",
        help="One process for each of N GPUs, of all, or of those with these numbers; on a CPU N "
        "processes share it.",
        show_default=False,
        rich_help_panel="Encoder",
    ),
]


def places_of(devices: str | None, settings: EncoderSettings, engine: str) -> tuple[str, ...]:
    """torch's names of the devices, each for a process. Raises ConfigurationError."""
    if devices is None:
        return (settings.device,)
    if engine != "local":
        msg = (
            f"--devices {devices} with --engine {engine}: expected one of the two. A cluster is "
            "divided by --actors and --num-gpus-per-actor."
        )
        raise ConfigurationError(msg)
    from dinoprobe.engine import choose_devices

    return choose_devices(devices, settings)


def embed(
    console: Console, request: Request, places: tuple[str, ...], int8: Int8 | None
) -> tuple[Facts, Embedding]:
    """Embed by a process on each of the places, and what they say of the encoder."""
    from dinoprobe.encoder import locate
    from dinoprobe.engine import Flush, Job, embed_on_devices

    reference = locate(request.settings.name, say=console.say, transfer=console.transfer())
    done, facts = embed_on_devices(
        request.dataset,
        Job(request.settings, reference, int8, request.batch_size),
        places,
        store=request.store,
        progress=console.progress(),
        flush=Flush(retry_failures=request.flush.retry_failures),
        say=console.say,
    )
    return facts, done
