"""`dinoprobe predict --out`: predictions in a table, of which a second run scores what changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.cli import options
from dinoprobe.cli.cluster import Division, opened
from dinoprobe.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.cli.console import Console
    from dinoprobe.encoder import EncoderPlace
    from dinoprobe.engine import Ledger
    from dinoprobe.predicted import Terms, Updated
    from dinoprobe.predicted.tables import Table
    from dinoprobe.store import FeatureStore
    from dinoprobe.types import Dataset, Sample

SCHEMA = "dinoprobe.predict-table/1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. `scoring` is --top-k, --abstain-below and --all-probabilities."""

    run: str
    place: EncoderPlace
    data: str
    path_column: str | None
    out: str
    store: str | None
    scoring: tuple[int, float | None, bool]
    seconds: float
    division: Division


@dataclass(frozen=True, slots=True)
class _Work:
    """What was asked for, opened."""

    console: Console
    wanted: Wanted
    dataset: Dataset
    store: FeatureStore
    table: Table

    def finish(
        self,
        classifier: ImageClassifier,
        ledger: Ledger,
        again: Callable[[Sequence[Sample]], None] | None = None,
    ) -> tuple[Ledger, Terms, Updated]:
        """Score from the store what the engine has filled in."""
        from dinoprobe.predicted import Terms, classifier_digest, update

        digest = classifier_digest(classifier)
        fingerprint = classifier.encoder.fingerprint
        terms = Terms(digest, classifier.classes, fingerprint, *self.wanted.scoring)
        return ledger, terms, update(classifier, terms, self.table, ledger, self.store, again)


def one_source(images: list[str], *, is_plain: bool) -> str:
    """The one dataset of a table. Raises ConfigurationError for several, and other formats."""
    if not is_plain:
        raise ConfigurationError("--out with --jsonl or --csv: expected one of them.")
    if len(images) != 1 or images[0] == "-":
        raise ConfigurationError(
            f"--out with {len(images)} sources: expected one folder, table, archive or URI, whose "
            "images the table follows. Put the paths into a CSV or Parquet table, and give that."
        )
    return images[0]


def refuse_without_out(**given: object) -> None:
    """Raises ConfigurationError for an option that means nothing without --out."""
    for name, value in given.items():
        if value not in (None, False, "local"):
            raise ConfigurationError(
                f"--{name.replace('_', '-')} without --out: predictions on stdout come from the "
                "images as they are read, in this process. Add --out TABLE.parquet."
            )


def predict(console: Console, wanted: Wanted, *, on_ray: bool) -> int:
    """Bring the table up to the dataset; the number of images that could not be used."""
    from dinoprobe.datasets import DataSettings
    from dinoprobe.predicted import open_table
    from dinoprobe.store import FeatureStore

    started = time.perf_counter()
    table = open_table(wanted.out)
    if "://" not in wanted.out:
        options.refuse_overwriting(wanted.data, wanted.out)
    table.terms()  # what is no table of ours is refused before any work
    dataset = DataSettings(source=wanted.data, path_column=wanted.path_column).open()
    work = _Work(console, wanted, dataset, FeatureStore(wanted.store), table)
    ledger, terms, found = (_on_ray if on_ray else _here)(work)
    summary = ledger.summary()
    for note in (*dataset.notes, *summary.notes):
        console.say(note)
    _show(console, found, len(ledger.encoded), wanted.out)
    console.document(
        {"schema": SCHEMA}
        | found._asdict()
        | {
            "encoded": len(ledger.encoded),
            "skipped": summary.skipped,
            "out": wanted.out,
            "store": work.store.uri,
            "classifier": terms.classifier,
            "fingerprint": terms.fingerprint,
            "seconds": time.perf_counter() - started,
        }
    )
    return found.failed


def _here(work: _Work) -> tuple[Ledger, Terms, Updated]:
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.engine import Filling, reader_of
    from dinoprobe.predicted import refuse_tokens

    console = work.console
    classifier = ImageClassifier.load_at(
        work.wanted.run, work.wanted.place, say=console.say, transfer=console.transfer()
    )
    refuse_tokens(classifier)
    encoder = classifier.encoder
    progress = console.progress()
    filling = Filling(reader_of(encoder), work.dataset, encoder, work.store, progress)
    filling.work_off(filling.begin())
    found = work.finish(classifier, filling.ledger, filling.work_off)
    filling.finish()
    return found


def _on_ray(work: _Work) -> tuple[Ledger, Terms, Updated]:
    """Workers open the encoder and fill the store; this process holds the head alone."""
    from dinoprobe.classifier import (
        ImageClassifier,
        classifier_folder,
        open_saved_encoder,
        read_config,
    )
    from dinoprobe.engine import Flush
    from dinoprobe.predicted import refuse_tokens
    from dinoprobe.ray_engine import embed_on_ray

    console, wanted = work.console, work.wanted
    folder = classifier_folder(wanted.run).absolute()
    config = read_config(folder)
    place = replace(wanted.place, name=_everywhere(wanted.place.name, config))
    opener = partial(open_saved_encoder, folder, config, place)
    flush = Flush(seconds=wanted.seconds)
    with opened(console, opener, work.store.uri, wanted.division, flush=flush) as (found, job, f):
        classifier = ImageClassifier.load_with(folder, f)
        refuse_tokens(classifier)
        done = embed_on_ray(
            work.dataset, job, f,
            cluster=found, store=work.store, flush=flush, progress=console.progress(),
        )  # fmt: skip
    return work.finish(classifier, done.ledger)


def _everywhere(name: str | None, config: dict[str, Any]) -> str | None:
    """The encoder's place by a path that does not depend on where a process was started."""
    saved = config["encoder"]
    given = name if name is not None or saved["bundled"] else str(saved["name"])
    if given is not None and Path(given).exists():
        return str(Path(given).absolute())
    return name


def _show(console: Console, found: Updated, encoded: int, out: str) -> None:
    if found.because is not None:
        console.line(f"Scored again, by another {found.because} than before.")
    console.line(
        f"{found.rows:,} images: {found.kept:,} rows kept, {found.scored:,} scored, "
        f"{encoded:,} encoded, {found.dropped:,} dropped, {found.failed:,} failed"
    )
    if found.abstained:
        console.line(f"{found.abstained:,} of those scored were too unsure for a label")
    if found.flagged:
        console.line(f"{found.flagged:,} of those scored are unlike the training images")
    console.line(f"Table: {out}")
