"""The tutorial's head: one `nn.Linear`, cross-entropy, shuffled batches, a few epochs.

`LinearTraining` is the one implementation: `LinearProbe.fit` drives it over features that exist,
and a trainer with the encoder inside its loop drives it batch by batch. It depends on the learning
rate and on luck in a way that `LogisticProbe` does not (0.4 to 3 points lower on raw features,
depending on the batch size); it is here to repeat published numbers and to train on augmented
images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from dinoprobe.errors import ConfigurationError, HeadError, NonFiniteError
from dinoprobe.heads.axes import standardization
from dinoprobe.heads.base import LinearBase
from dinoprobe.heads.statistics import moments as weighted_moments
from dinoprobe.heads.threads import one_torch_thread
from dinoprobe.heads.training import training_rows
from dinoprobe.heads.weights import class_weights
from dinoprobe.mapped import folder_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s
    from dinoprobe.heads.training import TrainingRows
    from dinoprobe.heads.weights import ClassWeight

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SGD_MOMENTUM = 0.9
"""As facebookresearch/dinov3 `dinov3/eval/linear.py`."""
STRETCH_ROWS, BUFFER_ROWS = 64, 2**15
"""Of features in a file: rows that are read at once, and rows that a batch is drawn from."""


class LinearProbe(LinearBase):
    """A linear layer trained by gradient descent on cross-entropy.

    Deterministic on a CPU for a given `random_state`, which seeds a generator of its own; the
    global one is not touched. A row's loss is multiplied by its weight (`heads/weights.py`) over
    the mean weight of all rows. After fit: `loss_history_`, the mean of the batches' losses in each
    epoch; `coef_` and `intercept_` for features as they come.
    """

    loss_history_: list[float]

    def __init__(  # noqa: PLR0913 - the options of a training
        self,
        optimizer: str = "adam",
        *,
        lr: float = 1e-3,
        epochs: int = 5,
        batch_size: int = 32,
        weight_decay: float = 0.0,
        standardize: bool = False,
        class_weight: ClassWeight = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def fit(
        self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """Train for `epochs` passes over the rows, in a new order each."""
        self._check_options()
        rows = training_rows(self, X, y, sample_weight)
        with one_torch_thread():
            self._train(rows)
        return self

    def begin(
        self,
        n_features: int,
        classes: Sequence[str],
        *,
        moments: tuple[Float64s, Float64s] | None = None,
        labels: Sequence[str] | None = None,
    ) -> LinearTraining:
        """A training of this probe that the caller drives batch by batch; see `LinearTraining`.

        With `standardize`, `moments` are the mean and scale `(d,)` of the features. With
        `class_weight`, `labels` are those of an epoch, from which the weights are taken.
        """
        self._check_options()
        if self.standardize and moments is None:
            raise ConfigurationError(
                "LinearProbe(standardize=True).begin() got no moments; expected the mean and scale "
                "of the features, which are unknown batch by batch. Pass moments=, or leave "
                "standardize out."
            )
        training = LinearTraining(self, n_features, sorted_classes(classes), moments)
        if self.class_weight is not None:
            training.weigh(labels)
        return training

    def _train(self, training_rows: TrainingRows) -> None:
        X, weights = training_rows.X, training_rows.weights
        moments = _moments(X, weights) if self.standardize else None
        training = LinearTraining(self, X.shape[1], self.classes_, moments)
        targets = torch.from_numpy(training_rows.codes).to(self.device)
        factors = None
        if weights is not None:
            factors = torch.from_numpy(_of_mean_one(weights)).to(self.device)
        for _ in range(self.epochs):
            for rows, features in training.buffers(X):
                for batch in training.shuffled_batches(len(features)):
                    places = batch if rows is None else rows[batch]
                    own = None if factors is None else factors[places]
                    training.update(features[batch], targets[places], own)
            training.end_epoch()
        training.finish()

    def _check_options(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigurationError(
                f"optimizer is {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}."
            )
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ConfigurationError(
                f"LinearProbe got epochs={self.epochs}, batch_size={self.batch_size}, "
                f"lr={self.lr}; expected all of them above 0."
            )

    def __sklearn_tags__(self) -> Any:
        """Five epochs of Adam at 1e-3 do not fit a small data set: the tutorial's choice."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags


class LinearTraining:
    """One training, step by step: `step` for each batch, `end_epoch`, at last `finish`."""

    def __init__(
        self,
        probe: LinearProbe,
        n_features: int,
        classes: npt.NDArray[Any],
        moments: tuple[Float64s, Float64s] | None,
    ) -> None:
        self.probe = probe
        self.classes = classes
        self.loss_history: list[float] = []
        self._codes = {label: code for code, label in enumerate(classes.tolist())}
        self._moments = moments or (np.zeros(n_features), np.ones(n_features))
        self._generator = torch.Generator().manual_seed(probe.random_state)
        self._losses: list[torch.Tensor] = []
        self._class_factors: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._start(n_features, len(classes))

    def _start(self, n_features: int, class_count: int) -> None:
        layer = _linear_layer(n_features, class_count, self._generator)
        self._layer = layer.to(self.probe.device)
        self._optimizer = _optimizer(self.probe, self._layer)

    def weigh(self, labels: Sequence[str] | None) -> None:
        """Take the weights of the classes from the labels of an epoch. Raises HeadError."""
        if labels is None:
            raise ConfigurationError(
                "LinearProbe(class_weight=...).begin() got no labels; expected those of all rows "
                "of an epoch, which give the weights. Pass labels=, or leave class_weight out."
            )
        codes = np.array([self._code(label) for label in labels], dtype=np.intp)
        option, count = self.probe.class_weight, len(self.classes)
        weights = class_weights(codes, count, option, classes=self.classes)
        if weights is not None:
            factors = (weights / weights[codes].mean()).astype(np.float32)
            self._class_factors = torch.from_numpy(factors).to(self.probe.device)

    def step(self, X: npt.ArrayLike | torch.Tensor, y: Sequence[str]) -> float:
        """One update from features `(b, d)` and their labels; the batch's loss before it."""
        values = X.detach().float().cpu().numpy() if isinstance(X, torch.Tensor) else np.asarray(X)
        if values.shape != (len(y), len(self._moments[0])):
            raise HeadError(
                f"A batch has features of shape {values.shape} and {len(y)} labels; expected "
                f"({len(y)}, {len(self._moments[0])})."
            )
        if not np.isfinite(values).all():
            raise NonFiniteError(
                "A batch holds NaN or inf among its features; a linear probe needs finite numbers. "
                "Leave those rows out."
            )
        codes = torch.tensor([self._code(label) for label in y], device=self.probe.device)
        rows = torch.from_numpy(self.standardized(values)).to(self.probe.device)
        factors = None if self._class_factors is None else self._class_factors[codes]
        return float(self.update(rows, codes, factors))

    def update(
        self, rows: torch.Tensor, codes: torch.Tensor, factors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One update from standardised rows and codes on the device; the loss before it.

        `factors` `(b,)` multiply the loss of each row.
        """
        self._optimizer.zero_grad()
        if factors is None:
            loss = nn.functional.cross_entropy(self._layer(rows), codes)
        else:
            losses = nn.functional.cross_entropy(self._layer(rows), codes, reduction="none")
            loss = (losses * factors).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._losses.append(loss.detach())
        return self._losses[-1]

    def end_epoch(self) -> float:
        """Close an epoch; the mean of its batches' losses."""
        if not self._losses:
            raise HeadError("An epoch ended without a batch; expected at least one step in it.")
        self.loss_history.append(float(torch.stack(self._losses).mean()))
        self._losses.clear()
        return self.loss_history[-1]

    def finish(self) -> LinearProbe:
        """The probe, fitted."""
        weight, intercept = (p.detach().cpu().double().numpy() for p in self._layer.parameters())
        mean, scale = self._moments
        weight = weight / scale
        if not (np.isfinite(weight).all() and np.isfinite(intercept).all()):
            raise HeadError(
                f"Training diverged: the weights are no longer finite at lr={self.probe.lr:g}. "
                f"Take a smaller lr, or standardize=True."
            )
        self.probe.classes_, self.probe.n_features_in_ = self.classes, len(mean)
        self.probe.loss_history_ = list(self.loss_history)
        self.probe.set_linear(weight, intercept - weight @ mean)
        return self.probe

    def standardized(self, X: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The rows as the layer sees them, float32; a copy of those that are read-only."""
        mean, scale = self._moments
        if mean.any() or (scale != 1).any():
            X = (X - mean) / scale
        return np.require(X, np.float32, ["C", "W"])

    def buffers(self, X: npt.NDArray[Any]) -> Iterator[tuple[torch.Tensor | None, torch.Tensor]]:
        """What batches of an epoch are drawn from: row numbers, None for all, and these rows.

        Rows in memory are one buffer, and few rows. Of a file each buffer has stretches from all
        over it, so that it is read in pieces, and rows that stand in it by class are mixed.
        """
        if folder_of(X) is None or len(X) <= BUFFER_ROWS:
            if self._rows is None:
                self._rows = self._on_device(X)
            yield None, self._rows
            return
        stretches = torch.randperm(-(-len(X) // STRETCH_ROWS), generator=self._generator)
        for some in torch.split(stretches, BUFFER_ROWS // STRETCH_ROWS):
            starts = some.sort().values * STRETCH_ROWS
            rows = (starts[:, None] + torch.arange(STRETCH_ROWS)).flatten()
            rows = rows[rows < len(X)]
            yield rows.to(self.probe.device), self._on_device(X[rows.numpy()])

    def _on_device(self, X: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(self.standardized(X)).to(self.probe.device)

    def shuffled_batches(self, row_count: int) -> tuple[torch.Tensor, ...]:
        """Row numbers of an epoch's batches, in a new order."""
        order = torch.randperm(row_count, generator=self._generator).to(self.probe.device)
        return torch.split(order, self.probe.batch_size)

    def _code(self, label: str) -> int:
        if label not in self._codes:
            raise HeadError(
                f"A batch has the label {label!r}, which is not among the {len(self._codes)} "
                f"classes that the training began with."
            )
        return self._codes[label]


def _moments(X: npt.NDArray[Any], weights: Float64s | None) -> tuple[Float64s, Float64s]:
    return standardization(X) if weights is None else weighted_moments(X, weights)


def _of_mean_one(weights: Float64s) -> npt.NDArray[np.float32]:
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def sorted_classes(classes: Sequence[str]) -> npt.NDArray[Any]:
    """Each class once, sorted. Raises HeadError for fewer than two."""
    unique = sorted(set(classes))
    if len(unique) < 2:
        raise HeadError(f"The classes are {unique}; a linear probe needs at least 2 classes.")
    return np.array(unique, dtype=object)


def _linear_layer(n_features: int, class_count: int, generator: torch.Generator) -> nn.Linear:
    """`nn.Linear` with its usual start, uniform within 1/√d, drawn from this generator."""
    layer = nn.Linear(n_features, class_count, device="meta").to_empty(device="cpu")
    bound = n_features**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _optimizer(probe: LinearProbe, layer: nn.Linear) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": probe.lr, "weight_decay": probe.weight_decay}
    if probe.optimizer == "sgd":
        options["momentum"] = SGD_MOMENTUM
    optimizer: torch.optim.Optimizer = OPTIMIZERS[probe.optimizer](layer.parameters(), **options)
    return optimizer
