"""`dinoprobe embed`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinoprobe.cli import cluster, estimates, options
from dinoprobe.cli.cluster import Outcome, Request
from dinoprobe.cli.console import Console
from dinoprobe.cli.devices import Devices, places_of
from dinoprobe.cli.devices import embed as embed_on_devices

if TYPE_CHECKING:
    from dinoprobe.encoder import Encoder, Int8
    from dinoprobe.engine import Embedding, Estimate, Facts
    from dinoprobe.types import Dataset

SCHEMA = "dinoprobe.embed/1"
_SHOWN_FAILURES = 5


def embed(
    data: Annotated[str, typer.Argument(help="Folder, table, archive, image or URI.")],
    *,
    encoder: options.EncoderName = None,
    export: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also write the features to a .npy, .safetensors or .parquet file.",
            rich_help_panel="Output",
        ),
    ] = None,
    failures: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also list the failures, and the files passed over, in this CSV.",
            rich_help_panel="Output",
        ),
    ] = None,
    pooling: options.PoolingName = "auto",
    device: options.Device = "auto",
    devices: Devices = None,
    dtype: options.Dtype = "auto",
    precision: options.Precision = "auto",
    backend: options.Backend = "auto",
    compiled: options.Compiled = False,
    size: options.Size = None,
    resize: options.Resize = None,
    exact: options.Exact = False,
    bands: options.Bands = None,
    normalize: options.Normalize = None,
    rope: options.Rope = "float32",
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    batch_size: options.BatchSize = None,
    path_column: options.PathColumn = None,
    label_column: options.LabelColumn = None,
    split_column: options.SplitColumn = None,
    group_column: options.GroupColumn = None,
    store: options.Store = None,
    retry_failures: Annotated[
        bool,
        typer.Option(
            "--retry-failures", help="Try images again that failed before and did not change."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what it would cost, by a sample, and write nothing.",
            rich_help_panel="Output",
        ),
    ] = False,
    engine: cluster.Engine = "local",
    address: cluster.Address = "auto",
    actors: cluster.Actors = None,
    cpus_per_actor: cluster.CpusPerActor = None,
    gpus_per_actor: cluster.GpusPerActor = None,
    checkpoint_every: cluster.CheckpointEvery = 60.0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
) -> None:
    """Compute the features of images and keep them; only what is new or changed is encoded."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        name, chosen_bands = options.require_encoder(encoder), options.parse_bands(bands)
        options.refuse_overwriting(data, export, failures)
        cluster.check_engine(engine)
        from dinoprobe.datasets import DataSettings
        from dinoprobe.encoder import EncoderSettings
        from dinoprobe.engine import Flush, write_failures
        from dinoprobe.export_features import export_features, writer_for
        from dinoprobe.store import FeatureStore
        from dinoprobe.types import Failure

        if export is not None:
            writer_for(Path(export))
        settings = EncoderSettings(
            name=name,
            pooling=pooling,
            device=device,
            dtype=dtype,
            precision=precision,
            backend=backend,
            compiled=compiled,
            size_px=size,
            resize=resize,
            exact=exact,
            bands=chosen_bands,
            normalize=normalize,
            rope=rope,
            device_map=device_map,
            max_memory=max_memory,
        )
        places = places_of(devices, settings, engine)
        dataset = DataSettings(
            source=data,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
        ).open()
        request = Request(
            dataset,
            replace(settings, device=places[0]),
            FeatureStore(store),
            batch_size or "auto",
            Flush(seconds=checkpoint_every, retry_failures=retry_failures),
            (address, actors, gpus_per_actor, cpus_per_actor),
        )
        on_ray = engine == "ray"
        if dry_run:
            found = (
                cluster.estimated(console, request)
                if on_ray
                else _estimated(console, request, places)
            )
            estimates.show(console, *found, store=request.store.uri)
            return
        if on_ray:
            outcome = cluster.embed(console, request, read_back=export is not None)
        else:
            outcome = _embedded(console, request, places)
        for note in (*dataset.notes, *outcome.notes):
            console.say(note)
        written: list[str] = []
        if export is not None and outcome.features is not None:
            written = [str(path) for path in export_features(outcome.features, export)]
        if failures is not None:
            passed_over = [Failure(key, "ignored", why) for key, why in dataset.ignored_files]
            write_failures(failures, [*outcome.failures, *passed_over])
        document = _document(dataset, outcome, request.store.uri)
        _show(console, outcome, document)
        for path in written:
            console.line(f"Written: {path}")
        console.document(document)
        console.strict(len(outcome.failures), asked=strict)


def _int8(console: Console, request: Request) -> Int8 | None:
    from dinoprobe.quantize import int8_for

    return int8_for(
        request.dataset,
        request.settings,
        say=console.say,
        progress=console.progress(),
        transfer=console.transfer(),
    )


def _encoder(console: Console, request: Request) -> Encoder:
    from dinoprobe.encoder import open_encoder

    int8, transfer = _int8(console, request), console.transfer()
    return open_encoder(request.settings, say=console.say, transfer=transfer, int8=int8)


def _embedded(console: Console, request: Request, places: tuple[str, ...]) -> Outcome:
    """Embed in this process, or by a process on each of several places."""
    from dinoprobe.engine import Flush
    from dinoprobe.engine import embed as run_embedding

    if len(places) > 1:
        facts, done = embed_on_devices(console, request, places, _int8(console, request))
        return _outcome(facts, done, places)
    encoder = _encoder(console, request)
    done = run_embedding(
        request.dataset,
        encoder,
        store=request.store,
        batch_size=request.batch_size,
        progress=console.progress(),
        flush=Flush(retry_failures=request.flush.retry_failures),
    )
    return _outcome(encoder, done, (str(encoder.device),))


def _outcome(encoder: Encoder | Facts, done: Embedding, places: tuple[str, ...]) -> Outcome:
    return Outcome(
        encoder=encoder,
        embedded=done.embedded,
        cached=done.cached,
        encoded=done.encoded,
        failures=done.features.failures,
        seconds=done.seconds,
        notes=(*encoder.notes, *done.notes),
        content_digest=done.content_digest(),
        features=done.features,
        devices=places,
    )


def _estimated(
    console: Console, request: Request, places: tuple[str, ...]
) -> tuple[Encoder, Estimate]:
    """What it would cost, by what one device does; processes on one CPU do no more than one."""
    from dinoprobe.engine import estimate, measure
    from dinoprobe.engine.ledger import row_kind

    encoder = _encoder(console, request)
    return encoder, estimate(
        request.dataset,
        row_kind(encoder),
        encoder.dimension,
        request.store,
        lambda samples: measure(samples, encoder, batch_size=request.batch_size),
        workers=len(set(places)),
        retry_failures=request.flush.retry_failures,
    )


def _document(dataset: Dataset, outcome: Outcome, store: str) -> dict[str, Any]:
    encoder = outcome.encoder
    return {
        "schema": SCHEMA,
        "embedded": outcome.embedded,
        "cached": outcome.cached,
        "failed": len(outcome.failures),
        "skipped": sum(dataset.ignored.values()),
        "store": store,
        "encoder": encoder.name,
        "backend": encoder.backend,
        "precision": encoder.precision,
        "devices": list(outcome.devices),
        "fingerprint": encoder.fingerprint,
        "base_fingerprint": encoder.base_fingerprint,
        "pooling": encoder.pooling,
        "content_digest": outcome.content_digest,
        "images_per_second": outcome.images_per_second,
        "seconds": outcome.seconds,
        "dimension": encoder.dimension,
        "failures": [failure._asdict() for failure in outcome.failures],
        "ignored": dict(dataset.ignored),
    }


def _show(console: Console, outcome: Outcome, document: dict[str, Any]) -> None:
    failed = len(outcome.failures)
    console.line(
        f"{outcome.embedded:,} images have features, {outcome.cached:,} of them from before; "
        f"{failed:,} failed, {document['skipped']:,} files skipped"
    )
    console.line(
        f"{document['dimension']} dimensions, {document['precision']} by {document['backend']}; "
        f"{outcome.encoded:,} images encoded in {outcome.seconds:.1f} s, "
        f"{outcome.images_per_second:.1f} images/s"
    )
    for failure in outcome.failures[:_SHOWN_FAILURES]:
        console.line(f"  failed: {failure.key}: {failure.reason}")
    if failed > _SHOWN_FAILURES:
        console.line(f"  and {failed - _SHOWN_FAILURES:,} more (--failures FILE lists all)")
    console.line(f"Store: {document['store']}")
    console.line(f"Fingerprint: {document['fingerprint']} ({document['pooling']})")
