"""Linear layers that learn side by side from the same batches, as rows of one matrix.

The gradient of a softmax layer is two products, written out here: no graph is built. torch's own
float32 product goes through MKL, which takes its AVX2 path on AMD; oneDNN's is 2.4 times as fast.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from dinoprobe.errors import HeadError
from dinoprobe.heads.linear import SGD_MOMENTUM, LinearTraining
from dinoprobe.processor import can_pack

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s
    from dinoprobe.heads.grid import LinearGridProbe

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant")
BETAS = (0.9, 0.999)
EPSILON = 1e-8
INITIAL_DEVIATION = 0.01
"""Of the weights at the start, as facebookresearch/dinov3 `dinov3/eval/linear.py`; biases are 0."""
JUDGED_ROWS = 1024
SMALLEST_LOG = math.log(1e-15)


class Setting(NamedTuple):
    """One layer: its learning rate, its weight decay, the feature columns that it sees."""

    lr: float
    weight_decay: float
    columns: tuple[int, int]


class GridTraining(LinearTraining):
    """A training of many layers, step by step, as `LinearTraining` is of one.

    `steps` updates follow in all, for the schedule. Every layer of the same columns starts from the
    same weights. Settings of the same columns stand together.
    """

    probe: LinearGridProbe

    def __init__(
        self,
        probe: LinearGridProbe,
        n_features: int,
        classes: npt.NDArray[Any],
        moments: tuple[Float64s, Float64s] | None,
        settings: list[Setting],
        steps: int,
    ) -> None:
        self.settings = settings
        self.steps = steps
        self.done = 0
        self.layer_losses: list[torch.Tensor] = []
        super().__init__(probe, n_features, classes, moments)

    def _start(self, n_features: int, class_count: int) -> None:  # noqa: ARG002 - settings know
        by_columns = groupby(self.settings, key=lambda setting: setting.columns)
        self._stacks = [
            _Stack(list(settings), class_count, self.probe) for _, settings in by_columns
        ]

    def update(
        self, rows: torch.Tensor, codes: torch.Tensor, factors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One update of all layers; the least of their losses before it.

        `factors` `(b,)` multiply the loss of each row.
        """
        share = 1.0
        if self.probe.schedule == "cosine":
            share = (1 + math.cos(math.pi * min(self.done / self.steps, 1))) / 2
        self.done += 1
        losses = torch.cat(
            [stack.update(rows, (codes, factors), share, self.done) for stack in self._stacks]
        )
        self._losses.append(losses)
        return losses.min()

    def end_epoch(self) -> float:
        """Close an epoch; the mean of its batches' losses, of the layer where it is least."""
        if self._losses:
            self.layer_losses.append(torch.stack(self._losses).mean(dim=0))
            self._losses = [self.layer_losses[-1].nan_to_num(math.inf).min()]
        return super().end_epoch()

    def judged(self, X: npt.NDArray[Any], codes: Codes) -> Float64s:
        """Right answers and summed log loss `(2, layers)` of rows as they came."""
        sums = np.zeros((2, len(self.settings)))
        for start in range(0, len(X), JUDGED_ROWS):
            part = slice(start, start + JUDGED_ROWS)
            rows = torch.from_numpy(self.standardized(X[part])).to(self.probe.device)
            targets = torch.from_numpy(codes[part]).to(self.probe.device)
            sums += np.concatenate([stack.judged(rows, targets) for stack in self._stacks], axis=1)
        return sums

    def finish(
        self, X: npt.NDArray[Any] | None = None, labels: npt.NDArray[Any] | None = None
    ) -> LinearGridProbe:
        """The probe, fitted: the layer that is best on these validation rows.

        One layer alone needs none. Raises HeadError without rows, for a label that the training did
        not know, and where the layer is not finite.
        """
        probe, best = self.probe, self.settings[0]
        probe.classes_, probe.n_features_in_ = self.classes, len(self._moments[0])
        probe.cv_results_, probe.selection_ = None, "given"
        if len(self.settings) > 1:
            if X is None or labels is None or not len(X):
                raise HeadError(
                    f"{len(self.settings)} layers were trained, and no rows given to choose one "
                    f"by. Give features and labels that were not trained on."
                )
            codes = np.array([self._code(str(label)) for label in labels], dtype=np.intp)
            best = probe.choose(self.settings, self.judged(X, codes), len(codes), "1 given fold")
        number = self.settings.index(best)
        probe.keep(best, self.layer(number), self.losses(number))
        return probe

    def layer(self, number: int) -> tuple[Float64s, Float64s]:
        """Weight `(k, d)` and intercept `(k,)` for features as they come."""
        mean, scale = self._moments
        setting = self.settings[number]
        stack = next(stack for stack in self._stacks if stack.columns == setting.columns)
        own, intercept = stack.layer(setting)
        weight = np.zeros((len(own), len(mean)))
        weight[:, slice(*setting.columns)] = own
        weight /= scale
        return weight, intercept - weight @ mean

    def losses(self, number: int) -> list[float]:
        """Of one layer, the mean of its batches' losses in each epoch."""
        return [float(losses[number]) for losses in self.layer_losses]


class _Stack:
    """Layers of the same columns: weights `(layers * k, d)`, biases `(layers * k, 1)`."""

    def __init__(self, settings: list[Setting], class_count: int, probe: LinearGridProbe) -> None:
        start, stop = self.columns = settings[0].columns
        self.settings = settings
        self.class_count = class_count
        generator = torch.Generator().manual_seed(probe.random_state)
        weight = torch.empty(class_count, stop - start)
        weight.normal_(0, INITIAL_DEVIATION, generator=generator)
        stacked = weight.repeat(len(settings), 1).to(probe.device)
        rates = _by_row([setting.lr for setting in settings], class_count, probe.device)
        decays = _by_row([setting.weight_decay for setting in settings], class_count, probe.device)
        self.weight = _Parameter(stacked, rates, decays, probe.optimizer)
        self.bias = _Parameter(torch.zeros_like(rates), rates, decays, probe.optimizer)

    def update(
        self,
        rows: torch.Tensor,
        labelled: tuple[torch.Tensor, torch.Tensor | None],
        share: float,
        step: int,
    ) -> torch.Tensor:
        """One update at this share of the rates; mean cross-entropy `(layers,)` before it."""
        codes, factors = labelled
        own = rows[:, slice(*self.columns)].contiguous()
        logs = self._log_probabilities(own)
        places = torch.arange(len(codes), device=codes.device)
        losses = -logs[:, codes, places]
        residual = logs.exp_()
        residual[:, codes, places] -= 1
        if factors is not None:
            losses *= factors
            residual *= factors
        residual = residual.view(-1, len(codes)).div_(len(codes))
        self.weight.update(_product(residual, own.T.contiguous()), share, step)
        self.bias.update(residual.sum(dim=1, keepdim=True), share, step)
        return losses.mean(dim=1)

    def judged(self, rows: torch.Tensor, codes: torch.Tensor) -> Float64s:
        """Right answers and summed log loss `(2, layers)`; a layer that diverged is never right."""
        logs = self._log_probabilities(rows[:, slice(*self.columns)].contiguous())
        places = torch.arange(len(codes), device=codes.device)
        own = logs[:, codes, places].nan_to_num(-math.inf).clamp(min=SMALLEST_LOG)
        right = (logs.argmax(dim=1) == codes) & logs.isfinite().all(dim=1)
        sums = torch.stack([right.double().sum(dim=1), -own.double().sum(dim=1)])
        found: Float64s = sums.cpu().numpy()
        return found

    def layer(self, setting: Setting) -> tuple[Float64s, Float64s]:
        """Weight `(k, columns)` and intercept `(k,)` of one layer."""
        number = self.settings.index(setting)
        rows = slice(number * self.class_count, (number + 1) * self.class_count)
        weight, bias = (each.value[rows].cpu().double() for each in (self.weight, self.bias))
        return weight.numpy(), bias[:, 0].numpy()

    def _log_probabilities(self, rows: torch.Tensor) -> torch.Tensor:
        """`(layers, k, b)`."""
        logits = _product(self.weight.value, rows).add_(self.bias.value)
        return logits.view(len(self.settings), self.class_count, -1).log_softmax(dim=1)


class _Parameter:
    """Rows that are updated as torch.optim's SGD with momentum, Adam and AdamW update theirs.

    `rates` and `decays` are `(rows, 1)`.
    """

    def __init__(
        self, value: torch.Tensor, rates: torch.Tensor, decays: torch.Tensor, optimizer: str
    ) -> None:
        self.value = value
        self.rates = rates
        self.decays = decays if bool(decays.any()) else None
        self.optimizer = optimizer
        self.first = torch.zeros_like(value)
        self.second = torch.zeros_like(value) if optimizer != "sgd" else None

    def update(self, gradient: torch.Tensor, share: float, step: int) -> None:
        """One step at this share of the rates; `gradient` is overwritten. `step` counts from 1."""
        rates = self.rates * share
        if self.decays is not None and self.optimizer == "adamw":
            self.value *= 1 - rates * self.decays
        elif self.decays is not None:
            gradient.addcmul_(self.value, self.decays)
        if self.second is None:
            torch.add(gradient, self.first, alpha=SGD_MOMENTUM, out=self.first)
            self.value.addcmul_(self.first, rates, value=-1)
            return
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        root = torch.sqrt(self.second).div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPSILON)
        self.value.addcdiv_(self.first * (rates / (1 - BETAS[0] ** step)), root, value=-1)


def _by_row(values: list[float], class_count: int, device: str) -> torch.Tensor:
    return torch.tensor(values).repeat_interleave(class_count)[:, None].to(device)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a b'` for `(m, d)` and `(n, d)`, by oneDNN on a CPU."""
    if not can_pack(a.device, a.dtype):
        return functional.linear(a, b)
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        a, b, None, "none", [], "none"
    )
    return result
