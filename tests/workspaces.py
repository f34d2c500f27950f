"""A workspace without an encoder: flat pictures whose features are their mean colour."""

from __future__ import annotations

import csv
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tests.predictors import MeanColour

from dinoprobe.datasets import DataSettings, open_dataset
from dinoprobe.encoder import EncoderSettings
from dinoprobe.heads import LogisticProbe, RidgeProbe
from dinoprobe.page.fitting import Model, Recipe
from dinoprobe.page.run import guarded_page, settings_for
from dinoprobe.page.workspace import Origin, Workspace
from dinoprobe.server.service import Service
from dinoprobe.types import Failure, Features, content_hash

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {"red": (200, 40, 40), "green": (40, 190, 40), "blue": (40, 40, 200)}
TOKEN = "token-of-a-test"
PORT = 8765
AN_HOUR_AGO = time.time() - 3600


def write_colours(folder: Path, per_class: int = 12, seed: int = 0) -> Path:
    """`folder/<part>/<colour>/<i>.png`: a quarter of each colour is the test part."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        for i in range(per_class):
            part = "test" if i % 4 == 0 else "train"
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            shade = np.clip(rng.normal(colour, 18), 0, 255).astype(np.uint8)
            Image.new("RGB", (24, 20), tuple(shade.tolist())).save(place / f"{i}.png")
            os.utime(place / f"{i}.png", (AN_HOUR_AGO, AN_HOUR_AGO))  # younger ones are read again
    return folder


def make_workspace(
    root: Path,
    *,
    run: bool = True,
    labelled: bool = True,
    per_class: int = 12,
    failures: tuple[Failure, ...] = (),
) -> Workspace:
    """The pictures of `write_colours` with a model, or unlabelled and without one."""
    folder = root / "colours"
    if not folder.exists():
        write_colours(folder, per_class)
    dataset = open_dataset(str(folder))
    pixels = [np.asarray(Image.open(folder / sample.key)) for sample in dataset.samples]
    X = np.stack([array.mean(axis=(0, 1)) for array in pixels]).astype(np.float32)
    y = np.array([s.label if labelled else None for s in dataset.samples], dtype=object)
    features = Features(
        keys=tuple(sample.key for sample in dataset.samples),
        X=X,
        y=y,
        classes=dataset.classes if labelled else (),
        fingerprint="ab" * 16,
        hashes=tuple(content_hash(sample.source.read()) for sample in dataset.samples),
        splits=tuple(sample.split for sample in dataset.samples),
        groups=(None,) * len(y),
        failures=failures,
    )
    home = root / "runs" / "colours-001"
    home.mkdir(parents=True, exist_ok=True)
    recipe = Recipe("logistic", LogisticProbe(C=1.0)) if run else Recipe("ridge", RidgeProbe())
    work = Workspace(
        origin=Origin(
            title="colours-001",
            data=DataSettings(source=str(folder)),
            encoder=EncoderSettings(name="builtin"),
            labels=home / "labels.csv",
            run=home if run else None,
        ),
        features=features,
        samples={sample.key: sample for sample in dataset.samples},
        splits=features.splits if labelled else (None,) * len(y),
        encoder=encoder(),
        recipe=recipe,
        figures={"accuracy": 1.0, "accuracy_interval": [0.7, 1.0], "n": 9} if run else {},
    )
    if run:
        standing = work.standing()
        rows = np.flatnonzero(~work.is_test())
        head = recipe.fit(X[rows], y[rows])
        work.first = work.model = Model.of(head, X, standing.version)
    return work


def encoder() -> Any:
    """What the page asks of an encoder."""
    plain = SimpleNamespace(bands=None)
    return SimpleNamespace(name="mean colour", pooling="cls", preprocessing=plain)


def served(work: Workspace, port: int = PORT) -> tuple[Any, Service]:
    """The page behind its gates, and its service."""
    service = Service(MeanColour(lanes=1), settings_for(port))
    gate = guarded_page(work, service, TOKEN, lambda _: None)
    gate.port = port
    return gate, service


def write_rows(path: Path, *rows: tuple[object, ...]) -> None:
    """A CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
