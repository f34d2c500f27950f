"""The data check from a source of images: embed, look at the files, and write what was found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dinoprobe.audit import Check, Pictures
from dinoprobe.audit import check as check_features
from dinoprobe.audit.finding import COLUMNS
from dinoprobe.audit.pictures import facts_of
from dinoprobe.datasets import open_dataset
from dinoprobe.duplicates import pixels_of
from dinoprobe.engine import embed
from dinoprobe.files import write_json
from dinoprobe.run import check_out, new_check, write_table
from dinoprobe.store import FeatureStore
from dinoprobe.types import NoProgress
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dinoprobe.encoder import Encoder
    from dinoprobe.engine import Embedding
    from dinoprobe.types import Progress

SCHEMA = "dinoprobe.check/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedData:
    """What `check_data` found, and the embedding that it rests on."""

    dataset: str
    encoder: str
    found: Check
    embedding: Embedding
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `--json`, but for where it was written."""
        return {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "encoder": self.encoder,
            **self.found.to_dict(),
            "notes": list(self.notes),
            "skipped": self.embedding.skipped,
            "embedded": self.embedding.embedded,
            "cached": self.embedding.cached,
            "versions": versions(),
            "seconds": round(self.seconds, 3),
        }


def check(
    source: object,
    encoder: Encoder,
    *,
    store: FeatureStore | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Check:
    """What is wrong with whatever `open_dataset` takes; `dinoprobe.audit` has the words.

    `store` is a place for features, None for the user's cache. Raises DatasetError, EncoderError
    and StoreError.
    """
    return check_data(source, encoder, store=store, seed=seed, progress=progress).found


def check_data(
    source: object,
    encoder: Encoder,
    *,
    store: FeatureStore | str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CheckedData:
    """As `check`, with what the verb tells beside. `say` gets sentences on the way."""
    start = time.perf_counter()
    dataset = open_dataset(source)
    place = store if isinstance(store, FeatureStore) else FeatureStore(store)
    embedding = embed(
        dataset,
        encoder,
        store=place,
        batch_size=batch_size or "auto",
        progress=progress or NoProgress(),
    )
    features = embedding.features
    notes = (*dataset.notes, *encoder.notes, *embedding.notes)
    for note in notes:
        say(note)
    say(f"Looking at the files of {len(features):,} images")
    samples = {sample.key: sample for sample in dataset.samples}
    facts = facts_of(features, samples, bands=encoder.preprocessing.bands)
    read = pixels_of(features, dataset, encoder.preprocessing)
    found = check_features(features, pictures=Pictures(facts, read), seed=seed, say=say)
    return CheckedData(
        dataset=dataset.uri,
        encoder=encoder.name,
        found=found,
        embedding=embedding,
        seconds=time.perf_counter() - start,
        notes=(*notes, *found.notes),
    )


def write_check(checked: CheckedData, out: str | None) -> tuple[Path, dict[str, Any]]:
    """Write check.json and check.csv, both or none; their directory, and the document.

    `out` is a new directory, None for `runs/<dataset>-check-001` and so on. Raises WriteError and
    ConfigurationError.
    """
    check_out(out)
    with new_check(out, checked.dataset) as staged:
        document = checked.to_dict()
        write_json(staged.folder / "check.json", document)
        write_table(staged.folder / "check.csv", COLUMNS, checked.found.rows())
    return staged.path, {**document, "out": str(staged.path)}
