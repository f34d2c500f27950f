"""Whether the features of a run stay in memory, and what is done otherwise where they do not.

In memory a run holds its features up to `COPIES` times: as they come from the store, as parts, as
the rows of a fold, and as a head wants them. Beyond `--memory` all of these lie in files
(`dinoprobe.mapped`), which heads read in blocks; one held-out part takes the place of five folds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dinoprobe.encoder.placement import free_bytes, gigabytes
from dinoprobe.errors import ConfigurationError
from dinoprobe.heads.closed import JUDGED_ROWS
from dinoprobe.partition import dealt_folds, units
from dinoprobe.run import place_beside
from dinoprobe.train.protocols import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.encoder import Encoder
    from dinoprobe.train.config import TrainConfig
    from dinoprobe.types import Features

COPIES = 4
FREE_SHARE = 0.5
"""Of the free memory that features may take where the user names no limit."""
BLOCKWISE = ("lda", "ridge", "logistic", "linear", "prototype")
"""Heads that read features by blocks."""
PREDICTION_COPIES = 16
"""Float64 arrays of probabilities that exist at a time: of candidates, and on the way."""


def within_memory(
    config: TrainConfig, image_count: int, encoder: Encoder, say: Callable[[str], None]
) -> tuple[TrainConfig, Path | None]:
    """The configuration with its limit, and a folder for features that memory should not hold.

    The folder is None where they fit. Raises ConfigurationError where a limit was given and the
    plan needs its features in memory.
    """
    size = 4 * image_count * encoder.dimension
    free = free_bytes(torch.device("cpu"))
    limit = config.memory or (None if free is None else int(FREE_SHARE * free))
    if limit is None or COPIES * size <= limit:
        return config, None
    what = f"{gigabytes(COPIES * size)} for the features of {image_count:,} images"
    if reason := _needs_memory(config):
        if config.memory is not None:
            msg = f"--memory {gigabytes(limit)} is less than {what}, and {reason}"
            raise ConfigurationError(msg)
        say(f"Up to {what} may not fit into memory ({gigabytes(free or 0)} free): {reason}")
        return config, None
    folder = place_beside(config.out)
    say(
        f"Up to {what} are more than {gigabytes(limit)}: they are read from files in {folder}, "
        "removed in the end. One held-out part chooses and calibrates in place of five folds, and "
        "doubtful labels are looked for in it alone."
    )
    return replace(config, memory=limit), folder


def held_out(
    training: Features, near: Sequence[str | None], *, seed: int, memory_bytes: int
) -> npt.NDArray[np.intp]:
    """0 for rows that choose and calibrate, -1 for the others.

    A fifth of the rows, or as many whose probabilities `memory_bytes` hold; what belongs together
    stays on one side.
    """
    folds = np.where(dealt_folds(training, seed=seed, near=near) == 0, 0, -1)
    class_count = len(np.unique(training.y))
    most = max(JUDGED_ROWS, memory_bytes // (8 * class_count * PREDICTION_COPIES))
    if np.count_nonzero(folds == 0) <= most:
        return folds
    unit_of = units(training, near)
    sizes = np.bincount(unit_of[folds == 0], minlength=unit_of.max() + 1)
    order = np.random.default_rng(seed).permutation(len(sizes))
    kept = np.zeros(len(sizes), dtype=bool)
    kept[order[np.cumsum(sizes[order]) <= most]] = True
    return np.where(kept[unit_of], folds, -1)


def _needs_memory(config: TrainConfig) -> str | None:
    """Why a plan can not read its features by blocks, and what to do; None where it can."""
    plan = plan_of(config)
    names = [name for name, _ in plan.heads if name not in BLOCKWISE]
    if names:
        return f"head '{names[0]}' holds them all. Use --head {' or '.join(BLOCKWISE)}."
    if plan.on_the_fly:
        return "training on the fly holds them all. Leave out --on-the-fly."
    if config.learning_curve:
        return "a learning curve fits many heads at once. Leave out --learning-curve."
    return None
