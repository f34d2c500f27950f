"""Encoder, head and measure of novelty as one torch module: what graphs are traced from.

Only heads that are one linear layer go into a graph. Others need the training rows beside them
(`knn`, scikit-learn) or all patch tokens (attentive), and stay with `ImageClassifier`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dinoprobe.heads import MultiLabelProbe

if TYPE_CHECKING:
    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.heads import Novelty

OUTPUTS = ("probabilities", "features", "novelty")


class Network(nn.Module):
    """Images `(n, 3, height, width)` as `prepare` gives them to probabilities `(n, k)`, features
    `(n, d)` and, where the classifier measures it, novelty `(n,)`: float32, in this order.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        head: Any = classifier.head
        self.encoder = classifier.encoder.portable()
        self.register_buffer("weight", torch.from_numpy(head.coef_.copy()))
        self.register_buffer("bias", torch.from_numpy(head.intercept_.copy()))
        self.is_multilabel = isinstance(head, MultiLabelProbe)
        self.novelty = _measure(classifier.novelty)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what it returns."""
        return OUTPUTS if self.novelty is not None else OUTPUTS[:2]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Probabilities, features, novelty."""
        features = self.encoder(images)
        logits = features @ self.weight.T + self.bias
        sure = logits.sigmoid() if self.is_multilabel else logits.softmax(dim=1)
        if self.novelty is None:
            return sure, features
        return sure, features, self.novelty(features)


def _measure(novelty: Novelty | None) -> nn.Module | None:
    if novelty is None:
        return None
    return _Distance(novelty) if novelty.method == "mahalanobis" else _Neighbours(novelty)


class _Measure(nn.Module):
    """The arrays of `heads/novelty.py` in float64: they are small differences of large sums."""

    def __init__(self, novelty: Novelty) -> None:
        super().__init__()
        for name, array in novelty.arrays.items():
            self.register_buffer(name, torch.from_numpy(array.copy()).double())


class _Distance(_Measure):
    """The relative Mahalanobis distance, as `heads/novelty.py` has it."""

    center: torch.Tensor
    scale: torch.Tensor
    axes: torch.Tensor
    within: torch.Tensor
    overall: torch.Tensor
    means: torch.Tensor
    rest: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One score a row, `(n,)`."""
        Z = (features.double() - self.center) * self.scale
        Y = Z @ self.axes
        beyond = (Z.square().sum(dim=1) - Y.square().sum(dim=1)).clamp(min=0)
        placed = Y @ self.within
        lengths = placed.square().sum(dim=1, keepdim=True) + self.means.square().sum(dim=1)
        nearest = (lengths - 2 * placed @ self.means.T).amin(dim=1)
        background = (Y @ self.overall).square().sum(dim=1)
        score = nearest - background + (self.rest[0] - self.rest[1]) * beyond
        return score.float()


class _Neighbours(_Measure):
    """The cosine distance to the fifth nearest training row, as `heads/novelty.py` has it."""

    rows: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One score a row, `(n,)`."""
        from dinoprobe.heads.novelty import NEIGHBOURS

        X = features.double()
        lengths = X.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-30)
        similarity = (X / lengths) @ self.rows.T
        k = min(NEIGHBOURS, len(self.rows))
        return (1 - similarity.topk(k, dim=1).values[:, -1]).float()
