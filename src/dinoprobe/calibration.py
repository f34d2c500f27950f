"""Whether probabilities and prediction sets keep what they promise, in figures.

How far probabilities are from the share that is right, before and after a scaling; how often a
set holds the label, and how many labels that takes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from dinoprobe.evaluation import evaluate, wilson
from dinoprobe.heads import fit_scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dinoprobe.evaluation import Interval
    from dinoprobe.heads import OutOfFold, PredictionSets, ProbeBase, Scaling
    from dinoprobe.heads.base import Float64s


JUDGED_VALUES = 1 << 26
"""At most so many probabilities (rows times classes), half a gigabyte, fit the scaling."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a scaling did. Errors are expected calibration errors, as in `Evaluation`.

    Those before and after are over `n` out-of-fold predictions, on which the scaling itself was
    fitted, and of which `changed` have another answer now; those of the test part are None until
    `tested`. Of a head with class weights, they are errors of its probabilities brought back to
    rows as they come. `own_temperature` is what a head had divided its scores by before, chosen on
    folds by itself (LDA, ridge, prototypes): errors "before" are after that; 1 for other heads.
    """

    scaling: Scaling
    n: int
    changed: int
    error_before: float
    error_after: float
    log_loss_before: float
    log_loss_after: float
    test_error_before: float | None = None
    test_error_after: float | None = None
    own_temperature: float = 1.0

    @property
    def temperature(self) -> float:
        """What logits were divided by; vector scaling starts from it."""
        return self.scaling.temperature

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)[1:]}
        return {"method": self.scaling.method, "temperature": self.temperature, **values}

    def __str__(self) -> str:
        before, after = _percent(self.error_before), _percent(self.error_after)
        sentence = (
            f"Calibrated by {self._how()}{self._after()}: calibration error {before} before "
            f"and {after} after on {self.n:,} out-of-fold predictions"
        )
        if self.test_error_before is None or self.test_error_after is None:
            return f"{sentence}."
        before, after = _percent(self.test_error_before), _percent(self.test_error_after)
        return f"{sentence}, {before} and {after} on the test part."

    def _how(self) -> str:
        if self.scaling.method == "temperature":
            return f"temperature {self.temperature:.3g}"
        return (
            f"a factor and a bias for each class (around temperature {self.temperature:.3g}; "
            f"{self.changed:,} answers changed)"
        )

    def _after(self) -> str:
        if self.own_temperature == 1:
            return ""
        return f", after the head's own of {self.own_temperature:.3g} by folds"


def calibrate(head: ProbeBase, judged: OutOfFold, method: str = "temperature") -> Calibration:
    """Fit a scaling on out-of-fold predictions of `head`, and fold it into the head.

    Raises HeadError without predictions, and for a head without logits.
    """
    judged = judged.spread(max(1, JUDGED_VALUES // len(judged.classes)))
    own = getattr(head, "temperature_", 1.0)
    scaling = fit_scaling(judged, method)
    scaling.fold_into(head)
    classes = [str(name) for name in judged.classes]
    before = evaluate(judged.labels, judged.as_they_come(judged.probabilities), classes)
    scaled = scaling.apply(judged.probabilities)
    after = evaluate(judged.labels, judged.as_they_come(scaled), classes)
    changed = scaled.argmax(axis=1) != judged.probabilities.argmax(axis=1)
    return Calibration(
        scaling=scaling,
        n=len(judged),
        changed=int(changed.sum()),
        error_before=before.expected_calibration_error,
        error_after=after.expected_calibration_error,
        log_loss_before=before.log_loss,
        log_loss_after=after.log_loss,
        own_temperature=own,
    )


def tested(
    calibration: Calibration,
    labels: Sequence[str],
    probabilities: Float64s,
    judged: OutOfFold,
) -> Calibration:
    """The same with its errors on the test part.

    `probabilities` `(n, k)` are those of the calibrated head, `judged` what it was calibrated on.
    """
    classes = [str(name) for name in judged.classes]
    uncalibrated = calibration.scaling.undo(probabilities)
    before = evaluate(labels, judged.as_they_come(uncalibrated), classes)
    after = evaluate(labels, judged.as_they_come(probabilities), classes)
    return replace(
        calibration,
        test_error_before=before.expected_calibration_error,
        test_error_after=after.expected_calibration_error,
    )


@dataclass(frozen=True, slots=True)
class SetFigures:
    """Prediction sets on labelled images.

    `coverage` is what was asked for, `covered` the share of images whose set holds the label, with
    its 95 % interval (Wilson), `mean_size` the labels of a set, `single` the share of sets of one;
    `n` predictions gave the thresholds.
    """

    method: str
    coverage: float
    per_class: bool
    n: int
    covered: float
    covered_interval: Interval
    mean_size: float
    single: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "covered_interval": list(self.covered_interval)}

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.covered_interval)
        return (
            f"Prediction sets for {100 * self.coverage:g} %: {_percent(self.covered)} hold the "
            f"label (95 % interval {low:.1f} to {high:.1f}); {self.mean_size:.2f} labels in the "
            f"mean, {_percent(self.single)} of the sets have one."
        )


def judge_sets(
    sets: PredictionSets, labels: Sequence[str], probabilities: Float64s, classes: Sequence[str]
) -> SetFigures:
    """Figures of the sets of `probabilities` `(n, k)`, columns in the order of `classes`."""
    code = {label: column for column, label in enumerate(classes)}
    members = sets.members(probabilities)
    sizes = members.sum(axis=1)
    covered = sum(bool(row[code[label]]) for row, label in zip(members, labels, strict=True))
    return SetFigures(
        method=sets.method,
        coverage=sets.coverage,
        per_class=len(sets.thresholds) > 1,
        n=sets.n,
        covered=covered / len(labels),
        covered_interval=wilson(covered, len(labels)),
        mean_size=float(sizes.mean()),
        single=float((sizes == 1).mean()),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
