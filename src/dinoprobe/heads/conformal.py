"""Sets of labels that hold the right one in a chosen share of images (conformal prediction).

A threshold on a score is taken from predictions that the head did not learn from: the smallest that
covers the chosen share of them, counted as n + 1. On images that come like those, a set then holds
the label with at least that probability, whatever the head (Vovk et al. 2005; Angelopoulos and
Bates 2021). That is exact where one held-out part gave the predictions. Those of
several folds come from heads fitted on less; the head of all rows errs to the safe side as a rule,
without a proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.heads.base import Float64s
    from dinoprobe.heads.out_of_fold import OutOfFold

METHODS = ("lac", "aps")
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """What decides which labels stand in a set.

    `method` "lac" takes the labels above one probability: the smallest sets in the mean (Sadinle et
    al. 2019). "aps" adds labels from the most probable down until a sum of probabilities is
    reached, so that sets grow where the head is unsure (Romano et al. 2020). Its score is the sum
    before the label, without the label's own part: no random choice at the edge is needed, the same
    image has the same set, and sure answers are alone in theirs. `thresholds` are the largest
    scores that conform, one, or one for each class; infinity where `n` rows were too few for any.
    """

    method: str
    coverage: float
    thresholds: tuple[float, ...]
    n: int

    def conforming(self, probabilities: Float64s) -> npt.NDArray[np.bool_]:
        """Which labels conform, `(n, k)`; none of a row may."""
        return np.asarray(scores(probabilities, self.method) <= np.array(self.thresholds))

    def members(self, probabilities: Float64s) -> npt.NDArray[np.bool_]:
        """The sets `(n, k)`: what conforms, and the most probable label in any case.

        With "lac" a head that is right more often than `coverage` would leave sets empty else.
        """
        found = self.conforming(probabilities)
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values; null stands for infinity."""
        thresholds = [value if math.isfinite(value) else None for value in self.thresholds]
        return {
            "method": self.method,
            "coverage": self.coverage,
            "thresholds": thresholds,
            "n": self.n,
        }

    @classmethod
    def from_dict(cls, values: Any, class_count: int) -> PredictionSets:
        """The inverse of `to_dict`. Raises FormatError for anything else."""
        try:
            thresholds = tuple(
                math.inf if value is None else float(value) for value in values["thresholds"]
            )
            read = cls(values["method"], float(values["coverage"]), thresholds, values["n"])
            check_sets(read.method, read.coverage)
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged(f"{type(error).__name__} {error}") from error
        if len(thresholds) not in {1, class_count}:
            raise _damaged(f"{len(thresholds)} thresholds for {class_count} classes")
        if any(math.isnan(value) for value in thresholds) or type(read.n) is not int:
            raise _damaged("a threshold or a count that is no number")
        return read


def check_sets(method: str, coverage: float) -> None:
    """Raise ConfigurationError for a method or a coverage that does not exist."""
    if method not in METHODS:
        raise ConfigurationError(
            f"The sets' method is {method!r}; expected one of {', '.join(METHODS)}."
        )
    if not 0 < coverage < 1:
        raise ConfigurationError(f"The sets' coverage is {coverage}; expected between 0 and 1.")


def fit_sets(
    judged: OutOfFold, *, method: str = "lac", coverage: float = 0.9, per_class: bool = False
) -> PredictionSets:
    """Thresholds from out-of-fold predictions.

    `per_class` takes one from the rows of each class, so that each class is covered (Vovk 2012):
    larger sets, and a class with fewer than coverage / (1 - coverage) rows stands in every set.
    """
    check_sets(method, coverage)
    own = scores(judged.probabilities, method)[np.arange(len(judged)), judged.codes]
    if per_class:
        groups = [own[judged.codes == code] for code in range(len(judged.classes))]
    else:
        groups = [own]
    thresholds = tuple(_threshold(group, coverage) for group in groups)
    return PredictionSets(method, coverage, thresholds, len(judged))


def scores(probabilities: Float64s, method: str) -> Float64s:
    """How little each label conforms, `(n, k)`: from 0 up to 1."""
    if method == "lac":
        return np.asarray(1 - probabilities)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sums = np.zeros_like(probabilities)
    sums[:, 1:] = np.take_along_axis(probabilities, order, axis=1).cumsum(axis=1)[:, :-1]
    found = np.empty_like(sums)
    np.put_along_axis(found, order, sums, axis=1)
    return found


def _threshold(own: Float64s, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest score; infinity where there are too few."""
    rank = math.ceil((len(own) + 1) * coverage - ROUNDING)
    return float(np.partition(own, rank - 1)[rank - 1]) if rank <= len(own) else math.inf


def _damaged(found: str) -> FormatError:
    return FormatError(
        f"Saved prediction sets: {found}; expected what dinoprobe writes. Load an undamaged copy, "
        f"or train again."
    )
