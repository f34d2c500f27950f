"""The heads and poolings of a plan, fitted on the same folds, and the one that is left."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from dinoprobe.errors import DinoprobeError, HeadError
from dinoprobe.heads import (
    Candidate,
    SklearnProbe,
    head_from_name,
    search,
    with_random_state,
)
from dinoprobe.heads.closed import few_folds
from dinoprobe.train.protocols import plan_of, with_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dinoprobe.heads import Judged, OutOfFold, ProbeBase
    from dinoprobe.train.config import TrainConfig
    from dinoprobe.train.protocols import HeadOptions
    from dinoprobe.types import Features


@dataclass(frozen=True, slots=True)
class Choice:
    """A fitted head with its name, the training part as it was pooled for it, and what was judged.

    `judged` is empty where there was nothing to choose among, `predictions` None: else what the
    head said of each row of the folds without it.
    """

    name: str
    head: ProbeBase
    training: Features
    judged: tuple[Judged, ...] = ()
    predictions: OutOfFold | None = None

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was judged, for metrics.jsonl."""
        return [{"event": "candidate", **judged.to_dict()} for judged in self.judged]


def choose(
    config: TrainConfig,
    training: Features,
    folds: npt.NDArray[np.intp],
    say: Callable[[str], None],
) -> Choice:
    """Fit the heads of the plan on the training part, and keep one.

    Without a fold that can judge it is the first head for few images, or the first of all.
    """
    plan = plan_of(config)
    named = plan.heads_for(training.y)
    views = _views(plan.poolings_within(training.pooling or ""), training)
    if len(named) == len(views) == 1:
        ((name, _),), (view,) = named, views.values()
        return Choice(name, fit_head(unfitted(config, name), view, folds), view)
    if folds.max() < 0:
        name, _ = (*plan.few_shot_heads, *plan.heads)[0]
        say(f"No class has rows to train and to validate: the head is {name}, without a choice.")
        return Choice(name, fit_head(unfitted(config, name), training, folds), training)
    return _searched(config, named, views, folds, say)


def _searched(
    config: TrainConfig,
    named: Sequence[HeadOptions],
    views: dict[str, Features],
    folds: npt.NDArray[np.intp],
    say: Callable[[str], None],
) -> Choice:
    candidates = [
        Candidate(name, unfitted(config, name), pooling) for pooling in views for name, _ in named
    ]
    whole = next(iter(views.values()))

    def done(judged: Judged) -> None:
        what = f"{judged.candidate.name} on {judged.candidate.pooling}"
        say(f"{what}: {100 * judged.accuracy:.1f} % out of fold, log loss {judged.log_loss:.3f}")

    best, found = search(
        candidates,
        {pooling: view.X for pooling, view in views.items()},
        whole.y,
        folds,
        fit=lambda head, X: fit_rows(head, X, whole.y, folds),
        done=done,
    )
    chosen = best.candidate
    complete = best.out_of_fold if np.array_equal(few_folds(folds), folds) else None
    return Choice(chosen.name, best.head, views[chosen.pooling], tuple(found), complete)


def _views(poolings: Sequence[str], training: Features) -> dict[str, Features]:
    if len(poolings) == 1 and poolings[0] == (training.pooling or ""):
        return {poolings[0]: training}
    return {pooling: training.pooled(pooling) for pooling in poolings}


def unfitted(config: TrainConfig, name: str) -> ProbeBase:
    """A head of the plan by its name, not fitted."""
    plan = plan_of(config)
    own = dict((*plan.heads, *plan.few_shot_heads))[name]
    return seeded(head_from_name(name, **with_options(config, name, own)), config)


def seeded(head: ProbeBase, config: TrainConfig) -> ProbeBase:
    """The head with `random_state` from the seed, where it has one that was not given."""
    if "random_state" in config.head_options:
        return head
    if isinstance(head, SklearnProbe):
        return with_random_state(head, config.seed)
    if "random_state" in head.get_params(deep=False):
        head.set_params(random_state=config.seed)
    return head


def fit_head(head: ProbeBase, training: Features, folds: npt.NDArray[np.intp]) -> ProbeBase:
    """Fit on all rows; a head that selects hyper-parameters does so on these folds and no others.

    Raises HeadError, also for what scikit-learn refuses.
    """
    return fit_rows(head, training.X, training.y, folds)


def fit_rows(
    head: ProbeBase,
    X: npt.NDArray[np.floating],
    y: npt.NDArray[Any],
    folds: npt.NDArray[np.intp] | None,
) -> ProbeBase:
    """As `fit_head`, from features `(n, d)` and labels."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            options = {"folds": folds} if head.selects and folds is not None else {}
            fitted: ProbeBase = head.fit(X, y, **options)
        except DinoprobeError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            msg = f"the head can not be fitted on these features: {error}"
            raise HeadError(msg) from error
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        fitted.converged_ = False
    return fitted
