"""Files to features by the engine, against the loop that tutorials show, in one run.

A ViT-S/16 with random weights at 224 pixels; speed does not depend on the weights. Both sides run
the same model in the same precision, interleaved; medians go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinoprobe.datasets import open_dataset
from dinoprobe.encoder import Encoder
from dinoprobe.engine import encode

TUTORIAL_BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder with JPEG files, at least --images of them")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    paths = sorted(str(path) for path in Path(options.folder).rglob("*.jpg"))[: options.images]
    with tempfile.TemporaryDirectory() as folder:
        encoder = random_encoder(Path(folder), options.dtype)
        engine_pass(paths[:16], encoder)  # warm-up
        tutorial_pass(paths[:16], encoder)
        rounds = [
            (engine_pass(paths, encoder), tutorial_pass(paths, encoder))
            for _ in range(options.rounds)
        ]
    engine, tutorial = (statistics.median(side) for side in zip(*rounds, strict=True))
    result = {
        "dtype": options.dtype,
        "images": len(paths),
        "rounds": options.rounds,
        "engine_images_per_s": round(engine, 2),
        "tutorial_images_per_s": round(tutorial, 2),
        "ratio": round(engine / tutorial, 3),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))


def random_encoder(folder: Path, dtype: str) -> Encoder:
    """A ViT-S/16 of the published shape, saved and loaded as a checkpoint is."""
    from transformers.models.dinov3_vit import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4)).save_pretrained(folder)
    size = {"size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    return Encoder.from_pretrained(str(folder), device="cpu", dtype=dtype, pooling="cls")


def engine_pass(paths: list[str], encoder: Encoder) -> float:
    """Images per second by the engine."""
    samples = open_dataset(paths).samples
    start = time.perf_counter()
    done = sum(1 for _ in encode(samples, encoder))
    return done / (time.perf_counter() - start)


def tutorial_pass(paths: list[str], encoder: Encoder) -> float:
    """Images per second by Pillow, the processor's float arithmetic and batches of 32."""
    mean = torch.tensor(encoder.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(encoder.preprocessing.std).view(3, 1, 1)
    start = time.perf_counter()
    for first in range(0, len(paths), TUTORIAL_BATCH):
        batch = []
        for path in paths[first : first + TUTORIAL_BATCH]:
            pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
            image = pixels.permute(2, 0, 1)[None] / 255
            image = torch.nn.functional.interpolate(
                image, size=(224, 224), mode="bilinear", antialias=True
            )
            batch.append((image[0] - mean) / std)
        with torch.no_grad():
            encoder.model(pixel_values=torch.stack(batch).to(encoder.dtype))
    return len(paths) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
