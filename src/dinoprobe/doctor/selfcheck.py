"""Does this machine compute what plain transformers computes, and the same whatever the batch?

On pictures that are rendered here: a wrong kernel, a broken build or a damaged weight shows as a
difference, as NaN, or as features that do not change with the picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoprobe.doctor.checks import Check
from dinoprobe.drift import cosines
from dinoprobe.encoder.backends.selftest import pictures

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.encoder import Encoder

# Rounding of float32 sums over other orders: measured 1e-13 to 1e-9, a wrong token gives 1e-3.
_TOLERANCE = 1e-6
_HALF_TOLERANCE = 1e-2  # eight bits of mantissa: measured 1e-5 to 1e-4


def check_forward(encoder: Encoder) -> Check:
    """The encoder in float32 against transformers' model called by hand, on rendered pictures."""
    import numpy as np

    images = pictures(encoder.preprocessing)
    features = encoder.encode(images)
    if not np.isfinite(features).all():
        text = "NaN or infinity among features of ordinary pictures; the weights are damaged"
        return Check("forward", "failed", text)
    if np.ptp(features, axis=0).max() == 0:
        text = "every picture gives the same features; the weights are damaged"
        return Check("forward", "failed", text)
    alone = np.concatenate([encoder.encode(images[i : i + 1]) for i in range(len(images))])
    worst = float(
        np.max([_distance(features, _by_hand(encoder, images)), _distance(features, alone)])
    )
    text = f"1 - cosine to plain transformers and to single images at most {worst:.0e}"
    if not worst <= _TOLERANCE:
        return Check("forward", "failed", f"{text}, expected {_TOLERANCE:.0e} or less")
    return Check("forward", "ok", text)


def check_precision(exact: Encoder, other: Encoder) -> Check:
    """A smaller precision runs here at all, and is near float32 on rendered pictures."""
    import numpy as np

    images = pictures(exact.preprocessing)
    features = other.encode(images)
    if not np.isfinite(features).all():
        text = f"{other.precision} gives NaN or infinity here. Use --dtype float32"
        return Check("precision", "failed", text)
    worst = _distance(exact.encode(images), features)
    text = f"{other.precision}: 1 - cosine to float32 at most {worst:.0e} on rendered pictures"
    if not worst <= _HALF_TOLERANCE:
        return Check("precision", "failed", f"{text}, expected {_HALF_TOLERANCE:.0e} or less")
    return Check("precision", "ok", f"{text}; --images tells of yours")


def _by_hand(encoder: Encoder, images: torch.Tensor) -> npt.NDArray[np.float32]:
    """As transformers' documentation does it: rescale, normalise, model, pool."""
    import torch

    preprocessing = encoder.preprocessing
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    pixels = (images.float() * preprocessing.rescale - mean) / std
    with torch.no_grad():
        rows: npt.NDArray[np.float32] = encoder.plain(pixels.to(encoder.device)).cpu().numpy()
    return rows


def _distance(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """The largest 1 - cosine over rows."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):  # NaN is the answer, and fails
        return float(np.abs(1 - cosines(first, second)).max())
