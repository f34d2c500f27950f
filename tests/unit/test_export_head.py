"""The head alone, read by the very lines that stand beside it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.checkpoints import save_vit

from dinoprobe.classifier import ImageClassifier
from dinoprobe.encoder import Encoder
from dinoprobe.errors import MismatchError
from dinoprobe.export import export, head_file
from dinoprobe.heads import LogisticProbe, MultiLabelProbe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.from_pretrained(str(save_vit(tmp_path_factory.mktemp("vit"))), device="cpu")


def by_the_readme(folder: Path, X: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What its lines compute, in its folder."""
    np.save(folder / "features.npy", X)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope


@pytest.mark.parametrize("several", [False, True])
def test_ten_lines_of_numpy_predict(
    encoder: Encoder, several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, encoder.dimension)).astype(np.float32)
    head: Any = (
        MultiLabelProbe(C=0.1).fit(X, rng.integers(0, 2, (90, 3)), classes=["a", "c", "b"])
        if several
        else LogisticProbe(C=0.1).fit(X, np.array(["cat", "dog", "猫"] * 30, dtype=object))
    )
    ImageClassifier(encoder, head).save(tmp_path / "c")
    exported = export(tmp_path / "c", "head", out=str(tmp_path / "e"))
    assert exported.path == tmp_path / "e" / "head.safetensors"
    names = {path.name: path.stat().st_size for path in exported.folder.iterdir()}
    assert names.keys() == {"head.safetensors", "head.json", "README.md", "gate.json"}
    assert sum(names.values()) < 10_000
    scope = by_the_readme(exported.folder, X, monkeypatch)
    np.testing.assert_allclose(scope["probabilities"], head.predict_proba(X), atol=1e-5)
    if several:
        sure = head.predict_proba(X) >= head.thresholds_
        assert scope["labels"] == [
            [name for name, is_in in zip("acb", row, strict=True) if is_in] for row in sure
        ]
    else:
        assert scope["labels"] == head.predict(X).tolist()
    report = json.loads((exported.folder / "gate.json").read_text())
    assert report["max_probability_difference"] < 1e-5


def test_a_wrong_weight_is_not_written(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = np.random.default_rng(0).normal(size=(30, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["a", "b"] * 15, dtype=object))
    ImageClassifier(encoder, head).save(tmp_path / "c")
    save = head_file.save_tensors

    def rounded(path: Path, arrays: dict[str, np.ndarray]) -> None:
        save(path, {name: np.round(array, 1) for name, array in arrays.items()})

    monkeypatch.setattr(head_file, "save_tensors", rounded)
    with pytest.raises(MismatchError, match=r"the head export .* Nothing was written"):
        export(tmp_path / "c", "head", out=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists()
