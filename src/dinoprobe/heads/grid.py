"""Many linear layers trained at once: learning rates x weight decays x poolings, the best is kept.

As the linear evaluation of DINOv3, which trains a layer for each of 13 rates on the same batches.
Here they are the rows of one matrix, so that a step is two products and one update for all of them:
an epoch of 11,520 rows of 768 features and 100 classes takes 0.48 s of processor time, 13 plain
loops on one thread 2.3. A layer gives the same result whatever trains beside it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product as combinations
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch

from dinoprobe.errors import ConfigurationError, HeadError
from dinoprobe.heads.axes import standardization
from dinoprobe.heads.base import LinearBase, check_training
from dinoprobe.heads.folds import assign_folds, check_fold_count, split_folds
from dinoprobe.heads.grid_training import OPTIMIZERS, SCHEDULES, GridTraining, Setting
from dinoprobe.heads.linear import sorted_classes
from dinoprobe.heads.threads import one_torch_thread
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s

    Columns = tuple[int, int]
    Moments = tuple[Float64s, Float64s]

BASE_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Each times batch size / 256: facebookresearch/dinov3 `dinov3/eval/linear.py`, as its SGD with
momentum 0.9, no weight decay and a cosine to 0."""
DEFAULT_BASE_RATE = 1e-2
"""Where folds can not choose."""
LAYERS_AT_ONCE = 7
"""Layers in one matrix; more are dealt to several, which run in threads."""


class LinearGridProbe(LinearBase):
    """The best of linear layers trained by gradient descent at several rates, decays and poolings.

    `lrs` None are `BASE_RATES` times `batch_size` / 256. `poolings` are ranges `(start, stop)` of
    feature columns, None for all columns. `lr`, `weight_decay` and `pooling` fix the choice of
    each. Every epoch passes over all rows in a new order, which all layers share; `schedule` is
    "cosine" to 0 or "constant". The most accurate layer on validation rows wins, of equals the one
    with the smaller log loss; `refit` trains it again on all rows, else it stays as its one fold
    left it.

    After fit: `lr_`, `weight_decay_`, `pooling_`; `selection_`, how they were chosen, in words;
    `cv_results_`, arrays `lr`, `weight_decay`, `pooling` (a number among `poolings`), `accuracy`
    and `log_loss` over all validation rows (None without a choice); `loss_history_` of the kept
    layer; `coef_` and `intercept_` for features as they come.
    """

    cv_results_: dict[str, Any] | None
    selects = ("lr", "weight_decay", "pooling")

    def __init__(  # noqa: PLR0913 - each is a choice of the user's
        self,
        optimizer: str = "sgd",
        *,
        lrs: Sequence[float] | None = None,
        lr: float | None = None,
        weight_decays: Sequence[float] = (0.0,),
        weight_decay: float | None = None,
        poolings: Sequence[Columns] | None = None,
        pooling: Columns | None = None,
        epochs: int = 10,
        batch_size: int = 128,
        schedule: str = "cosine",
        standardize: bool = False,
        refit: bool = True,
        cv: int = 5,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.optimizer = optimizer
        self.lrs = lrs
        self.lr = lr
        self.weight_decays = weight_decays
        self.weight_decay = weight_decay
        self.poolings = poolings
        self.pooling = pooling
        self.epochs = epochs
        self.batch_size = batch_size
        self.schedule = schedule
        self.standardize = standardize
        self.refit = refit
        self.cv = cv
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        groups: Sequence[Any] | None = None,
        folds: npt.ArrayLike | None = None,
    ) -> Self:
        """Choose a layer and train it on all rows.

        `folds` are the validation fold of each row, -1 for a row that is always trained on; without
        them `cv` stratified folds are dealt, rows of one group together.
        """
        self._check_options()
        rows, codes = check_training(self, X, y)
        settings = self._settings(rows.shape[1])
        data = _Data(np.asarray(rows, np.float32), codes, len(self.classes_))
        with one_torch_thread():
            self._fit(data, settings, groups, folds)
        return self

    def begin(
        self, n_features: int, classes: Sequence[str], *, steps: int, moments: Moments | None = None
    ) -> GridTraining:
        """A training of all layers that the caller drives for so many steps; see `GridTraining`.

        With `standardize`, `moments` are the mean and scale `(d,)` of the features.
        """
        self._check_options()
        if self.standardize and moments is None:
            raise ConfigurationError(
                "LinearGridProbe(standardize=True).begin() got no moments; expected the mean and "
                "scale of the features. Pass moments=, or leave standardize out."
            )
        settings = self._settings(n_features)
        return GridTraining(self, n_features, sorted_classes(classes), moments, settings, steps)

    def learning_rates(self) -> list[float]:
        """The rates that are tried."""
        given = [rate * self.batch_size / 256 for rate in BASE_RATES]
        return list(given if self.lrs is None else self.lrs) if self.lr is None else [self.lr]

    def keep(self, setting: Setting, layer: tuple[Float64s, Float64s], losses: list[float]) -> None:
        """Make this trained layer, `(k, d)` and `(k,)`, the one that predicts.

        Raises HeadError where it is not finite.
        """
        if not all(np.isfinite(values).all() for values in layer):
            raise HeadError(
                f"Training diverged: the weights are no longer finite at lr={setting.lr:g}. "
                f"Take smaller lrs, or standardize=True."
            )
        self.lr_, self.weight_decay_ = setting.lr, setting.weight_decay
        self.pooling_ = None if self.poolings is None and self.pooling is None else setting.columns
        self.loss_history_ = losses
        self.set_linear(*layer)

    def choose(self, settings: list[Setting], sums: Float64s, rows: int, origin: str) -> Setting:
        """The best layer by right answers and summed log loss `(2, layers)` over so many rows.

        Sets `cv_results_` and `selection_`.
        """
        accuracy, log_loss = sums / rows
        ranges = sorted({setting.columns for setting in settings})
        self.cv_results_ = {
            "lr": np.array([setting.lr for setting in settings]),
            "weight_decay": np.array([setting.weight_decay for setting in settings]),
            "pooling": np.array([ranges.index(setting.columns) for setting in settings]),
            "accuracy": accuracy,
            "log_loss": log_loss,
        }
        best = settings[int(np.lexsort((log_loss, -accuracy))[0])]
        rates = [setting.lr for setting in settings]
        edge = len(set(rates)) > 1 and best.lr in (min(rates), max(rates))
        self.selection_ = f"{origin}{', at the edge of the rates' if edge else ''}"
        return best

    def _fit(
        self,
        data: _Data,
        settings: list[Setting],
        groups: Sequence[Any] | None,
        folds: npt.ArrayLike | None,
    ) -> None:
        """Set everything that fit sets beyond classes."""
        self.cv_results_ = None
        everything = np.arange(len(data.codes))
        if len(settings) == 1:
            self.selection_ = "given"
            self._train_and_keep(data, settings[0], everything)
            return
        assigned, origin = assign_folds(data.codes, groups, folds, self.cv, self.random_state)
        parts = list(split_folds(assigned, data.codes))
        if not self.refit and len(parts) != 1:
            raise HeadError(
                f"refit=False keeps the layer of one fold, and there are {len(parts)}. Give folds "
                f"with one validation part, or leave refit out."
            )
        if not parts:
            chosen = min(settings, key=lambda setting: abs(math.log(setting.lr / self._default())))
            self.selection_ = f"default, lr = {chosen.lr:g}: no class has rows to validate"
            self._train_and_keep(data, chosen, everything)
            return
        what = f"{len(parts)} {origin} fold{'s' if len(parts) > 1 else ''}"
        row_count = sum(len(validation) for _, validation in parts)
        sums, trainings = self._judged(data, settings, parts)
        chosen = self.choose(settings, sums, row_count, what)
        if self.refit:
            self._train_and_keep(data, chosen, everything)
            return
        group, number = divmod(settings.index(chosen), LAYERS_AT_ONCE)
        training = trainings[group]
        self.keep(chosen, training.layer(number), training.losses(number))

    def _judged(
        self, data: _Data, settings: list[Setting], parts: list[tuple[Codes, Codes]]
    ) -> tuple[Float64s, list[GridTraining]]:
        """Right answers and summed log loss `(2, layers)` over the validation rows of all folds.

        Without `refit` also the training of each group of layers.
        """
        groups = [settings[i : i + LAYERS_AT_ONCE] for i in range(0, len(settings), LAYERS_AT_ONCE)]

        kept: list[GridTraining] = []

        def judge(job: tuple[list[Setting], tuple[Codes, Codes]]) -> Float64s:
            group, (train, validation) = job
            training = self._trained(data, group, train)
            if not self.refit:
                kept.append(training)
            return training.judged(data.X[validation], data.codes[validation])

        with ThreadPoolExecutor(usable_cores()) as pool:
            found = list(pool.map(judge, combinations(groups, parts)))
        by_group = [found[i : i + len(parts)] for i in range(0, len(found), len(parts))]
        kept.sort(key=lambda training: settings.index(training.settings[0]))
        return np.concatenate([np.sum(sums, axis=0) for sums in by_group], axis=1), kept

    def _train_and_keep(self, data: _Data, setting: Setting, rows: Codes) -> None:
        training = self._trained(data, [setting], rows)
        self.keep(setting, training.layer(0), training.losses(0))

    def _trained(self, data: _Data, settings: list[Setting], rows: Codes) -> GridTraining:
        """These layers after all epochs over these rows."""
        moments = standardization(data.X[rows]) if self.standardize else None
        steps = self.epochs * -(-len(rows) // self.batch_size)
        classes = np.arange(data.class_count)
        training = GridTraining(self, data.X.shape[1], classes, moments, settings, steps)
        features = torch.from_numpy(training.standardized(data.X)).to(self.device)
        targets, numbers = (torch.from_numpy(each).to(self.device) for each in (data.codes, rows))
        for _ in range(self.epochs):
            for batch in training.shuffled_batches(len(rows)):
                chosen = numbers[batch]
                training.update(features[chosen], targets[chosen])
            training.end_epoch()
        return training

    def _default(self) -> float:
        return DEFAULT_BASE_RATE * self.batch_size / 256

    def _settings(self, n_features: int) -> list[Setting]:
        """All layers, poolings outermost, rates innermost."""
        lrs = self.learning_rates()
        decays = self.weight_decays if self.weight_decay is None else [self.weight_decay]
        ranges = [self.pooling] if self.pooling is not None else self.poolings or [(0, n_features)]
        for start, stop in ranges:
            if not 0 <= start < stop <= n_features:
                raise HeadError(
                    f"A pooling is the columns {start} to {stop}; expected a range within the "
                    f"{n_features} columns of the features."
                )
        found = [
            Setting(float(lr), float(decay), (int(start), int(stop)))
            for (start, stop), decay, lr in combinations(ranges, decays, lrs)
        ]
        if not found or any(not 0 < lr < math.inf or decay < 0 for lr, decay, _ in found):
            raise ConfigurationError(
                f"LinearGridProbe got lrs={list(lrs)} and weight_decays={list(decays)}; expected "
                f"at least one of each, rates above 0 and decays from 0."
            )
        return found

    def _check_options(self) -> None:
        if self.optimizer not in OPTIMIZERS or self.schedule not in SCHEDULES:
            raise ConfigurationError(
                f"optimizer is {self.optimizer!r} and schedule {self.schedule!r}; expected one of "
                f"{', '.join(OPTIMIZERS)}, and {' or '.join(SCHEDULES)}."
            )
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigurationError(
                f"LinearGridProbe got epochs={self.epochs}, batch_size={self.batch_size}; expected "
                f"both from 1."
            )
        check_fold_count(self.cv)

    def __sklearn_tags__(self) -> Any:
        """Ten steps do not fit a small data set: DINOv3's choice, for large ones."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags


class _Data(NamedTuple):
    """Features `(n, d)` float32 and labels as codes."""

    X: npt.NDArray[np.float32]
    codes: Codes
    class_count: int
