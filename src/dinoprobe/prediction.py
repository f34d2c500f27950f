"""From probabilities to answers: labels, sets of labels, and whether to answer at all.

A saved classifier and an exported file share this, so it imports neither torch nor an encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.decisions import Abstention, PredictionSets
    from dinoprobe.types import Failure


class Score(NamedTuple):
    """One class with its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the classifier says of one image, or why it could not be used.

    `top` is sorted from the most probable class down; empty, with `label` None, after a failure.
    `labels` is the prediction set, sorted likewise: the label is among them with the coverage that
    the classifier was trained for; None after a failure, and without sets. `abstained` says that
    the best probability was below the asked one, or the classifier's rule says not to answer:
    `label` is None, and `top` still there. `novel` says that the image is unlike all training
    images, for its `novelty` is above the classifier's threshold; None where it has no measure. Of
    a head with several labels an image, `labels` are those that reach their thresholds, and `label`
    is the most probable of them, None without any.
    """

    key: str
    label: str | None
    probability: float | None
    top: tuple[Score, ...] = ()
    failure: Failure | None = None
    labels: tuple[str, ...] | None = None
    abstained: bool = False
    novelty: float | None = None
    novel: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `failure` is there only after one."""
        values: dict[str, Any] = {
            "key": self.key,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": s.label, "probability": s.probability} for s in self.top],
            "labels": None if self.labels is None else list(self.labels),
            "abstained": self.abstained,
            "novelty": self.novelty,
            "novel": self.novel,
        }
        if self.failure is not None:
            values["failure"] = {"kind": self.failure.kind, "reason": self.failure.reason}
        return values


@dataclass(frozen=True, slots=True)
class Rules:
    """What turns probabilities into answers; None for what a classifier does not have.

    `classes` are in the order of the columns of probabilities. `label_thresholds` `(classes,)` are
    those of a head with several labels an image.
    """

    classes: tuple[str, ...]
    sets: PredictionSets | None = None
    abstention: Abstention | None = None
    novelty_threshold: float | None = None
    label_thresholds: Sequence[float] | npt.NDArray[np.float64] | None = None

    def predictions(
        self,
        probabilities: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64] | None,
        *,
        top_k: int,
        abstain_below: float | None = None,
    ) -> Iterator[Prediction]:
        """One for each row of probabilities `(n, classes)` and scores of novelty `(n,)`, without
        keys.
        """
        answered = self.answered(probabilities, scores, abstain_below)
        for i, row in enumerate(probabilities):
            found = self.prediction("", row, top_k)
            if scores is not None and self.novelty_threshold is not None:
                novel = bool(scores[i] > self.novelty_threshold)
                found = replace(found, novelty=float(scores[i]), novel=novel)
            yield found if answered[i] else replace(found, label=None, abstained=True)

    def answered(
        self,
        probabilities: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64] | None,
        abstain_below: float | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Which rows have an answer: by the probability, or by the rule where none is given."""
        if abstain_below is None and self.abstention is not None:
            return self.abstention.answers(probabilities, scores)
        found: npt.NDArray[np.bool_] = probabilities.max(axis=1) >= (abstain_below or 0.0)
        return found

    def prediction(
        self, key: str, probabilities: npt.NDArray[np.float64], top_k: int
    ) -> Prediction:
        """The `Prediction` for one row of probabilities `(classes,)`, answered in any case."""
        order = (-probabilities).argsort(kind="stable")
        names = self.classes
        top = tuple(Score(names[i], float(probabilities[i])) for i in order[: max(1, top_k)])
        labels = None
        if self.label_thresholds is not None:
            given = [i for i in order if probabilities[i] >= self.label_thresholds[i]]
            label = names[given[0]] if given else None
            sure = float(probabilities[(given or order)[0]])
            return Prediction(key, label, sure, top, labels=tuple(names[i] for i in given))
        if self.sets is not None:
            (members,) = self.sets.members(probabilities[None])
            labels = tuple(names[i] for i in order if members[i])
        return Prediction(key, top[0].label, top[0].probability, top, labels=labels)


__all__ = ["Prediction", "Rules", "Score"]
