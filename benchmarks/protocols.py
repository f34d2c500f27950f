"""`auto` beside every head, pooling and protocol that it could have been, as JSON on stdout.

    python benchmarks/protocols.py FOLDER ... [--seeds 5] [--encoder builtin] [--resplit]

Images of each folder are embedded once. For each seed the training part chooses, as `dinoprobe
train` does, and the test part is judged: by `auto`, by each of its candidates, and by the other
protocols on cached features. `loss_to_best` is the mean accuracy of the best of them over the seeds
less that of `auto`, in points: picked with sight of the test part, which `auto` never has.
--resplit sets parts that a folder brings aside and makes one for each seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from jobs import machine

from dinoprobe.datasets import DataSettings
from dinoprobe.encoder import EncoderSettings, open_encoder
from dinoprobe.engine import embed
from dinoprobe.partition import partition, selection_folds
from dinoprobe.store import FeatureStore
from dinoprobe.train import TrainConfig
from dinoprobe.train.candidates import choose
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from dinoprobe.types import Features

OTHERS = ("tutorial", "dinov3-logreg", "dinov3-knn", "dinov2-linear")
POOLING = "blocks4+mean"
AUTO_POOLING = "cls+mean"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resplit", action="store_true", help="set given parts aside")
    options = parser.parse_args()
    document = {
        "command": f"python {' '.join(['benchmarks/protocols.py', *sys.argv[1:]])}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "sets": [measured(folder, options) for folder in options.folders],
    }
    print(json.dumps(document, indent=2))


def measured(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracies of one folder."""
    config = TrainConfig(
        data=DataSettings(source=folder),
        encoder=EncoderSettings(name=options.encoder, pooling=POOLING),
    )
    features = embed(
        config.data.open(), open_encoder(config.encoder), store=FeatureStore()
    ).features
    if options.resplit:
        features = replace(features, splits=(None,) * len(features))
    found: dict[str, list[float]] = {}
    chosen = []
    for seed in range(options.seeds):
        accuracies, kept = judged(features, replace(config, seed=seed))
        for name, accuracy in accuracies.items():
            found.setdefault(name, []).append(accuracy)
        chosen.append(kept)
        print(f"{folder}, seed {seed}: {kept}, {100 * accuracies['auto']:.1f} %", file=sys.stderr)
    means = {name: 100 * float(np.mean(values)) for name, values in found.items()}
    best = max((name for name in means if name != "auto"), key=means.__getitem__)
    return {
        "folder": folder,
        "resplit": options.resplit,
        "images": len(features),
        "seeds": options.seeds,
        "chosen": chosen,
        "mean_accuracy": dict(sorted(means.items(), key=lambda item: -item[1])),
        "best": best,
        "loss_to_best": means[best] - means["auto"],
    }


def judged(features: Features, config: TrainConfig) -> tuple[dict[str, float], str]:
    """Accuracy on the test part of everything, and what `auto` kept."""
    parts = partition(features, seed=config.seed, test_fraction=config.test_fraction)
    rows = parts.rows("train", "val")
    training, test = features.select(rows), features.select(parts.rows("test"))
    folds = selection_folds(training, [parts.splits[row] for row in rows], seed=config.seed)

    def accuracy(head: Any, pooling: str) -> float:
        return float((head.predict(test.pooled(pooling).X) == test.y).mean())

    auto = choose(config, training.pooled(AUTO_POOLING), folds, lambda _: None)
    kept = str(auto.training.pooling)
    found = {"auto": accuracy(auto.head, kept)}
    for each in auto.judged:
        name, pooling = each.candidate.name, each.candidate.pooling
        found[f"{name} on {pooling}"] = accuracy(each.head, pooling)
    for name in OTHERS:
        given = {"dinov2-linear": POOLING, "tutorial": AUTO_POOLING}.get(name, "cls")
        asked = replace(config, protocol=name)
        other = choose(asked, training.pooled(given), folds, lambda _: None)
        found[name] = accuracy(other.head, str(other.training.pooling))
    return found, f"{auto.name} on {kept}"


if __name__ == "__main__":
    main()
