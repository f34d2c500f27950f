"""`dinoprobe bench embed` and `bench serve`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

app = typer.Typer(no_args_is_help=True, help="Measure speed against the plain way and the limit.")

_RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="The published shape, without its weights.")
]


@app.callback()
def bench() -> None:
    """Measure speed against the plain way and the limit."""


@app.command()
def embed(
    data: Annotated[
        str | None, typer.Argument(help="A folder with JPEGs (default: rendered ones).")
    ] = None,
    *,
    encoder: options.EncoderName = None,
    random_weights: _RandomWeights = False,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Render photographs (as without a folder).")
    ] = False,
    large_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the rendered ones, how many are 4000 x 3000.")
    ] = 0.0,
    images: Annotated[int, typer.Option(min=8, help="Images in a round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    tutorial: Annotated[
        bool, typer.Option(help="Also run the tutorial's loop, in float32.")
    ] = True,
    pooling: options.PoolingName = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    precision: options.Precision = "auto",
    backend: options.Backend = "auto",
    compiled: options.Compiled = False,
    size: options.Size = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """From JPEG files to features: images per second, beside the tutorial's loop and the limit."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        from dinoprobe.errors import ConfigurationError

        if synthetic and data is not None:
            msg = "--synthetic renders photographs, and a folder was given. Leave one out."
            raise ConfigurationError(msg)
        name = options.require_encoder(encoder)
        from dinoprobe.bench import EmbedBench, run_embed_bench
        from dinoprobe.encoder import EncoderSettings

        found = run_embed_bench(
            EmbedBench(
                encoder=EncoderSettings(
                    name=name,
                    pooling=pooling,
                    device=device,
                    dtype=dtype,
                    precision=precision,
                    backend=backend,
                    compiled=compiled,
                    size_px=size,
                ),
                random_weights=random_weights,
                folder=data,
                images=images,
                rounds=rounds,
                large_share=large_share,
                tutorial=tutorial,
            ),
            say=console.say,
        )
        _show(console, found)
        console.document(found)


def _show(console: Console, found: dict[str, Any]) -> None:
    console.line(
        f"{found['encoder']}, {found['precision']}, {found['backend']} on {found['device']} with "
        f"{found['threads']} threads"
    )
    rows = [
        ("files to features", f"{found['images_per_second']:.1f}", "images/s"),
        ("  of its bound", f"{100 * found['pipeline_share_of_bound']:.0f}", "%"),
        ("forward alone", f"{found['forward_images_per_second']:.1f}", "images/s"),
        ("  of the best matrix product", f"{100 * found['forward_share_of_ceiling']:.0f}", "%"),
        ("decode and resize alone", f"{found['decode_images_per_second']:.0f}", "images/s"),
    ]
    if found["tutorial_images_per_second"] is not None:
        rows += [
            ("tutorial's loop, float32", f"{found['tutorial_images_per_second']:.1f}", "images/s"),
            ("  the engine is faster by", f"{found['ratio_to_tutorial']:.2f}", "times"),
            ("  1 - cosine to it, mean", f"{1 - found['cosine_mean']:.1e}", ""),
            ("  1 - cosine to it, most", f"{1 - found['cosine_min']:.1e}", ""),
        ]
    others = found["cores_of_others"]
    if others is not None and others >= 0.1:
        rows.append(("other processes used", f"{others:.2f}", "cores: repeat on a quiet machine"))
    if found["peak_memory_bytes"] is not None:
        rows.append(("peak memory", f"{found['peak_memory_bytes'] / 1e9:.2f}", "GB"))
    console.table(rows, right=[1])


@app.command()
def serve(
    run: Annotated[
        str | None, typer.Argument(help="A run directory (default: a head of noise).")
    ] = None,
    *,
    encoder: options.EncoderName = None,
    random_weights: _RandomWeights = False,
    concurrency: Annotated[
        str, typer.Option(metavar="1,8", help="Clients at a time, one load after the other.")
    ] = "1,2,8,16",
    requests: Annotated[int, typer.Option(min=8, help="Requests of a load.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """The service under load, beside the direct loop: images per second, and waiting times."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        clients = options.parse_counts("concurrency", concurrency)
        name = encoder if run else options.require_encoder(encoder)
        from dinoprobe.bench import ServeBench, run_serve_bench
        from dinoprobe.encoder import EncoderSettings

        found = run_serve_bench(
            ServeBench(
                run=run,
                encoder=EncoderSettings(name=name) if name else None,
                random_weights=random_weights,
                concurrency=clients,
                requests=requests,
                rounds=rounds,
            ),
            say=console.say,
        )
        _show_serve(console, found)
        console.document(found)


def _show_serve(console: Console, found: dict[str, Any]) -> None:
    console.line(f"{found['encoder']}, {found['precision']}, {found['backend']}")
    direct = found["direct_images_per_second"]
    single = 1000 * found["direct_single_s"]
    console.line(f"direct loop {direct:.1f} images/s; one image alone {single:.1f} ms")
    rows = [["clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "refused"]]
    for load in found["loads"]:
        waits = [_milliseconds(load[f"p{share}_s"]) for share in (50, 95, 99)]
        rate = f"{load['images_per_second']:.1f}"
        rows.append([str(load["concurrency"]), rate, *waits, str(load["refused"])])
    console.table(rows, right=range(6))
    console.line(f"best share of the direct loop: {100 * found['share_of_direct']:.0f} %")
    if found["ratio_to_single"] is not None:
        console.line(f"one client's p50 over one direct call: {found['ratio_to_single']:.2f}")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"
