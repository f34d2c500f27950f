"""Refitting while a person waits: one fit with what the run has chosen, and what it changes.

Hyper-parameters are those of the run, which its training part chose; nothing is chosen here that
the test part could see. Heads that take minutes are stood in for by ridge regression, and then the
model before is the same stand-in on the labels as they were.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.compare import compare
from dinoprobe.errors import HeadError
from dinoprobe.evaluation import wilson
from dinoprobe.heads import (
    LogisticProbe,
    RidgeProbe,
    apply_temperature,
    copy_for,
    out_of_fold,
)
from dinoprobe.heads.base import LinearBase
from dinoprobe.partition import dealt_folds
from dinoprobe.train import prior_shift, unfitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dinoprobe.heads import OutOfFold, ProbeBase
    from dinoprobe.page.workspace import Rows, Standing, Workspace
    from dinoprobe.train import TrainConfig
    from dinoprobe.types import Features

QUICK = ("logistic", "ridge", "lda", "prototype", "knn")
BLOCK_ROWS = 4096
QUICK_TOL = 1e-6
"""Of the logistic objective: on 10,000 x 384 made rows of 10 classes at most 4 of 5,000 answers
differ from those at 1e-8, for C from 0.01 to 10, in 0.6 to 0.9 of the time.
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted head, and what it says of every row: `best` `(n,)` is a column of `classes`.

    `version` is that of the labels that it was fitted on. `margin` `(n,)` is how far the second
    best probability is behind.
    """

    head: ProbeBase
    version: int
    best: npt.NDArray[np.intp]
    probability: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]

    @classmethod
    def of(cls, head: ProbeBase, X: npt.NDArray[np.float32], version: int) -> Model:
        """Judge all rows, a block at a time: with many classes all probabilities are gigabytes."""
        best = np.zeros(len(X), dtype=np.intp)
        top, margin = np.zeros((2, len(X)), dtype=np.float32)
        for start in range(0, len(X), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            found = head.predict_proba(X[block])
            best[block] = found.argmax(axis=1)
            two = np.partition(found, -2, axis=1)[:, -2:]
            top[block], margin[block] = two[:, 1], two[:, 1] - two[:, 0]
        return cls(head, version, best, top, margin)

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the columns."""
        return tuple(str(name) for name in self.head.classes_)

    def labels(self, rows: Rows) -> list[str]:
        """What it says of some rows."""
        names = self.classes
        return [names[code] for code in self.best[rows]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a head is fitted here. `temperature` is what the run divides logits by, in all.

    `stands_in` says that the run's own head is another one.
    """

    name: str
    head: ProbeBase
    temperature: float | None = None
    prior: Any = None
    stands_in: bool = False

    @classmethod
    def of_run(cls, config: TrainConfig, chosen: Mapping[str, Any]) -> Recipe:
        """`chosen` is the head of the run as its classifier describes it."""
        name = str(chosen.get("name"))
        if name not in QUICK:
            return cls("ridge", RidgeProbe(), prior=config.prior, stands_in=True)
        head = unfitted(config, name)
        words = {"C": "strength"}
        given = {option: chosen.get(words.get(option, option)) for option in head.selects}
        head.set_params(**{option: value for option, value in given.items() if value is not None})
        if isinstance(head, LogisticProbe):
            head.set_params(tol=QUICK_TOL)
        return cls(name, head, chosen.get("temperature", 1.0), config.prior)

    def fit(self, X: npt.NDArray[np.float32], y: npt.NDArray[Any]) -> ProbeBase:
        """A fitted head. Raises HeadError for fewer than two classes."""
        found = sorted({str(label) for label in y})
        if len(found) < 2:
            raise HeadError(
                f"{len(y)} labelled images of {len(found)} classes ({', '.join(found) or 'none'}); "
                "expected at least two classes. Label some images of another class."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head: ProbeBase = copy_for(self.head, y).fit(X, y)
        if self.temperature is not None and isinstance(head, LinearBase):
            apply_temperature(head, self.temperature / head.temperature_)
        if (shift := prior_shift(self.prior, head, y)) is not None:
            shift.apply(head)
        return head

    def left_out(self, training: Features) -> OutOfFold:
        """What heads say of rows that they were not fitted on."""
        return out_of_fold(self.head, training.X, training.y, dealt_folds(training, seed=0))


def refit(work: Workspace, standing: Standing) -> dict[str, Any]:
    """Fit the labels as they stand, make that the model, and say what it changes.

    Raises HeadError where there is too little to fit.
    """
    start = time.perf_counter()
    rows = work.training_rows(standing)
    head = work.recipe.fit(work.features.X[rows], standing.labels[rows])
    fitted_s = time.perf_counter() - start
    model = Model.of(head, work.features.X, standing.version)
    before, work.model = work.first, model
    seconds = time.perf_counter() - start
    test, corrected_test = work.test_rows(), work.test_rows(standing)
    changed = work.corrected(standing, work.test_rows())
    return {
        "head": work.recipe.name,
        "stands_in": work.recipe.stands_in,
        "version": standing.version,
        "classes": list(model.classes),
        "n_train": len(rows),
        "n_corrected": work.corrected(standing, np.flatnonzero(~work.is_test())),
        "n_corrected_test": changed,
        "fit_s": round(fitted_s, 4),
        "seconds": round(seconds, 4),
        "test": _judged(before, model, test, work.features.y),
        "test_corrected": (
            _judged(before, model, corrected_test, standing.labels) if changed else None
        ),
        "out_of_fold": None if len(test) else _out_of_fold(work, rows, standing),
    }


def _judged(
    before: Model | None, after: Model, rows: Rows, labels: npt.NDArray[np.object_]
) -> dict[str, Any] | None:
    """Both models on the same rows with the same labels; None without rows."""
    if not len(rows):
        return None
    truth = [str(label) for label in labels[rows]]
    right = [said == label for said, label in zip(after.labels(rows), truth, strict=True)]
    found: dict[str, Any] = {"n": len(rows), "after": _share(right), "before": None}
    if before is None:
        return found
    known = [said == label for said, label in zip(before.labels(rows), truth, strict=True)]
    difference = compare(list(zip(right, known, strict=True)))
    return found | {
        "before": _share(known),
        "difference": difference.difference,
        "difference_interval": list(difference.difference_interval),
        "p_value": difference.p_value,
        "better": difference.only_a,
        "worse": difference.only_b,
    }


def _share(right: list[bool]) -> dict[str, Any]:
    n = len(right)
    return {"accuracy": sum(right) / n, "interval": list(wilson(sum(right), n))}


def _out_of_fold(work: Workspace, rows: Rows, standing: Standing) -> dict[str, Any] | None:
    """Accuracy on labelled rows by heads that did not see them; None where there are too few."""
    judged = work.recipe.left_out(work.labelled(rows, standing))
    if not len(judged):
        return None
    right = (judged.probabilities.argmax(axis=1) == judged.codes).tolist()
    return {"n": len(right), **_share(right)}
