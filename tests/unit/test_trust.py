"""Figures of flags and of unanswered images, by hand."""

from __future__ import annotations

import numpy as np

from dinoprobe.evaluation import wilson
from dinoprobe.heads import Abstention, Novelty
from dinoprobe.trust import judge_abstention, judge_novelty

NOVELTY = Novelty("knn", 0.3, 0.01, 500, {})
RULE = Abstention("probability", 0.8234, 0.95, 0.7, 0.96, 500)


def bools(*values):
    return np.array(values, dtype=bool)


def test_flags_by_hand():
    found = judge_novelty(NOVELTY, bools(1, 1, 0, 0, 0), bools(1, 0, 1, 1, 0))
    assert (found.flagged, found.flagged_share, found.accuracy_flagged) == (2, 0.4, 0.5)
    assert found.accuracy_others == 2 / 3
    assert str(found) == (
        "Unlike the training images: 2 images are flagged, 40.0 % (of images like those: about "
        "1.0 %); 50.0 % of them are right, 66.7 % of the others."
    )
    assert found.to_dict()["method"] == "knn"


def test_none_and_all_are_flagged():
    none = judge_novelty(NOVELTY, bools(0, 0), bools(1, 0))
    assert (none.accuracy_flagged, none.accuracy_others) == (None, 0.5)
    assert str(none).endswith("0 images are flagged, 0.0 % (of images like those: about 1.0 %).")
    every = judge_novelty(NOVELTY, bools(1, 1), bools(1, 0))
    assert (every.accuracy_flagged, every.accuracy_others) == (0.5, None)
    assert str(every).endswith("; 50.0 % of them are right.")


def test_answers_by_hand():
    found = judge_abstention(RULE, bools(1, 1, 1, 1, 0), bools(1, 1, 1, 0, 0))
    assert (found.answered, found.coverage, found.accuracy) == (4, 0.8, 0.75)
    assert found.accuracy_interval == wilson(3, 4)
    assert found.to_dict()["accuracy_interval"] == list(wilson(3, 4))
    assert str(found).startswith(
        "Target accuracy 95 %: an answer where the best probability is 0.8234 or more, 70.0 % of "
        "500 out-of-fold predictions, 96.0 % right; here 4 images (80.0 %), 75.0 % right (95 %"
    )


def test_nothing_is_answered():
    found = judge_abstention(RULE, bools(0, 0), bools(1, 0))
    assert (found.answered, found.accuracy, found.accuracy_interval) == (0, None, None)
    assert found.to_dict()["accuracy_interval"] is None
    assert str(found).endswith("here none is answered.")
