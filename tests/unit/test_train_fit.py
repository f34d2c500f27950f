"""What the recipe says of a head, and how it fixes a head's choice."""

from __future__ import annotations

import numpy as np
import pytest

from dinoprobe.heads import frozen_choice, head_from_name
from dinoprobe.heads.names import HEADS
from dinoprobe.train.fit import chosen, fit_head
from dinoprobe.types import Features

CHOSEN = {
    "linear": set(),
    "logistic": {"strength", "selection"},
    "knn": {"k", "selection"},
    "lda": {"shrinkage", "temperature", "selection"},
    "ridge": {"alpha", "temperature", "selection"},
    "prototype": {"temperature", "selection"},
}


def features() -> Features:
    rng = np.random.default_rng(0)
    codes = np.arange(90) % 3
    X = (2 * rng.normal(size=(3, 6))[codes] + rng.normal(size=(90, 6))).astype(np.float32)
    keys = tuple(str(row) for row in range(90))
    return Features(
        keys=keys,
        X=X,
        y=np.array(["a", "b", "c"], dtype=object)[codes],
        classes=("a", "b", "c"),
        fingerprint="f",
        hashes=keys,
        splits=(None,) * 90,
        groups=(None,) * 90,
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_selects_gets_the_folds_and_keeps_its_choice(name: str) -> None:
    head = head_from_name(name, **({"k": "auto"} if name == "knn" else {}))
    fitted = fit_head(head, features(), np.arange(90) % 4)
    found = chosen(fitted)
    assert set(found) == CHOSEN[name]
    assert "given folds" in found.get("selection", "given folds")  # linear selects nothing
    copy = frozen_choice(fitted)
    assert not hasattr(copy, "classes_")
    refitted = copy.fit(features().X, features().y)
    assert getattr(refitted, "selection_", "given") == "given"
    np.testing.assert_allclose(
        refitted.predict_proba(features().X), fitted.predict_proba(features().X), atol=1e-9
    )
