"""`dinoprobe serve`: a predictor, its limits, and what is said once it listens."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.server.predictor import Predictor

SCHEMA = "dinoprobe.serve/1"
_LIMITS = "Limits"


def serve(
    run: Annotated[
        str,
        typer.Argument(
            help="A run or a classifier's directory, or the folder or file of an ONNX export."
        ),
    ],
    *,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DINOPROBE_TOKEN",
            help="Ask clients for 'Authorization: Bearer TOKEN'. Others on this machine can read a "
            "command line, so better set the variable or use --token-file.",
            show_default=False,
            show_envvar=True,
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where the token stands.", show_default=False),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a token.")
    ] = False,
    name: Annotated[str, typer.Option(help="The model's name in the protocol.")] = "classifier",
    max_body_mb: Annotated[
        float, typer.Option(min=0.001, help="Of one request.", rich_help_panel=_LIMITS)
    ] = 32,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, help="Of one image.", rich_help_panel=_LIMITS)
    ] = 50,
    max_images: Annotated[
        int, typer.Option(min=1, help="In one request.", rich_help_panel=_LIMITS)
    ] = 64,
    max_pending: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images admitted and not answered (0: three batches a core).",
            rich_help_panel=_LIMITS,
        ),
    ] = 0,
    deadline: Annotated[
        float, typer.Option(min=0.01, help="Seconds to an answer.", rich_help_panel=_LIMITS)
    ] = 10,
    body_timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds for a body.", rich_help_panel=_LIMITS)
    ] = 10,
    decode_timeout: Annotated[
        float,
        typer.Option(min=0.01, help="Seconds to decode one image.", rich_help_panel=_LIMITS),
    ] = 5,
    max_stuck: Annotated[
        int,
        typer.Option(
            min=0,
            help="Decoders beyond their time; with more, /readyz says no.",
            rich_help_panel=_LIMITS,
        ),
    ] = 4,
    exit_when_stuck: Annotated[
        bool,
        typer.Option(
            "--exit-when-stuck",
            help="End then, with exit code 1, to be started again.",
            rich_help_panel=_LIMITS,
        ),
    ] = False,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Open at a time.", rich_help_panel=_LIMITS)
    ] = 1024,
    drain: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds from SIGTERM in which requests are still taken.",
            rich_help_panel=_LIMITS,
        ),
    ] = 0,
    encoder: options.SameEncoder = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve a classifier over HTTP. With --json a document says the address once it listens."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        token = _token(token, token_file)
        _refuse_open(host, token, insecure=insecure)
        require_serving("dinoprobe serve")
        from dinoprobe.server.run import serve as serve_forever
        from dinoprobe.server.settings import MIB, ServerSettings

        settings = ServerSettings(
            host=host,
            port=port,
            token=token,
            model_name=name,
            max_body_bytes=round(max_body_mb * MIB),
            max_buffered_bytes=round(max(8 * max_body_mb, 256) * MIB),
            max_pixels=round(max_megapixels * 1e6),
            max_images=max_images,
            max_pending=max_pending,
            deadline_s=deadline,
            body_timeout_s=body_timeout,
            decode_timeout_s=decode_timeout,
            max_stuck=max_stuck,
            exit_when_stuck=exit_when_stuck,
            max_connections=max_connections,
            drain_s=drain,
        )
        predictor = _predictor(run, encoder, device, backend, console)

        def ready(address: str) -> None:
            for line in _told(address, predictor.info(), token, token_file):
                console.say(line)
            console.document({"schema": SCHEMA, "url": address, "model": name})

        serve_forever(predictor, settings, ready=ready, logs=not quiet)


def _told(address: str, info: dict[str, Any], token: str | None, file: str | None) -> list[str]:
    """What a person needs to go on: what is served, where, and how to ask it."""
    near = address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104
    first = f"Serving {len(info['classes'])} classes ({info['encoder']}, {info['backend']} on "
    key = ""
    if token:
        key = f"$(cat {shlex.quote(file)})" if file else "$DINOPROBE_TOKEN"
        key = f' -H "Authorization: Bearer {key}"'
    return [
        f"{first}{info['device']}) at {address}. Ctrl-C ends it.",
        f"  ask it       curl -F file=@photo.jpg{key} {near}/predict",
        f"  interface    {near}/docs, for programs {near}/openapi.json",
        f"  state        {near}/readyz, {near}/metrics, {near}/info",
    ]


def _token(token: str | None, file: str | None) -> str | None:
    """The token, from a file where one is named. Raises ConfigurationError."""
    from dinoprobe.errors import ConfigurationError

    if file is None:
        return token
    if token is not None:
        message = "a token and --token-file; expected one of them (DINOPROBE_TOKEN counts as the "
        raise ConfigurationError(f"{message}first). Leave one out.")
    found = Path(file).read_text(encoding="utf-8", errors="replace").strip()
    if not found or not found.isascii():
        message = f"{file}: no token in it; expected one, in ASCII. Write it, or name another file."
        raise ConfigurationError(message)
    return found


def _predictor(
    run: str, encoder: str | None, device: str, backend: str, console: Console
) -> Predictor:
    file = Path(run, "model.onnx")
    if run.endswith(".onnx") or file.is_file():
        exported = run if run.endswith(".onnx") else str(file)
        return _exported(exported, encoder, device, backend)
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.encoder import EncoderPlace
    from dinoprobe.server.predictor import ClassifierPredictor

    place = EncoderPlace(encoder, device, backend=backend)
    return ClassifierPredictor(
        ImageClassifier.load_at(run, place, say=console.say, transfer=console.transfer())
    )


def _exported(run: str, encoder: str | None, device: str, backend: str) -> Predictor:
    """Without torch. Raises ConfigurationError for options of a saved classifier."""
    from dinoprobe.errors import ConfigurationError
    from dinoprobe.server.exported import OnnxPredictor

    if encoder or device not in {"auto", "cpu"} or backend not in {"auto", "onnxruntime"}:
        message = "an exported file holds its encoder and runs on the CPU by ONNX Runtime"
        raise ConfigurationError(f"{run}: {message}. Leave out --encoder, --device, --backend.")
    return OnnxPredictor(run)


def _refuse_open(host: str, token: str | None, *, insecure: bool) -> None:
    """Beyond this machine only with a token, or on purpose. Raises ConfigurationError."""
    from dinoprobe.errors import ConfigurationError

    if token or insecure or host in {"127.0.0.1", "::1", "localhost"}:
        return
    message = (
        f"--host {host} lets other machines in, and there is no token; expected one. Set "
        "DINOPROBE_TOKEN, or add --insecure where the network is closed."
    )
    raise ConfigurationError(message)


def require_serving(verb: str) -> None:
    """Raise MissingExtraError where what answers requests is not installed."""
    from importlib.util import find_spec

    from dinoprobe.errors import MissingExtraError

    needed = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
    if any(find_spec(module) is None for module in needed):
        raise MissingExtraError(verb, "serve")
