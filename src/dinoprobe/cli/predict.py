"""`dinoprobe predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dinoprobe.cli import cluster, kept, options
from dinoprobe.cli.console import Console, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.prediction import Prediction

SCHEMA = "dinoprobe.predict/1"
SHOWN_LABELS = 5


def predict(
    run: Annotated[str, typer.Argument(help="A run directory, or a classifier's directory.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Files, folders, tables, archives, URIs; - reads paths from stdin."),
    ],
    *,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes per image.")] = 5,
    abstain_below: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            show_default=False,
            help="No label where the best probability is below P (default: the rule of train "
            "--target-accuracy; 0: always a label).",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="TABLE",
            help="Keep the predictions in a .parquet file or a .lance dataset (also at a URI); "
            "again, only what changed is scored.",
            rich_help_panel="Output",
        ),
    ] = None,
    all_probabilities: Annotated[
        bool,
        typer.Option(
            "--all-probabilities",
            help="With --out: those of all classes, too.",
            rich_help_panel="Output",
        ),
    ] = False,
    store: options.Store = None,
    path_column: options.PathColumn = None,
    encoder: options.SameEncoder = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    engine: cluster.Engine = "local",
    address: cluster.Address = "auto",
    actors: cluster.Actors = None,
    cpus_per_actor: cluster.CpusPerActor = None,
    gpus_per_actor: cluster.GpusPerActor = None,
    checkpoint_every: cluster.CheckpointEvery = 60.0,
    as_json: options.Json = False,
    as_lines: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="One JSON object a line, as they come.", rich_help_panel="Output"
        ),
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV on stdout.", rich_help_panel="Output")
    ] = False,
    quiet: options.Quiet = False,
    strict: options.Strict = False,
) -> None:
    """Classify images. A broken image gives a failed row, and the rest goes on."""
    console = Console(as_json=as_json, quiet=quiet)
    with console.guarded():
        _one_format(as_json=as_json, as_lines=as_lines, as_csv=as_csv)
        cluster.check_engine(engine)
        from dinoprobe.classifier import ImageClassifier
        from dinoprobe.encoder import EncoderPlace

        place = EncoderPlace(encoder, device, device_map, max_memory, backend)
        if out is not None:
            wanted = kept.Wanted(
                run=run,
                place=place,
                data=kept.one_source(images, is_plain=not (as_lines or as_csv)),
                path_column=path_column,
                out=out,
                store=store,
                scoring=(top_k, abstain_below, all_probabilities),
                seconds=checkpoint_every,
                division=(address, actors, gpus_per_actor, cpus_per_actor),
            )
            console.strict(kept.predict(console, wanted, on_ray=engine == "ray"), asked=strict)
            return
        kept.refuse_without_out(
            store=store, path_column=path_column, engine=engine, all_probabilities=all_probabilities
        )
        classifier = ImageClassifier.load_at(
            run, place, say=console.say, transfer=console.transfer()
        )
        found = _predictions(classifier, images, top_k, abstain_below)
        if as_lines:
            failures = _write_lines(found)
        elif as_csv:
            failures = _write_csv(found)
        elif as_json:
            failures = _write_document(console, classifier, found)
        else:
            failures = _write_table(console, found)
        console.strict(failures, asked=strict)


def _one_format(*, as_json: bool, as_lines: bool, as_csv: bool) -> None:
    from dinoprobe.errors import ConfigurationError

    if as_json + as_lines + as_csv > 1:
        raise ConfigurationError("--json, --jsonl and --csv exclude each other. Give one of them.")


def _predictions(
    classifier: ImageClassifier, images: list[str], top_k: int, abstain_below: float | None
) -> Iterator[Prediction]:
    """All images of all sources; keys of one folder among others begin with its name."""
    from dinoprobe.errors import DatasetError
    from dinoprobe.prediction import Prediction
    from dinoprobe.types import Failure

    several = len(images) > 1 or "-" in images
    for source in _sources(images):
        prefix = f"{source.rstrip('/')}/" if several and isinstance(source, str) else ""
        try:
            for prediction in classifier.predict_iter(
                source, top_k=top_k, abstain_below=abstain_below
            ):
                yield replace(prediction, key=prefix + prediction.key) if prefix else prediction
        except DatasetError as error:
            if not several:
                raise
            failure = Failure(printable(source), "unreadable", str(error))
            yield Prediction(failure.key, None, None, failure=failure)


def _sources(images: list[str]) -> Iterator[str | list[str]]:
    """Neighbouring plain files as one list, so that they fill batches; all others one by one."""
    from pathlib import Path

    from dinoprobe.datasets import is_image_name

    files: list[str] = []
    for image in _with_stdin(images):
        if is_image_name(image) and not Path(image).is_dir():
            files.append(image)
            continue
        if files:
            yield files
            files = []
        yield image
    if files:
        yield files


def _with_stdin(images: list[str]) -> Iterator[str]:
    for image in images:
        if image == "-":
            if hasattr(sys.stdin, "reconfigure"):  # paths are bytes, whatever the locale says
                sys.stdin.reconfigure(errors="surrogateescape")
            yield from filter(None, (line.rstrip("\r\n") for line in sys.stdin))
        else:
            yield image


def _write_lines(predictions: Iterable[Prediction]) -> int:
    failures = 0
    for prediction in predictions:
        failures += prediction.failure is not None
        print(json.dumps(prediction.to_dict(), ensure_ascii=True), flush=True)  # noqa: T201
    return failures


def _write_csv(predictions: Iterable[Prediction]) -> int:
    failures = 0
    _print_csv(["key", "label", "probability", "failure", "labels", "novel"])
    for prediction in predictions:
        reason = prediction.failure.reason if prediction.failure else ""
        failures += prediction.failure is not None
        probability = "" if prediction.probability is None else f"{prediction.probability:.6f}"
        labels = "" if prediction.labels is None else json.dumps(prediction.labels)
        novel = "" if prediction.novelty is None else str(int(prediction.novel))
        _print_csv([prediction.key, prediction.label or "", probability, reason, labels, novel])
    return failures


def _print_csv(values: list[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    sys.stdout.write(text.getvalue())


def _write_document(
    console: Console, classifier: ImageClassifier, predictions: Iterable[Prediction]
) -> int:
    rows = [prediction.to_dict() for prediction in predictions]
    failures = sum("failure" in values for values in rows)
    console.document(
        {
            "schema": SCHEMA,
            "rows": rows,
            "failed": failures,
            "abstained": sum(values["abstained"] for values in rows),
            "flagged": sum(values["novel"] for values in rows),
            "novelty_threshold": classifier.novelty and classifier.novelty.threshold,
            "classes": list(classifier.classes),
            "encoder": classifier.encoder.name,
            "fingerprint": classifier.encoder.fingerprint,
        }
    )
    return failures


def _write_table(console: Console, predictions: Iterable[Prediction]) -> int:
    failures = abstained = novel = total = 0
    for prediction in predictions:
        total += 1
        failures += prediction.failure is not None
        abstained += prediction.abstained
        novel += prediction.novel
        console.line(f"{prediction.key}  {_in_words(prediction)}")
    if failures:
        console.say(f"{failures:,} of {total:,} images could not be used.")
    if abstained:
        console.say(f"{abstained:,} of {total:,} images were too unsure for a label.")
    if novel:
        console.say(f"{novel:,} of {total:,} images are unlike the training images.")
    return failures


def _in_words(prediction: Prediction) -> str:
    if prediction.failure is not None:
        return f"failed: {prediction.failure.reason}"
    text = _answer_in_words(prediction)
    labels = prediction.labels or ()
    if len(labels) > 1:
        more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        text += f"   one of {', '.join(labels[:SHOWN_LABELS])}{more}"
    return f"{text}   unlike the training images" if prediction.novel else text


def _answer_in_words(prediction: Prediction) -> str:
    shown = [f"{score.label} {100 * score.probability:.1f} %" for score in prediction.top[:3]]
    if prediction.label is None:
        return f"no label   ({', '.join(shown)})"
    sure = f"{prediction.label}  {100 * (prediction.probability or 0):.1f} %"
    return sure + (f"   ({', '.join(shown[1:])})" if shown[1:] else "")
