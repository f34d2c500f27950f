"""`dinoprobe embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinoprobe.cli import options
from dinoprobe.cli.console import Console

if TYPE_CHECKING:
    from dinoprobe.encoder import Encoder
    from dinoprobe.engine import Embedding
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
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
) -> None:
    """Compute the features of images and keep them; only what is new or changed is encoded."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        name, chosen_bands = options.require_encoder(encoder), options.parse_bands(bands)
        _refuse_overwriting(data, export, failures)
        from dinoprobe.datasets import DataSettings
        from dinoprobe.encoder import EncoderSettings, open_encoder
        from dinoprobe.engine import embed as run_embedding
        from dinoprobe.engine import write_failures
        from dinoprobe.export_features import export_features, writer_for
        from dinoprobe.quantize import int8_for
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
        dataset = DataSettings(
            source=data,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group_column,
        ).open()
        int8 = int8_for(
            dataset,
            settings,
            say=console.say,
            progress=console.progress(),
            transfer=console.transfer(),
        )
        loaded = open_encoder(settings, say=console.say, transfer=console.transfer(), int8=int8)
        features_store = FeatureStore(store)
        done = run_embedding(
            dataset,
            loaded,
            store=features_store,
            batch_size=batch_size or "auto",
            progress=console.progress(),
        )
        for note in (*dataset.notes, *loaded.notes, *done.notes):
            console.say(note)
        written = [] if export is None else [str(p) for p in export_features(done.features, export)]
        if failures is not None:
            passed_over = [Failure(key, "ignored", why) for key, why in dataset.ignored_files]
            write_failures(failures, [*done.features.failures, *passed_over])
        document = _document(dataset, done, features_store.uri, loaded)
        _show(console, done, document)
        for path in written:
            console.line(f"Written: {path}")
        console.document(document)
        console.strict(done.failed, asked=strict)


def _refuse_overwriting(data: str, *targets: str | None) -> None:
    from dinoprobe.errors import ConfigurationError

    for target in targets:
        if target is None:
            continue
        if Path(target).resolve() == Path(data).resolve():
            msg = f"{target}: is what the images are read from. Give another file."
            raise ConfigurationError(msg)
        if not Path(target).expanduser().absolute().parent.is_dir():
            msg = f"{target}: its folder does not exist. Make it, or give another file."
            raise ConfigurationError(msg)


def _document(dataset: Dataset, done: Embedding, store: str, encoder: Encoder) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "embedded": done.embedded,
        "cached": done.cached,
        "failed": done.failed,
        "skipped": sum(dataset.ignored.values()),
        "store": store,
        "encoder": encoder.name,
        "backend": encoder.backend,
        "precision": encoder.precision,
        "fingerprint": done.features.fingerprint,
        "base_fingerprint": encoder.base_fingerprint,
        "pooling": encoder.pooling,
        "content_digest": done.content_digest(),
        "images_per_second": done.images_per_second,
        "seconds": done.seconds,
        "dimension": int(done.features.X.shape[1]),
        "failures": [failure._asdict() for failure in done.features.failures],
        "ignored": dict(dataset.ignored),
    }


def _show(console: Console, done: Embedding, document: dict[str, Any]) -> None:
    console.line(
        f"{done.embedded:,} images have features, {done.cached:,} of them from before; "
        f"{done.failed:,} failed, {document['skipped']:,} files skipped"
    )
    console.line(
        f"{document['dimension']} dimensions, {document['precision']} by {document['backend']}; "
        f"{done.encoded:,} images encoded in {done.seconds:.1f} s, "
        f"{done.images_per_second:.1f} images/s"
    )
    for failure in done.features.failures[:_SHOWN_FAILURES]:
        console.line(f"  failed: {failure.key}: {failure.reason}")
    if done.failed > _SHOWN_FAILURES:
        console.line(f"  and {done.failed - _SHOWN_FAILURES:,} more (--failures FILE lists all)")
    console.line(f"Store: {document['store']}")
    console.line(f"Fingerprint: {document['fingerprint']} ({document['pooling']})")
