"""The tutorial's whole job against `dinoprobe train`: same encoder, images and parts; figures too.

    python benchmarks/train.py --data clothing

The tutorial embeds every training image again in each of its 5 epochs, trains a linear layer on
CLS inside that loop, and then embeds and judges the test part. dinoprobe embeds each image once
into an empty store, chooses and fits its head, judges, and writes its run. Sides take turns, each
in a process of its own, and are timed twice: as whole processes, and after the imports, from
opening the encoder to the last figure. The fastest round of each side counts, because neighbours
only make it slower, and the tutorial's threads most; what they took of the machine is in the
result. One JSON file, and the table of docs/performance.md from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jobs import (
    DOCUMENT,
    RESULTS,
    dinoprobe,
    import_all,
    machine,
    random_checkpoint,
    table,
    timed_process,
    write_between,
)

from dinoprobe.bench.neighbours import Neighbours

RESULT = RESULTS / "train-cpu.json"
START = "<!-- written by benchmarks/train.py -->"
EPOCHS, BATCH, LEARNING_RATE = 5, 32, 1e-3
PRECISIONS = ("float32", "bfloat16")
ENCODERS = ("vits16", "builtin")
MODULES = ("torch", "transformers.models.dinov3_vit.modeling_dinov3_vit", "PIL.Image")
TUTORIAL_MODULES = (*MODULES, "sklearn.metrics", "dinoprobe.bench.tutorial")
DINOPROBE_MODULES = (*MODULES, "lance", "scipy.optimize", "dinoprobe.train")
TUTORIAL = (
    f"linear layer on CLS, Adam {LEARNING_RATE}, {EPOCHS} epochs in batches of {BATCH}, images "
    "decoded and embedded anew in each; transformers in float32 without gradients"
)


def main() -> None:
    """Measure, or only write the document anew from a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="a folder with train/CLASS/ and test/CLASS/, beside rendered digits",
    )
    parser.add_argument("--train", type=int, default=300, help="images of the train part")
    parser.add_argument("--test", type=int, default=100, help="images of the test part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the subset and of the tutorial")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--write-only", action="store_true", help="no measuring")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)  # one side, for `main` itself
    options = parser.parse_args()
    if options.side:
        sys.stdout.write(json.dumps(side(*options.side, seed=options.seed)))
        return
    if not options.write_only:
        result = measure(options)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_document(json.loads(options.out.read_text(encoding="utf-8")), DOCUMENT)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole result."""
    from dinoprobe.versions import versions

    counts = {"train": options.train, "test": options.test}
    shown = f"--data {options.data.name} " if options.data else ""
    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as name:
        place = Path(name)
        weights = {"vits16": str(random_checkpoint(place / "vits16", "vits16"))}
        found = []
        for source in [options.data, None] if options.data else [None]:
            kind = source.name if source else "rendered digits"
            images = place / kind
            subset(source or rendered(place / "all", counts), images, counts, options.seed)
            for encoder in ("builtin",) if options.data and source is None else ENCODERS:
                about = {"encoder": encoder, "random_weights": encoder in weights, "data": kind}
                sides = compare(str(images), weights.get(encoder, encoder), options)
                found.append({**about, **sides})
    return {
        "command": f"python benchmarks/train.py {shown}--train {options.train} "
        f"--test {options.test} --rounds {options.rounds}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "images": counts,
        "rounds": options.rounds,
        "tutorial": TUTORIAL,
        "results": found,
    }


def rendered(folder: Path, counts: dict[str, int]) -> Path:
    """The demo's pictures, without its planted faults."""
    from PIL import Image

    from dinoprobe.demo.render import digit_parts, render_scenes

    train_digits, train_labels, test_digits, test_labels = digit_parts()
    parts = {"train": (train_digits, train_labels), "test": (test_digits, test_labels)}
    for seed, (part, (digits, labels)) in enumerate(parts.items()):
        count = counts[part]
        scenes = render_scenes(digits[:count], seed)
        for number, (scene, label) in enumerate(zip(scenes, labels[:count], strict=True)):
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene).save(folder / part / label / f"{number:04d}.png")
    return folder


def subset(source: Path, target: Path, counts: dict[str, int], seed: int) -> None:
    """Copies of as many images of each part, drawn by the seed."""
    rng = np.random.default_rng(seed)
    for part, count in counts.items():
        found = sorted(path for path in (source / part).glob("*/*") if path.is_file())
        if len(found) < count:
            raise SystemExit(f"{source / part}: {len(found)} images, {count} were asked for.")
        for index in sorted(rng.permutation(len(found))[:count].tolist()):
            copy = target / part / found[index].parent.name / found[index].name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(found[index].read_bytes())


def compare(images: str, encoder: str, options: argparse.Namespace) -> dict[str, Any]:
    """The sides in turn, and the fastest round of each."""
    seconds: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    others: dict[str, list[float | None]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for name in ("tutorial", *PRECISIONS):
            arguments = ["--side", name, images, encoder, "--seed", str(options.seed)]
            with Neighbours() as neighbours:
                figures[name], process = timed_process([__file__, *arguments])
            others.setdefault(name, []).append(neighbours.cores)
            seconds.setdefault(name, []).append(figures[name].pop("seconds"))
            if name != "tutorial":
                process = command_line(images, encoder, name)
            whole.setdefault(name, []).append(process)
            what = f"{seconds[name][-1]:.1f} s, whole process {process:.1f} s"
            print(f"{name}: {what}, others {neighbours.cores} cores", flush=True)
    values = {
        name: {
            **figures[name],
            "seconds": min(seconds[name]),
            "process_seconds": min(whole[name]),
            "seconds_of_rounds": seconds[name],
            "process_seconds_of_rounds": whole[name],
            "cores_of_others": others[name],
        }
        for name in figures
    }
    tutorial = values.pop("tutorial")
    for entry in values.values():
        entry["ratio"] = tutorial["seconds"] / entry["seconds"]
        entry["ratio_of_processes"] = tutorial["process_seconds"] / entry["process_seconds"]
    return {"tutorial": tutorial, "dinoprobe": values}


def command_line(images: str, encoder: str, precision: str) -> float:
    """Seconds of the whole `dinoprobe train` with an empty store."""
    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as place:
        _, seconds = dinoprobe(
            "train", images, "--encoder", encoder, "--dtype", precision, "--device", "cpu",
            "--store", f"{place}/store", "--out", f"{place}/run",
        )  # fmt: skip
    return seconds


def side(name: str, images: str, encoder: str, *, seed: int) -> dict[str, Any]:
    """One side in this process: its seconds after the imports, and its figures."""
    if name == "tutorial":
        import_all(*TUTORIAL_MODULES)
        return tutorial_job(Path(images), encoder, seed=seed)
    import_all(*DINOPROBE_MODULES)
    return dinoprobe_job(images, encoder, name)


def tutorial_job(images: Path, name: str, *, seed: int) -> dict[str, Any]:
    """Train with the frozen encoder inside the loop, then judge the test part."""
    import torch
    from sklearn.metrics import precision_recall_fscore_support

    from dinoprobe.bench.tutorial import tutorial_features
    from dinoprobe.encoder import EncoderSettings, open_encoder

    start = time.perf_counter()
    settings = EncoderSettings(name=name, pooling="cls", device="cpu", dtype="float32")
    encoder = open_encoder(settings)
    classes = sorted(path.name for path in (images / "train").iterdir())
    paths, y = listed(images / "train", classes)
    torch.manual_seed(seed)
    layer = torch.nn.Linear(encoder.dimension, len(classes))
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(paths)).split(BATCH):
            features = torch.from_numpy(tutorial_features([paths[row] for row in rows], encoder))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(features), y[rows]).backward()
            optimizer.step()
    paths, y = listed(images / "test", classes)
    with torch.no_grad():
        predicted = layer(torch.from_numpy(tutorial_features(paths, encoder))).argmax(1)
    precision, recall, _, _ = precision_recall_fscore_support(
        y, predicted, average="macro", zero_division=0
    )
    correct = int((predicted == y).sum())
    return {
        "seconds": time.perf_counter() - start,
        **_accuracy(correct, len(paths)),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "pooling": encoder.pooling,
    }


def listed(folder: Path, classes: list[str]) -> tuple[list[str], Any]:
    """Files of a part, and the class of each as a tensor of integers."""
    import torch

    paths = sorted(folder.glob("*/*"))
    return [str(path) for path in paths], torch.tensor(
        [classes.index(p.parent.name) for p in paths]
    )


def dinoprobe_job(images: str, name: str, precision: str) -> dict[str, Any]:
    """`dinoprobe train` by its Python API, with an empty store and all its reports."""
    from dinoprobe.encoder import EncoderSettings
    from dinoprobe.train import DataSettings, TrainConfig, train

    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as place:
        config = TrainConfig(
            data=DataSettings(source=images),
            encoder=EncoderSettings(name=name, device="cpu", dtype=precision),
            store=f"{place}/store",
            out=f"{place}/run",
        )
        start = time.perf_counter()
        trained = train(config)
        seconds = time.perf_counter() - start
    evaluation = trained.outcome.evaluation
    return {
        "seconds": seconds,
        **_accuracy(round(evaluation.accuracy * evaluation.n), evaluation.n),
        "macro_precision": evaluation.macro_precision,
        "macro_recall": evaluation.macro_recall,
        "pooling": trained.classifier.encoder.pooling,
        "protocol": trained.context.protocol,
    }


def _accuracy(correct: int, n: int) -> dict[str, Any]:
    from dinoprobe.evaluation import wilson

    return {"accuracy": correct / n, "interval": list(wilson(correct, n)), "n_test": n}


def write_document(result: dict[str, Any], document: Path) -> None:
    """Put the table between its marks."""
    columns = [
        "encoder", "images", "precision", "tutorial", "dinoprobe train", "ratio", "whole processes",
        "accuracy, tutorial", "accuracy, dinoprobe",
    ]  # fmt: skip
    rows = [
        row(entry, precision, ours)
        for entry in result["results"]
        for precision, ours in entry["dinoprobe"].items()
    ]
    source = f"`{result['command']}`, {result['date']}, {result['machine']}"
    how = f"torch {result['versions']['torch']}; fastest of {result['rounds']} rounds in turn."
    write_between(document, START, [f"{source}, {how}", "", *table(columns, rows)])


def row(entry: dict[str, Any], precision: str, ours: dict[str, Any]) -> list[str]:
    """One line of the table."""
    tutorial = entry["tutorial"]
    processes = f"{tutorial['process_seconds']:.1f} s to {ours['process_seconds']:.1f} s"
    return [
        f"{entry['encoder']}, random weights" if entry["random_weights"] else entry["encoder"],
        entry["data"],
        precision,
        f"{tutorial['seconds']:.1f} s",
        f"{ours['seconds']:.1f} s",
        f"{ours['ratio']:.1f} x",
        f"{processes}: {ours['ratio_of_processes']:.1f} x",
        f"{100 * tutorial['accuracy']:.0f} % of {tutorial['n_test']}",
        f"{100 * ours['accuracy']:.0f} % of {ours['n_test']}",
    ]


if __name__ == "__main__":
    main()
