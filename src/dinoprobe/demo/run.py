"""The demo: render the task as real image files, train on them, and show what goes wrong.

Six wrong labels and three broken files are planted in the training part, to show how they are
reported. Pictures and features stay in the folder, so a second run renders and embeds nothing.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoprobe.demo.render import SCENE_SIZE_PX, digit_parts, render_scenes
from dinoprobe.encoder import EncoderSettings
from dinoprobe.errors import FormatError
from dinoprobe.files import read_json, write_json
from dinoprobe.report import Baseline
from dinoprobe.train import DataSettings, TrainConfig, TrainedRun, train

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dinoprobe.types import Progress

SCHEMA = "dinoprobe.demo/1"
_PICTURES_VERSION = 2
_SEED = 0
_BASELINE_SIDE_PX = 16
_WRONG_LABELS = 6
_BROKEN = ("empty.png", "cut-off.png", "a-web-page.jpg")


class Part(NamedTuple):
    """One side of the task: scenes `(n, size, size, 3)` uint8 and their labels."""

    name: str
    scenes: npt.NDArray[np.uint8]
    labels: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    """The trained run with the baseline, and how many of the planted wrong labels were found.

    `planted_found` of `planted` stand among the first `looked_at` rows of suspects.csv.
    """

    folder: Path
    trained: TrainedRun
    baseline: Baseline
    planted: int
    planted_found: int
    looked_at: int
    summary: dict[str, Any]


def run_demo(
    out: str,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DemoRun:
    """Render, train and report in the folder `out`, which may hold an earlier demo.

    Raises WriteError when the folder can not be written.
    """
    start = time.perf_counter()
    folder = Path(out).expanduser()
    planted, baseline = _pictures(folder, say)
    trained = train(_config(folder), progress=progress, say=say, baseline=baseline)
    first = {suspect.key for suspect in trained.suspects[: 2 * len(planted)]}
    found = len(first & set(planted))
    summary = {
        **trained.summary,
        "schema": SCHEMA,
        "baseline_accuracy": baseline.accuracy,
        "baseline_interval": list(baseline.interval or ()),
        "planted_wrong_labels": len(planted),
        "planted_wrong_labels_found": found,
        "planted_broken_files": len(_BROKEN),
        "images": str(folder / "digits"),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return DemoRun(
        folder=folder,
        trained=trained,
        baseline=baseline,
        planted=len(planted),
        planted_found=found,
        looked_at=2 * len(planted),
        summary=summary,
    )


def _config(folder: Path) -> TrainConfig:
    number = 1
    while (run := folder / f"run-{number:03d}").exists():
        number += 1
    return TrainConfig(
        data=DataSettings(source=str(folder / "digits")),
        encoder=EncoderSettings(name="builtin", device="cpu"),
        seed=_SEED,
        store=str(folder / "store"),
        out=str(run),
        command="dinoprobe demo",
    )


def _pictures(folder: Path, say: Callable[[str], None]) -> tuple[list[str], Baseline]:
    """Keys of the training pictures with a wrong label, and the baseline on the pictures.

    Both follow from the version and the seed; a second time they are read from pictures.json.
    """
    marker = folder / "pictures.json"
    facts = {"version": _PICTURES_VERSION, "seed": _SEED, "size_px": SCENE_SIZE_PX}
    known = _known_pictures(marker)
    if known.get("facts") == facts and (folder / "digits" / "test").is_dir():
        name, accuracy, (low, high) = known["baseline"]
        return list(known["planted"]), Baseline(name, accuracy, (low, high))
    if known:
        shutil.rmtree(folder / "digits", ignore_errors=True)  # of an earlier version
    parts = _parts()
    planted = _write_pictures(folder / "digits", parts)
    baseline = _baseline(*parts)
    write_json(marker, {"facts": facts, "planted": planted, "baseline": list(baseline)})
    say(f"Pictures: {sum(len(part.labels) for part in parts):,} written to {folder / 'digits'}")
    return planted, baseline


def _known_pictures(marker: Path) -> dict[str, Any]:
    try:
        known = read_json(marker)
    except (OSError, FormatError):
        return {}
    return known if isinstance(known, dict) else {}


def _parts() -> tuple[Part, Part]:
    from dinoprobe.heads.threads import one_torch_thread

    train_digits, train_labels, test_digits, test_labels = digit_parts()
    with one_torch_thread():
        return (
            Part("train", render_scenes(train_digits, _SEED), train_labels.tolist()),
            Part("test", render_scenes(test_digits, _SEED + 1), test_labels.tolist()),
        )


def _write_pictures(images: Path, parts: tuple[Part, Part]) -> list[str]:
    """Keys of the training pictures that lie in a wrong folder."""
    wrong = _wrong_labels(parts[0].labels)
    for part in parts:
        moved = wrong if part.name == "train" else {}
        for row, (scene, label) in enumerate(zip(part.scenes, part.labels, strict=True)):
            _write_png(images / part.name / moved.get(row, label) / _file_name(row), scene)
    _write_broken(images / "train" / "0")
    return [f"train/{label}/{_file_name(row)}" for row, label in wrong.items()]


def _file_name(row: int) -> str:
    return f"scene-{row:04d}.png"


def _wrong_labels(labels: list[str]) -> dict[int, str]:
    """Rows with the wrong folder that each goes to."""
    rng = np.random.default_rng(_SEED)
    rows = sorted(rng.choice(len(labels), _WRONG_LABELS, replace=False).tolist())
    return {row: str((int(labels[row]) + int(rng.integers(1, 10))) % 10) for row in rows}


def _write_png(path: Path, scene: npt.NDArray[np.uint8]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene).save(path)


def _write_broken(folder: Path) -> None:
    whole = min(folder.glob("scene-*.png")).read_bytes()
    contents = (b"", whole[: len(whole) // 2], b"<!DOCTYPE html><html><body>404</body></html>")
    for name, content in zip(_BROKEN, contents, strict=True):
        (folder / name).write_bytes(content)


def _baseline(train_part: Part, test_part: Part) -> Baseline:
    """A logistic head, its strength chosen the same way, on raw pixels of 16 x 16."""
    from dinoprobe.evaluation import wilson
    from dinoprobe.heads import LogisticProbe

    head = LogisticProbe(random_state=_SEED)
    head.fit(_pixels(train_part.scenes), np.array(train_part.labels, dtype=object))
    right = int(np.sum(head.predict(_pixels(test_part.scenes)) == np.array(test_part.labels)))
    n = len(test_part.labels)
    return Baseline("a logistic head on raw pixels", right / n, wilson(right, n))


def _pixels(scenes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """`(n, 16 * 16 * 3)` block means in [0, 1]."""
    n, size = scenes.shape[:2]
    block, side = size // _BASELINE_SIDE_PX, _BASELINE_SIDE_PX
    blocks = scenes.reshape(n, side, block, side, block, 3).mean(axis=(2, 4)) / 255.0
    return np.asarray(blocks.reshape(n, -1), dtype=np.float32)
