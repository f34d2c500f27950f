"""Figures as a short table on the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.cli.console import Console
    from dinoprobe.evaluation import Evaluation
    from dinoprobe.learning_curve import LearningCurve
    from dinoprobe.outcome import Context, Outcome


SHOWN_SHARE = 0.9


def percent(value: float | None) -> str:
    """`94.2 %`, or a dash where there is no value."""
    return "-" if value is None else f"{100 * value:.1f} %"


def show_outcome(console: Console, folder: Path, outcome: Outcome, context: Context) -> None:
    """The table of figures, the worst confusions, and where the files are."""
    evaluation = outcome.evaluation
    console.line()
    console.table(_figures(evaluation), right=[1])
    figures = (outcome.without(context.leaks), context.calibration)
    told = [str(found) for found in figures if found is not None]
    told += outcome.sentences
    if told:
        console.line()
    for sentence in told:
        console.line(sentence)
    _show_confusions(console, evaluation)
    console.line()
    if context.failures:
        count = len(context.failures)
        console.line(f"{_images(count)} could not be used: {folder / 'failures.csv'}")
    console.line(f"Report: {folder / 'report.html'}")


def show_curve(console: Console, curve: LearningCurve) -> None:
    """Accuracy by the number of images, and what twice as many would bring."""
    console.line()
    seeds = f"{curve.folds} folds of the training part, {curve.seeds} draws each"
    console.line(f"Learning curve ({seeds}; the test part is not touched)")
    rows = [
        (f"{p.n:,}", percent(p.accuracy), f"{100 * p.interval[0]:.1f} to {100 * p.interval[1]:.1f}")
        for p in curve.points
    ]
    console.table(rows, right=[0, 1])
    console.line(str(curve))
    console.line()


def _figures(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    low, high = evaluation.accuracy_interval
    right = round(evaluation.accuracy * evaluation.n)
    detail = f"95 % interval {100 * low:.1f} to {100 * high:.1f}; {right:,} of {evaluation.n:,}"
    rows = [
        ("accuracy", percent(evaluation.accuracy), detail),
        ("balanced accuracy", percent(evaluation.balanced_accuracy), "mean recall of the classes"),
    ]
    if evaluation.top5_accuracy is not None:
        rows.append(("top-5 accuracy", percent(evaluation.top5_accuracy), ""))
    precision, recall = percent(evaluation.macro_precision), percent(evaluation.macro_recall)
    detail = f"macro precision {precision}, recall {recall}"
    rows += [
        ("macro F1", percent(evaluation.macro_f1), detail),
        ("log loss", f"{evaluation.log_loss:.3f}", ""),
        ("calibration error", percent(evaluation.expected_calibration_error), "expected, 15 bins"),
    ]
    if (point := evaluation.answering(SHOWN_SHARE)) is not None:
        name = f"accuracy, {100 * point.coverage:.0f} % kept"
        below = math.floor(1000 * point.threshold) / 1000
        detail = f"the surest; dinoprobe predict --abstain-below {below:g}"
        rows.append((name, percent(1 - point.risk), detail))
    return rows


def _show_confusions(console: Console, evaluation: Evaluation) -> None:
    worst = evaluation.worst_confusions[:3]
    if worst:
        console.line()
        console.line("Most frequent confusions")
        rows = [(pair.true, "taken for", pair.predicted, f"{pair.count}") for pair in worst]
        console.table(rows, right=[3])


def _images(count: int) -> str:
    return f"{count:,} image" + ("" if count == 1 else "s")
