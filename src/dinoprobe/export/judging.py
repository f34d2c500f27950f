"""What decides on an export: that it answers alike, or in int8 that it is as accurate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.export.accuracy import judge, material, require_accuracy, summary
from dinoprobe.export.gate import compare, require, widened
from dinoprobe.export.pictures import pictures
from dinoprobe.export.targets import INT8, TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.export.accuracy import Material
    from dinoprobe.export.gate import Comparison
    from dinoprobe.export.pictures import Pictures
    from dinoprobe.export.targets import Target


def gate_of(
    target: Target, classifier: ImageClassifier, run: Path | None, precision: str
) -> AnswersGate | AccuracyGate:
    """What decides on an export; its images are found before anything is written."""
    if precision != INT8:
        return AnswersGate(target, classifier, pictures(classifier, run), TYPES[precision])
    chosen = material(classifier, run, calibrated=precision in target.calibrated)
    return AccuracyGate(target, classifier, chosen)


@dataclass(frozen=True, slots=True)
class AnswersGate:
    """Each answer must be the classifier's."""

    target: Target
    classifier: ImageClassifier
    shown: Pictures
    precision: str

    def calibration(self) -> npt.NDArray[Any]:
        """Nothing."""
        return np.empty(0)

    def judged(self, opened: Any) -> dict[str, Any]:
        """Of the report. Raises MismatchError where the file is not let through."""
        target, shown = self.target, self.shown
        expected = self.classifier.predict_features(shown.features(self.classifier.encoder))
        found = widened(target.answers(opened, self.classifier, shown), self.precision)
        decisive = compare(shown.keys, expected, found)
        require(target.name, decisive, len(shown))
        told = widened(target.told(opened, shown), self.precision) if target.told else {}
        return {
            "images": len(shown),
            "images_are": shown.described,
            "max_probability_difference": max(c.max_probability_difference for c in decisive),
            "top1_agreement": min(c.top1_agreement for c in decisive),
            "accuracy": None,
            "ways": _by_way(decisive),
            "reported_only": _by_way(compare(shown.keys, expected, told)),
        }


@dataclass(frozen=True, slots=True)
class AccuracyGate:
    """As many answers must be right, but for a little."""

    target: Target
    classifier: ImageClassifier
    chosen: Material

    def calibration(self) -> npt.NDArray[Any]:
        """Images of the training part, `(n, 3, height, width)`; none where none are wanted."""
        return self.chosen.prepared(self.classifier) if self.chosen.calibration else np.empty(0)

    def judged(self, opened: Any) -> dict[str, Any]:
        """Of the report. Raises MismatchError where the file is not let through."""
        target, chosen = self.target, self.chosen
        answers = partial(target.answers, opened, self.classifier)
        found = judge(self.classifier, chosen.judged, answers)
        require_accuracy(target.name, found, chosen.part)
        accuracy = summary(found, chosen)
        return {
            "images": accuracy["n"],
            "images_are": f"{accuracy['n']} of {accuracy['judged_on']}",
            "max_probability_difference": max(each.max_probability_difference for each in found),
            "top1_agreement": 1 - max(each.changed for each in found) / accuracy["n"],
            "accuracy": accuracy,
            "ways": [each.to_dict() for each in found],
            "reported_only": [],
        }


def _by_way(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [found.to_dict() for found in comparisons]
