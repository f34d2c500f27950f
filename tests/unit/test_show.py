"""The lines of figures on the terminal."""

from __future__ import annotations

import numpy as np

from dinoprobe.cli.show import _figures
from dinoprobe.evaluation import evaluate


def test_the_threshold_that_is_shown_keeps_what_it_says() -> None:
    confidence = np.linspace(0.5, 0.99, 50) + 0.0009
    P = np.stack([confidence, 1 - confidence], axis=1)
    evaluation = evaluate(["b"] * 5 + ["a"] * 45, P, ["a", "b"])
    name, accuracy, detail = _figures(evaluation)[-1]
    assert (name, accuracy) == ("accuracy, 90 % kept", "100.0 %")
    shown = float(detail.rsplit(" ", 1)[1])
    assert (confidence >= shown).mean() == 0.9


def test_nothing_is_shown_where_all_are_equally_sure() -> None:
    evaluation = evaluate(["a", "b"], [[0.9, 0.1], [0.9, 0.1]], ["a", "b"])
    assert not any("kept" in row[0] for row in _figures(evaluation))
