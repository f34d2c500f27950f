"""One module in float32 that runs anywhere: from images as `prepare` gives them to features.

It is what exports are traced from: the folded forward where there is one, else transformers' own
with the normalisation before it. Nothing of it is laid out for this processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dinoprobe.encoder.backends.graphs import folded

if TYPE_CHECKING:
    import torch

    from dinoprobe.encoder.forward import Forward
    from dinoprobe.preprocess import Preprocessing


def portable(forward: Forward, preprocessing: Preprocessing) -> nn.Module:
    """Images `(n, 3, height, width)` of this preprocessing's size to features `(n, dimension)`."""
    if forward.is_folded:
        return folded(forward.plan(preprocessing), "float32", packed=False)
    return _Plain(forward, preprocessing).eval()


class _Plain(nn.Module):
    """transformers' forward, as a module that a tracer finds its weights in."""

    def __init__(self, forward: Forward, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = forward.model
        self._run, self._preprocessing = forward, preprocessing

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features, by normalisation and the model."""
        return self._run.plain(images, self._preprocessing)
