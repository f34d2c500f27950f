"""Constants multiplied out: each function returns the weight and bias of one projection.

Notation: a LayerNorm gives g * x + b for normalised x, a projection gives W y + c, so
W (g * x + b) + c = (W diag(g)) x + (W b + c). All in float64, rounded once at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dinoprobe.preprocess import Preprocessing

    Projection = tuple["torch.Tensor", "torch.Tensor"]


def weight_and_bias(layer: Any) -> Projection:
    """Both in float64; zeros for a projection without bias."""
    import torch

    weight = layer.weight.detach().double()
    if layer.bias is None:
        return weight, torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    return weight, layer.bias.detach().double()


def joined(*projections: Projection) -> Projection:
    """Several projections of the same input as one, their outputs one after the other."""
    import torch

    return torch.cat([w for w, _ in projections]), torch.cat([b for _, b in projections])


def after_norm(norm: Any, projection: Projection) -> Projection:
    """The projection `(out, in)` or convolution `(out, in, h, w)` behind a LayerNorm, with the
    norm's gain and shift in it.
    """
    weight, bias = projection
    gain, shift = norm.weight.detach().double(), norm.bias.detach().double()
    shape = (1, -1, *([1] * (weight.ndim - 2)))
    moved = (weight * shift.view(shape)).flatten(1).sum(1)
    return weight * gain.view(shape), bias + moved


def scaled(projection: Projection, scale: torch.Tensor) -> Projection:
    """The projection with each output multiplied: LayerScale behind it."""
    weight, bias = projection
    factor = scale.detach().double()
    return weight * factor.view(-1, *([1] * (weight.ndim - 1))), bias * factor


def centre(preprocessing: Preprocessing) -> torch.Tensor:
    """What is subtracted from pixels, `(1, 3, 1, 1)`: whole numbers near the mean for uint8, which
    bfloat16 then holds exactly; the mean itself for the exact mode's floats from 0 to 1.
    """
    import torch

    mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
    if preprocessing.arithmetic == "uint8":
        mean = (mean / preprocessing.rescale).round()
    return mean.view(1, 3, 1, 1)


def on_centred_pixels(projection: Projection, preprocessing: Preprocessing) -> Projection:
    """The first convolution `(out, 3, h, w)`, on pixels that are only centred: rescaling, mean and
    deviation are in its weights.
    """
    import torch

    weight, bias = projection
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64, device=weight.device)
    std = torch.tensor(preprocessing.std, dtype=torch.float64, device=weight.device)
    unit = preprocessing.rescale if preprocessing.arithmetic == "uint8" else 1.0
    middle = centre(preprocessing).view(3).to(weight.device)
    left = ((middle * unit - mean) / std).view(1, 3, 1, 1)
    return weight * (unit / std).view(1, 3, 1, 1), bias + (weight * left).flatten(1).sum(1)
