"""What a smaller precision does to features, on a user's own images, before a long run.

Two figures: the cosine between the features of both precisions, and how often a head gives the same
answer. With labels the head is a logistic probe, fitted on one half in float32 and asked about the
other half with both features; without labels it is the nearest other image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dinoprobe.encoder import open_encoder
from dinoprobe.engine import embed
from dinoprobe.errors import DatasetError
from dinoprobe.evaluation import wilson
from dinoprobe.heads import LogisticProbe

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.encoder import EncoderSettings
    from dinoprobe.types import Dataset, Features, Progress

MAX_IMAGES = 512
_LEAST_PER_CLASS = 4  # two on each side


@dataclass(frozen=True, slots=True)
class Drift:
    """Features in `precision` against float32 over `n` images.

    `agreement` is the share of `agreement_n` images for which the head says the same, with its 95 %
    interval; `head` says which head.
    """

    precision: str
    n: int
    cosine_mean: float
    cosine_min: float
    head: str
    agreement: float
    agreement_n: int
    agreement_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "agreement_interval": list(self.agreement_interval)}


def measure_drift(
    dataset: Dataset,
    settings: EncoderSettings,
    *,
    progress: Callable[[], Progress] | None = None,
    seed: int = 0,
) -> Drift:
    """The drift of `settings.dtype` against float32, over at most MAX_IMAGES images of the dataset.

    One model is in memory at a time. Raises DatasetError where fewer than two images can be used.
    """
    chosen = _sampled(dataset, seed)
    exact = _features(chosen, replace(settings, dtype="float32"), progress)
    other = _features(chosen, settings, progress)
    if len(exact) < 2 or exact.keys != other.keys:
        msg = (
            f"{dataset.uri}: {len(exact)} images could be used in float32 and {len(other)} in "
            f"{settings.dtype}; expected the same two or more. See dinoprobe embed --failures."
        )
        raise DatasetError(msg)
    near = cosines(exact.X, other.X)
    head, same = agreement(exact, other, seed)
    agreeing, asked = int(same.sum()), len(same)
    return Drift(
        precision=settings.dtype,
        n=len(exact),
        cosine_mean=float(near.mean()),
        cosine_min=float(near.min()),
        head=head,
        agreement=agreeing / asked,
        agreement_n=asked,
        agreement_interval=wilson(agreeing, asked),
    )


def _sampled(dataset: Dataset, seed: int) -> Dataset:
    import numpy as np

    if len(dataset) <= MAX_IMAGES:
        return dataset
    rows = np.random.default_rng(seed).permutation(len(dataset))[:MAX_IMAGES]
    return replace(dataset, samples=[dataset.samples[row] for row in sorted(rows.tolist())])


def _features(
    dataset: Dataset, settings: EncoderSettings, progress: Callable[[], Progress] | None
) -> Features:
    meter = progress() if progress is not None else None
    return embed(dataset, open_encoder(settings), progress=meter).features


def cosines(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Of each row with its counterpart, in float64."""
    import numpy as np

    A, B = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    found: npt.NDArray[np.float64] = (A * B).sum(axis=1) / norms
    return found


def agreement(exact: Features, other: Features, seed: int) -> tuple[str, npt.NDArray[np.bool_]]:
    """Which head was asked, and for which images its two answers are the same."""
    import numpy as np

    labels = np.array([str(label) for label in exact.y])
    names, counts = np.unique(labels, return_counts=True)
    if any(label is None for label in exact.y) or len(names) < 2 or counts.min() < _LEAST_PER_CLASS:
        return "nearest other image", _nearest(exact.X) == _nearest(other.X)
    first = _stratified_half(labels, seed)
    head = LogisticProbe().fit(exact.X[first], labels[first])
    answers = [head.predict(features.X[~first]) for features in (exact, other)]
    return "logistic, fitted in float32 on the other half", answers[0] == answers[1]


def _stratified_half(labels: npt.NDArray[Any], seed: int) -> npt.NDArray[np.bool_]:
    import numpy as np

    half = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for name in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == name))
        half[rows[: len(rows) // 2]] = True
    return half


def _nearest(X: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Of each row, the position of the other row with the largest cosine."""
    import numpy as np

    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    nearest: npt.NDArray[np.intp] = cosines.argmax(axis=1)
    return nearest
