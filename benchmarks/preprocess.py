"""Images per second on one core, from the bytes of a JPEG to the tensor of an encoder.

Ours against Pillow with the processor's arithmetic (rescale, antialiased float resize), image by
image in turn, so that whatever else the machine does falls on both sides alike. Writes JSON.

    python benchmarks/preprocess.py --images 24 --rounds 20 --out preprocess.json
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from dinoprobe.preprocess import Preprocessing, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

FAST, EXACT = Preprocessing(), Preprocessing(arithmetic="exact")


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG of quality 90 with smooth areas, edges and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[height // 3 : height // 2, width // 4 : width // 2] += 60
    pixels += rng.integers(-12, 13, pixels.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def processor(data: bytes) -> torch.Tensor:
    """What transformers' processor does before it normalises."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    image = pixels.permute(2, 0, 1).contiguous()[None] * (1 / 255)
    return torch.nn.functional.interpolate(
        image, size=(224, 224), mode="bilinear", align_corners=False, antialias=True
    )[0]


def measure(files: list[bytes], rounds: int) -> dict[str, float]:
    """Median images per second of each way."""
    ways: dict[str, Callable[[bytes], torch.Tensor]] = {
        "processor": processor,
        "exact": lambda data: prepare(data, EXACT),
        "uint8": lambda data: prepare(data, FAST),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for data in files:
            for name, way in ways.items():
                start = time.thread_time()
                way(data)
                seconds[name].append(time.thread_time() - start)
    return {name: round(1 / statistics.median(times), 1) for name, times in seconds.items()}


def main() -> None:
    """Parses the arguments, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"cpu": platform.processor(), "torch": torch.__version__}
    for width, height, share in ((500, 375, 1), (4000, 3000, 8)):
        count, rounds = max(1, options.images // share), max(1, options.rounds // share)
        files = [photo(width, height, seed) for seed in range(count)]
        measure(files[:2], 1)  # warm
        speeds = measure(files, rounds)
        ratio = round(speeds["uint8"] / speeds["processor"], 2)
        result[f"{width}x{height}"] = {
            "images_per_cpu_second": speeds, "images": count, "rounds": rounds, "ratio": ratio,
        }  # fmt: skip
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
