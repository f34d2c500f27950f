"""From JPEG files to features: the engine, its parts, the tutorial's loop and the limit,
interleaved.

Every round runs each side once, so a machine that slows down slows all of them; medians are
reported. The bound of the pipeline on a CPU is 1 / (1 / forward + 1 / decode), because both want
the same cores; elsewhere the slower of the two.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.bench.limits import flops_of_image, matrix_ceiling
from dinoprobe.bench.neighbours import Neighbours
from dinoprobe.bench.synthetic import write_photos
from dinoprobe.bench.tutorial import BATCH, tutorial_features
from dinoprobe.catalog import CHECKPOINTS, by_hub_id
from dinoprobe.datasets import open_dataset
from dinoprobe.drift import cosines
from dinoprobe.encoder import Encoder, EncoderSettings, Int8, open_encoder
from dinoprobe.encoder.families import FAMILIES
from dinoprobe.engine import encode
from dinoprobe.engine.pipeline import BATCH_SIZE_CPU, BATCH_SIZE_CUDA, Encoded, single_threaded
from dinoprobe.errors import ConfigurationError, DatasetError
from dinoprobe.files import write_json
from dinoprobe.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.types import Sample

SCHEMA = "dinoprobe.bench-embed/1"
_CALIBRATION = 64  # images for int8


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedBench:
    """What to measure. Without `folder` photographs are rendered; `random_weights` takes the shape
    of the published checkpoint and no weights. A round takes `images` through the engine and,
    unless `tutorial` is off, as many as 32 through the loop.
    """

    encoder: EncoderSettings
    random_weights: bool = False
    folder: str | None = None
    images: int = 64
    rounds: int = 3
    large_share: float = 0.0
    tutorial: bool = True


@dataclass(frozen=True, slots=True)
class _Sides:
    """What is timed, ready to run."""

    encoder: Encoder
    plain: Encoder | None
    paths: list[str]
    samples: Sequence[Sample]
    threads: int


def run_embed_bench(
    bench: EmbedBench, *, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The document of `dinoprobe bench embed --json`.

    Raises ConfigurationError for an encoder that has no published shape, and what `open_encoder`
    and `open_dataset` raise.
    """
    with tempfile.TemporaryDirectory(prefix="dinoprobe-bench-") as place:
        sides = _prepared(bench, Path(place), say)
        rates: dict[str, list[float]] = {}
        rows = _warm_up(sides)
        with Neighbours() as neighbours:
            for number in range(bench.rounds):
                say(f"round {number + 1} of {bench.rounds}")
                for name, rate in _round(sides).items():
                    rates.setdefault(name, []).append(rate)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        document = _document(bench, sides, medians, rates, rows)
        return {**document, "cores_of_others": neighbours.cores}


def _prepared(bench: EmbedBench, place: Path, say: Callable[[str], None]) -> _Sides:
    import torch

    if bench.folder is None:
        say(f"rendering {bench.images} photographs")
        (place / "photos").mkdir()
        paths = write_photos(place / "photos", bench.images, large_share=bench.large_share)
    else:
        paths = _paths(bench.folder, bench.images)
    settings = bench.encoder
    if bench.random_weights:
        settings = random_weights(settings, place / "weights")
    int8 = _calibrated(settings, paths, place) if settings.precision == "int8" else None
    encoder = open_encoder(settings, say=say, int8=int8)
    plain = _plain(settings, encoder) if bench.tutorial else None
    return _Sides(encoder, plain, paths, open_dataset(paths).samples, torch.get_num_threads())


def _paths(folder: str, count: int) -> list[str]:
    """`count` files of the folder, from the beginning again where it has fewer."""
    found = sorted(
        str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"}
    )
    if not found:
        raise DatasetError(
            f"{folder}: no .jpg file. Give a folder with photographs, or --synthetic."
        )
    return list(islice(cycle(found), count))


def random_weights(settings: EncoderSettings, folder: Path) -> EncoderSettings:
    """The settings with a checkpoint of random weights in the published shape."""
    from dataclasses import replace

    import torch

    short = settings.name.lower().removeprefix("dinov3/")
    checkpoint = CHECKPOINTS.get(short) or by_hub_id(settings.name)
    if checkpoint is None:
        msg = (
            f"--random-weights needs a published shape, and '{settings.name}' is none. Use one of "
            "dinoprobe models, such as vits16."
        )
        raise ConfigurationError(msg)
    family = FAMILIES[checkpoint.model_type]
    torch.manual_seed(0)
    model = family.model_class()(family.config_class()(**checkpoint.config))
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if not family.is_dinov3:
        size = {"size": {"height": 224, "width": 224}}
        write_json(folder / "preprocessor_config.json", size)
    return replace(settings, name=str(folder))


def _calibrated(settings: EncoderSettings, paths: Sequence[str], folder: Path) -> Int8:
    """int8 for its speed alone: calibrated on these images, and judged by nothing."""
    from dataclasses import replace

    import torch

    from dinoprobe.preprocess import prepare

    exact = open_encoder(replace(settings, precision="exact", backend="openvino", dtype="auto"))
    images = [
        prepare(Path(path).read_bytes(), exact.preprocessing) for path in paths[:_CALIBRATION]
    ]
    target = folder / "int8"
    target.mkdir()
    return exact.quantize(torch.stack(images), target)


def _plain(settings: EncoderSettings, encoder: Encoder) -> Encoder:
    """The same weights in float32 for the loop; the engine's own where it is in float32."""
    from dataclasses import replace

    if encoder.preprocessing.resize != "squash":
        msg = "the tutorial's loop squashes images, this encoder crops them. Add --no-tutorial."
        raise ConfigurationError(msg)
    if encoder.precision == "float32":
        return encoder
    plain = replace(settings, dtype="float32", precision="auto", backend="torch")
    return open_encoder(plain)


def _warm_up(sides: _Sides) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Run every side once, untimed; the features of both for the cosine."""
    import numpy as np

    engine = _engine_rows(sides, sides.samples[:BATCH])
    if sides.plain is None:
        return None
    plain = tutorial_features(sides.paths[: len(engine)], sides.plain)
    return np.stack(engine), plain


def _engine_rows(sides: _Sides, samples: Sequence[Sample]) -> list[npt.NDArray[np.float32]]:
    found = list(encode(samples, sides.encoder))
    failures = [item for item in found if not isinstance(item, Encoded)]
    if failures:
        raise DatasetError(f"{failures[0].key}: {failures[0].reason}. Bench on sound images.")
    return [item.row for item in found if isinstance(item, Encoded)]


def _round(sides: _Sides) -> dict[str, float]:
    """Images per second of each side, and the ceiling in FLOP/s, one after the other."""
    found = {"pipeline": _timed(len(sides.samples), lambda: _engine_rows(sides, sides.samples))}
    if sides.plain is not None:
        plain, count = sides.plain, min(BATCH, len(sides.paths))
        found["tutorial"] = _timed(count, lambda: tutorial_features(sides.paths[:count], plain))
    found["decode"] = _timed(len(sides.samples), lambda: _decode(sides))
    found["forward"] = _forward_rate(sides)
    found["ceiling"] = matrix_ceiling(sides.encoder.dtype, sides.encoder.device)
    return found


def _timed(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def _decode(sides: _Sides) -> None:
    """Read, decode and resize every image, on all cores."""
    from dinoprobe.preprocess import prepare

    def one(sample: Sample) -> torch.Tensor:
        return prepare(sample.source.read(), sides.encoder.preprocessing)

    with ThreadPoolExecutor(sides.threads, initializer=single_threaded()) as pool:
        list(pool.map(one, sides.samples))


def _forward_rate(sides: _Sides) -> float:
    """The encoder alone on images that are ready, in as many lanes as the engine has."""
    import torch

    on_cpu = sides.encoder.device.type == "cpu"
    size, lanes = (BATCH_SIZE_CPU, sides.threads) if on_cpu else (BATCH_SIZE_CUDA, 1)
    count = max(1, len(sides.samples) // (size * lanes)) * lanes
    generator = torch.Generator().manual_seed(0)
    shape = (size, 3, *sides.encoder.preprocessing.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    initializer = single_threaded() if on_cpu else None
    with ThreadPoolExecutor(lanes, initializer=initializer) as pool:
        list(pool.map(sides.encoder.encode, [images[:1]] * lanes))
        return _timed(size * count, lambda: list(pool.map(sides.encoder.encode, [images] * count)))


def _document(
    bench: EmbedBench,
    sides: _Sides,
    medians: dict[str, float],
    rates: dict[str, list[float]],
    rows: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
) -> dict[str, Any]:
    encoder = sides.encoder
    flops = flops_of_image(encoder.model.config, encoder.preprocessing.size)
    forward, decode = medians["forward"], medians["decode"]
    on_cpu = encoder.device.type == "cpu"
    bound = 1 / (1 / forward + 1 / decode) if on_cpu else min(forward, decode)
    tutorial = medians.get("tutorial")
    return {
        "schema": SCHEMA,
        "encoder": bench.encoder.name,
        "pooling": encoder.pooling,
        "random_weights": bench.random_weights,
        "device": str(encoder.device),
        "backend": encoder.backend,
        "precision": encoder.precision,
        "images": len(sides.samples),
        "large_share": bench.large_share,
        "rounds": bench.rounds,
        "images_per_second": medians["pipeline"],
        "tutorial_images_per_second": tutorial,
        "ratio_to_tutorial": medians["pipeline"] / tutorial if tutorial else None,
        "forward_images_per_second": forward,
        "decode_images_per_second": decode,
        "pipeline_share_of_bound": medians["pipeline"] / bound,
        "flops_per_image": flops,
        "ceiling_flops_per_second": medians["ceiling"],
        "forward_share_of_ceiling": forward * flops / medians["ceiling"],
        **_cosines(rows),
        "peak_memory_bytes": _peak_memory(),
        "spread": {name: [min(values), max(values)] for name, values in rates.items()},
        "threads": sides.threads,
        "versions": versions(),
    }


def _cosines(
    rows: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
) -> dict[str, float | None]:
    """Between the engine's features and the loop's, over one batch."""
    if rows is None:
        return {"cosine_mean": None, "cosine_min": None}
    near = cosines(*rows)
    return {"cosine_mean": float(near.mean()), "cosine_min": float(near.min())}


def _peak_memory() -> int | None:
    """The largest resident size of this process so far, where the system tells."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
