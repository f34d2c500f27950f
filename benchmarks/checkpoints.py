"""Time of one image by every published architecture, as a multiple of ViT-S/16's.

Random weights of the official shapes at 224 pixels in float32: speed does not depend on values. The
reference runs before and after each model, so a machine that slows down slows both sides. Where
--memory-gb does not hold all layers, two depths are timed and the rest is extrapolated: ViT blocks
are identical. JSON on stdout; the catalogue's `relative_cost` comes from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from dinoprobe.catalog import CHECKPOINTS, Checkpoint
from dinoprobe.encoder.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = "vits16"
SHORT_DEPTHS = (1, 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="names (default: all that differ in shape)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory-gb", type=float, default=8.0)
    options = parser.parse_args()
    reference = model_of(CHECKPOINTS[REFERENCE])
    found = {}
    for checkpoint in shapes(options.only):
        found[checkpoint.name] = measure(checkpoint, reference, options)
    result = {
        "reference": REFERENCE,
        "rounds": options.rounds,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "checkpoints": found,
    }
    print(json.dumps(result, indent=2))


def shapes(only: list[str] | None) -> Iterator[Checkpoint]:
    """The checkpoints to measure: satellite weights have the shapes of the others."""
    for checkpoint in CHECKPOINTS.values():
        wanted = checkpoint.name in only if only else checkpoint.weights != "sat493m"
        if wanted:
            yield checkpoint


def model_of(checkpoint: Checkpoint, **changes: Any) -> torch.nn.Module:
    """Random weights of these settings."""
    family = FAMILIES[checkpoint.model_type]
    torch.manual_seed(0)
    config = family.config_class()(**{**checkpoint.config, **changes})
    model: torch.nn.Module = family.model_class()(config).eval()
    return model


def measure(
    checkpoint: Checkpoint, reference: torch.nn.Module, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of one image, and how many times the reference's they are."""
    if 4 * checkpoint.parameters <= options.memory_gb * 1e9:
        ratio, seconds = paired(model_of(checkpoint), reference, options)
        return {"relative_time": round(ratio, 2), "seconds_per_image": round(seconds, 5)}
    few, many = SHORT_DEPTHS
    timed = [
        paired(model_of(checkpoint, num_hidden_layers=n), reference, options) for n in (few, many)
    ]
    depth = checkpoint.config["num_hidden_layers"]
    ratio, seconds = (
        a + (b - a) / (many - few) * (depth - few) for a, b in zip(*timed, strict=True)
    )
    return {
        "relative_time": round(ratio, 2),
        "seconds_per_image": round(seconds, 5),
        "extrapolated_from_layers": list(SHORT_DEPTHS),
    }


def paired(
    model: torch.nn.Module, reference: torch.nn.Module, options: argparse.Namespace
) -> tuple[float, float]:
    """Median ratio to the reference in the same round, and median seconds of one image."""
    pixels = torch.randn(options.batch, 3, 224, 224)
    run(model, pixels)
    run(reference, pixels)
    ratios, times = [], []
    for _ in range(options.rounds):
        before, own, after = run(reference, pixels), run(model, pixels), run(reference, pixels)
        ratios.append(2 * own / (before + after))
        times.append(own / options.batch)
    return statistics.median(ratios), statistics.median(times)


def run(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    with torch.inference_mode():
        model(pixel_values=pixels)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
