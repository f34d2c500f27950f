"""int8 on a user's own images: calibrated on some of them, allowed when a head agrees on others.

The graph belongs to the encoder and the dataset's place, and is kept: images that are added later
are encoded by the same one. Only training images are looked at, for calibration and for the test.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from dinoprobe.drift import agreement, cosines
from dinoprobe.encoder import Encoder, Int8, open_encoder
from dinoprobe.engine import embed
from dinoprobe.errors import DatasetError, EncoderError, ImageError
from dinoprobe.evaluation import wilson

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dinoprobe.encoder import EncoderSettings
    from dinoprobe.encoder.hub import Transfer
    from dinoprobe.types import Dataset, Progress, Sample

LEAST_AGREEMENT = 0.995
CALIBRATION_IMAGES = 128
TEST_IMAGES = 1024
_LEAST_IMAGES = 64
_TRAINING_PARTS = frozenset({None, "train"})


@dataclass(frozen=True, slots=True)
class Agreement:
    """int8 against float32 on images that it was not calibrated on: how often a head that was
    fitted in float32 says the same, and the cosine of the features.
    """

    agreement: float
    n: int
    interval: tuple[float, float]
    cosine_mean: float
    cosine_min: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        names = ("agreement", "n", "cosine_mean", "cosine_min")
        return {**{name: getattr(self, name) for name in names}, "interval": list(self.interval)}


def int8_for(
    dataset: Dataset,
    settings: EncoderSettings,
    *,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
    transfer: Transfer | None = None,
    seed: int = 0,
) -> Int8 | None:
    """The int8 graph of this encoder for this dataset, made and judged where none is kept; None
    where `settings` ask for another precision.

    Raises DatasetError for a dataset without labels or with too few images, EncoderError where the
    head agrees less than LEAST_AGREEMENT, MissingExtraError without NNCF.
    """
    if settings.precision != "int8":
        return None
    from dinoprobe.encoder.backends.graphs import is_whole, keep
    from dinoprobe.encoder.backends.int8 import graph_digest, require_nncf

    require_nncf()
    exact_settings = replace(settings, precision="exact", backend="openvino", dtype="auto")
    exact = open_encoder(exact_settings, say=say, transfer=transfer)
    folder = exact.int8_folder(dataset.uri)
    if is_whole(folder):
        return Int8(folder, graph_digest(folder))
    calibration, test = _chosen(dataset, seed)
    images = _prepared(calibration, exact)
    say(f"int8: calibrating on {len(images):,} images")
    with tempfile.TemporaryDirectory(prefix="dinoprobe-int8-") as place:
        made = exact.quantize(images, Path(place))
        say(f"int8: judging on {len(test):,} other images")
        found = _judged(replace(dataset, samples=test), exact, settings, made, progress, seed)
        _refuse_disagreement(found)
        names = [path.name for path in Path(place).iterdir()]

        def write(staging: Path) -> None:
            for name in names:
                copyfile(Path(place) / name, staging / name)

        keep(folder, write, {"calibration_images": len(images), **found.to_dict()})
    say(_sentence(found))
    return Int8(folder, made.digest)


def _chosen(dataset: Dataset, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Images to calibrate on, and others to judge by: of the training part, with labels."""
    import numpy as np

    known = [s for s in dataset.samples if s.label is not None and s.split in _TRAINING_PARTS]
    if len(known) < _LEAST_IMAGES or len({sample.label for sample in known}) < 2:
        msg = (
            f"{dataset.uri}: {len(known)} labelled training images. int8 is judged by a head's "
            f"answers, which takes {_LEAST_IMAGES} of two classes or more. Use --precision bf16."
        )
        raise DatasetError(msg)
    order = np.random.default_rng(seed).permutation(len(known)).tolist()
    count = min(CALIBRATION_IMAGES, len(known) // 3)
    test = sorted(order[count : count + TEST_IMAGES])
    return [known[row] for row in order[:count]], [known[row] for row in test]


def _prepared(samples: list[Sample], encoder: Encoder) -> torch.Tensor:
    """The images that can be used, as the encoder takes them."""
    import torch

    from dinoprobe.preprocess import prepare

    found = []
    for sample in samples:
        try:
            found.append(prepare(sample.source.read(), encoder.preprocessing))
        except (ImageError, OSError):
            continue  # it will be listed when the dataset is embedded
    if not found:
        msg = "none of the images that int8 was to be calibrated on can be used. See --failures."
        raise DatasetError(msg)
    return torch.stack(found)


def _judged(
    test: Dataset,
    exact: Encoder,
    settings: EncoderSettings,
    made: Int8,
    progress: Progress | None,
    seed: int,
) -> Agreement:
    """Both precisions on the test images."""
    first = embed(test, exact, progress=progress).features
    second = embed(test, open_encoder(settings, int8=made), progress=progress).features
    if first.keys != second.keys:
        msg = "int8 gives features that are not finite, and float32 does not. Use --precision bf16."
        raise EncoderError(msg)
    _, same = agreement(first, second, seed)
    near = cosines(first.X, second.X)
    agreeing, asked = int(same.sum()), len(same)
    return Agreement(
        agreement=agreeing / asked,
        n=asked,
        interval=wilson(agreeing, asked),
        cosine_mean=float(near.mean()),
        cosine_min=float(near.min()),
    )


def _refuse_disagreement(found: Agreement) -> None:
    if found.agreement >= LEAST_AGREEMENT:
        return
    low, high = found.interval
    msg = (
        f"int8 is not used: a head gives the same answer as in float32 for "
        f"{100 * found.agreement:.1f} % of {found.n:,} images ({100 * low:.1f} to "
        f"{100 * high:.1f}), expected {100 * LEAST_AGREEMENT} % or more. Use --precision bf16."
    )
    raise EncoderError(msg)


def _sentence(found: Agreement) -> str:
    return (
        f"int8: a head gives the same answer as in float32 for {100 * found.agreement:.1f} % of "
        f"{found.n:,} other images; 1 - cosine {1 - found.cosine_mean:.0e} in the mean"
    )
