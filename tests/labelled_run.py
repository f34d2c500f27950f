"""A run with its images, for exports that are judged by accuracy."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tests.checkpoints import save_vit

from dinoprobe.classifier import ImageClassifier
from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import encode
from dinoprobe.heads import LogisticProbe

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ("test", "train")
EACH = 40  # images of a class in a part


def png(red: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 90, (36, 40, 3), dtype=np.uint8)
    pixels[..., 0] += np.uint8(red)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_run(folder: Path, parts: tuple[str, ...] = PARTS, *, each: int = EACH) -> Path:
    """A run of two kinds of noise, with the images that it was made from."""
    lines = ["key,label,split,group,content_hash"]
    contents, labels = [], []
    for number, (name, red) in enumerate({"dull": 0, "red": 150}.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(each * len(parts)):
            content = png(red, 1000 * number + i)
            (folder / "photos" / name / f"{i}.png").write_bytes(content)
            lines.append(f"{name}/{i}.png,{name},{parts[i // each]},,h{number}{i}")
            contents.append(content)
            labels.append(name)
    encoder = Encoder.from_pretrained(
        str(save_vit(folder / "vit", width=128)), device="cpu", pooling="cls+mean"
    )
    X = np.stack([item.row for item in encode(open_dataset(contents).samples, encoder)])  # type: ignore[union-attr]
    run = folder / "run"
    head = LogisticProbe(C=0.01).fit(X, np.array(labels, dtype=object))
    ImageClassifier(encoder, head).save(run / "classifier")
    (run / "config.json").write_text(json.dumps({"data": {"source": str(folder / "photos")}}))
    (run / "split.csv").write_text("\n".join(lines) + "\n")
    return run
