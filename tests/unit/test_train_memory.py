"""When features leave memory, what is refused then, and which rows choose."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.test_train_calibration import config, features

from dinoprobe.errors import ConfigurationError
from dinoprobe.files import WriteError
from dinoprobe.mapped import mapped
from dinoprobe.partition import partition
from dinoprobe.train import TrainConfig, memory
from dinoprobe.train.fit import fit
from dinoprobe.train.memory import held_out, within_memory

if TYPE_CHECKING:
    from pathlib import Path

    from dinoprobe.types import Features

ENCODER: Any = SimpleNamespace(dimension=100, pooling=None)


def asked(said: list[str], **options: Any) -> tuple[TrainConfig, Path | None]:
    return within_memory(config(**options), 10_000, ENCODER, said.append)


def test_features_that_fit_stay_in_memory(tmp_path: Path) -> None:
    said: list[str] = []
    given, folder = asked(said, memory=16_000_000, out=str(tmp_path / "run"))
    assert (given.memory, folder, said) == (16_000_000, None, [])


def test_more_go_to_files_beside_the_run_by_a_sentence(tmp_path: Path) -> None:
    said: list[str] = []
    given, folder = asked(said, memory=15_999_999, out=str(tmp_path / "new" / "run"))
    assert (given.memory, folder) == (15_999_999, tmp_path / "new")
    assert "Up to 16.0 MB for the features of 10,000 images are more than 16.0 MB" in said[0]
    assert str(folder) in said[0]


def test_half_of_what_is_free_is_the_limit_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 32_000_000}
    monkeypatch.setattr(memory, "free_bytes", lambda _: free["bytes"])
    said: list[str] = []
    out = str(tmp_path / "run")
    assert asked(said, out=out) == (config(out=out), None)
    free["bytes"] -= 2
    given, folder = asked(said, out=out)
    assert (given.memory, folder) == (15_999_999, tmp_path)
    free["bytes"] = None  # type: ignore[assignment]
    assert asked([], out=out)[1] is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head": "knn"}, "head 'knn' holds them all. Use --head lda or ridge"),
        ({"protocol": "dinov2-linear"}, "head 'linear-grid' holds"),
        ({"head": "linear", "on_the_fly": True}, "Leave out --on-the-fly"),
        ({"learning_curve": True}, "Leave out --learning-curve"),
    ],
)
def test_what_needs_memory_is_refused_under_a_limit_and_warned_of_else(
    options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    with pytest.raises(ConfigurationError, match=reason):
        asked([], memory=1000, out=out, **options)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1_000_000)
    said: list[str] = []
    assert asked(said, out=out, **options)[1] is None
    assert "may not fit into memory" in said[0]
    assert reason in said[0]


def test_a_place_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"Give another --out"):
        asked([], memory=1000, out=str(tmp_path / "file" / "run"))


def labelled(n: int, groups: int) -> Features:
    random = np.random.default_rng(0)
    codes = random.integers(0, 3, n)
    X = random.normal(size=(3, 4))[codes] + random.normal(size=(n, 4))
    y = np.array([f"class {code}" for code in codes], dtype=object)
    found = features(X.astype(np.float32), y)
    return replace(found, groups=tuple(f"{code}-{i % groups}" for i, code in enumerate(codes)))


def test_one_part_is_held_out_with_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "JUDGED_ROWS", 100)
    whole = labelled(2000, 150)
    near = [None] * 2000
    for size, least, most in ((10**9, 300, 500), (1, 80, 100)):
        folds = held_out(whole, near, seed=0, memory_bytes=size)
        assert set(folds.tolist()) == {-1, 0}
        assert least <= np.count_nonzero(folds == 0) <= most
        names = np.array(whole.groups)
        assert not set(names[folds == 0]) & set(names[folds < 0])


def test_the_fit_chooses_and_calibrates_on_that_part_alone(tmp_path: Path) -> None:
    whole = labelled(900, 300)
    X = mapped(whole.X.shape, np.float32, tmp_path)
    X[:] = whole.X
    parts = partition(replace(whole, X=X), seed=0, test_fraction=0.2)
    training = replace(whole, X=X).select(parts.rows("train"))
    said: list[str] = []
    encoder: Any = None
    found = fit(
        config(head="lda", calibrate="temperature", memory=1),
        encoder, None, training, parts, said.append,  # type: ignore[arg-type]
    )  # fmt: skip
    near = [parts.near[row] for row in parts.rows("train")]
    folds = held_out(training, near, seed=0, memory_bytes=1)
    assert found.judged.rows.tolist() == np.flatnonzero(folds == 0).tolist()
    assert found.head.selection_ == "1 given fold"
    assert found.trust.calibration is not None
    assert found.trust.sets is not None
