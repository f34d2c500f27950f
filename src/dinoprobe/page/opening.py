"""From a run, or from images alone, to a workspace: what is known is not encoded again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dinoprobe.classifier import ImageClassifier, classifier_folder
from dinoprobe.encoder import EncoderPlace, open_encoder
from dinoprobe.engine import embed
from dinoprobe.errors import ConfigurationError, FormatError, HeadError
from dinoprobe.files import read_json
from dinoprobe.heads import RidgeProbe
from dinoprobe.heads.base import LinearBase
from dinoprobe.page.fitting import Model, Recipe
from dinoprobe.page.workspace import Origin, Workspace
from dinoprobe.partition import set_aside
from dinoprobe.run import DEFAULT_FOLDER, absolute, dataset_name, known_rows, run_of
from dinoprobe.store import FeatureStore
from dinoprobe.train import read_train_config
from dinoprobe.types import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.datasets import DataSettings, SplitRow
    from dinoprobe.encoder import Encoder, EncoderSettings
    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.types import Dataset, Features, Progress, Split

LABELS_FILE = "labels.csv"


@dataclass(frozen=True, slots=True)
class Hearers:
    """Who wants to know what goes on while a workspace is opened."""

    say: Callable[[str], None] = lambda _: None
    progress: Progress | None = None
    transfer: Transfer | None = None


def is_run(place: str) -> bool:
    """Whether a place is the directory of a run, or of its classifier."""
    try:
        classifier_folder(place)
    except FormatError:
        return False
    return True


def open_run(
    place: str,
    *,
    encoder: EncoderPlace = EncoderPlace(),  # noqa: B008 - frozen
    store: str | None = None,
    hearers: Hearers = Hearers(),
) -> Workspace:
    """The run's images with its labels, its split and its classifier.

    Raises FormatError for a classifier that has left its run, HeadError for one whose head is not
    of one label an image, and what `ImageClassifier.load_at` and `embed` raise.
    """
    folder = classifier_folder(place).resolve()
    home = run_of(folder)
    if home == folder:
        raise FormatError(
            f"{place}: a classifier that has left its run; expected a run's directory, with "
            "config.json and split.csv. Open the images: dinoprobe open IMAGES --encoder NAME."
        )
    config = read_train_config(home / "config.json")
    classifier = ImageClassifier.load_at(
        folder, encoder, say=hearers.say, transfer=hearers.transfer
    )
    if not isinstance(classifier.head, LinearBase) and hasattr(classifier.head, "thresholds_"):
        raise HeadError(
            f"{place}: its head gives several labels an image; expected one. The page can not "
            "show it: use dinoprobe predict."
        )
    store = store or config.store
    dataset, features, notes = _embedded(config.data, classifier.encoder, store, hearers)
    features, splits, changed = _as_in_run(features, known_rows(home))
    first = Model.of(classifier.head, features.X, 0)
    recipe = Recipe.of_run(config, classifier.training.get("head") or {})
    work = Workspace(
        origin=Origin(
            title=home.name,
            data=config.data,
            encoder=config.encoder,
            labels=home / LABELS_FILE,
            run=home,
            store=store,
        ),
        features=features,
        samples={sample.key: sample for sample in dataset.samples},
        splits=splits,
        encoder=classifier.encoder,
        recipe=recipe,
        novelty=classifier.novelty,
        first=first,
        model=first,
        figures=read_json(home / "evaluation.json"),
        notes=(*notes, *changed),
    )
    if recipe.stands_in:
        work.first = work.model = _stand_in(work)
    return work


def _stand_in(work: Workspace) -> Model:
    """What refits are compared with: ridge regression on the labels as the run had them."""
    rows = [
        row
        for row, part in enumerate(work.splits)
        if part in ("train", "val") and work.features.y[row] is not None
    ]
    head = work.recipe.fit(work.features.X[rows], work.features.y[rows])
    return Model.of(head, work.features.X, 0)


def open_data(
    data: DataSettings,
    encoder: EncoderSettings,
    *,
    store: str | None = None,
    labels: str | None = None,
    hearers: Hearers = Hearers(),
) -> Workspace:
    """Images without a run, embedded first; `labels` is where corrections go, by default
    `runs/<dataset>-labels/labels.csv`. There is a model where two classes have labels.
    """
    if encoder.precision == "int8":
        raise ConfigurationError(
            "int8 is calibrated for a run; expected another precision. Leave out --precision."
        )
    loaded = open_encoder(encoder, say=hearers.say, transfer=hearers.transfer)
    dataset, features, notes = _embedded(data, loaded, store, hearers)
    if not len(features):
        raise ConfigurationError(
            f"{dataset.uri}: none of {len(dataset):,} images can be used; expected one at least. "
            f"The first: {features.failures[0].reason}"
        )
    name = dataset_name(dataset.uri)
    place = Path(labels) if labels else Path(DEFAULT_FOLDER, f"{name}-labels", LABELS_FILE)
    tested = set_aside(features)
    given = set(features.splits) - {None, "train"}
    work = Workspace(
        origin=Origin(
            title=name,
            data=replace(data, source=absolute(data.source)),
            encoder=encoder,
            labels=place.expanduser().absolute(),
            store=store,
        ),
        features=features,
        samples={sample.key: sample for sample in dataset.samples},
        splits=tuple("test" if given and held else None for held in tested),
        encoder=loaded,
        recipe=Recipe("ridge", RidgeProbe()),
        notes=(*loaded.notes, *notes),
    )
    standing = work.standing()
    rows = work.training_rows(standing)
    if len({str(label) for label in standing.labels[rows]}) > 1:
        head = work.recipe.fit(features.X[rows], standing.labels[rows])
        work.first = work.model = Model.of(head, features.X, standing.version)
    return work


def _embedded(
    data: DataSettings, encoder: Encoder, store: str | None, hearers: Hearers
) -> tuple[Dataset, Features, tuple[str, ...]]:
    dataset = data.open()
    hearers.say(f"{len(dataset):,} images in {dataset.uri}")
    found = embed(
        dataset, encoder, store=FeatureStore(store), progress=hearers.progress or NoProgress()
    )
    for note in (*dataset.notes, *found.notes):
        hearers.say(note)
    return dataset, found.features, (*dataset.notes, *found.notes)


def _as_in_run(
    features: Features, known: dict[str, SplitRow]
) -> tuple[Features, tuple[Split | None, ...], tuple[str, ...]]:
    """Labels and parts that the run had; rows that it did not have are in no part.

    An image whose bytes are others now is in no part either: it could be in the wrong one.
    """
    y = features.y.copy()
    splits: list[Split | None] = []
    counts: dict[str, int] = {"new": 0, "changed": 0}
    for row, (key, digest) in enumerate(zip(features.keys, features.hashes, strict=True)):
        found = known.get(key)
        if found is None or (found.content_hash not in (None, digest)):
            counts["new" if found is None else "changed"] += 1
            splits.append(None)
            continue
        y[row] = found.label
        splits.append(found.split)
    words = {
        "new": "{:,} images came after the run: they are in no part of its split.",
        "changed": "{:,} images have other content than in the run, and are in no part any more.",
    }
    notes = tuple(words[name].format(count) for name, count in counts.items() if count)
    return replace(features, y=y), tuple(splits), notes


__all__ = ["Hearers", "is_run", "open_data", "open_run"]
