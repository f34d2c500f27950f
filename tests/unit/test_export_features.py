import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from dinoprobe.errors import ConfigurationError
from dinoprobe.export_features import export_features
from dinoprobe.files import WriteError
from dinoprobe.types import Features

HASHES = ("aa" * 32, "bb" * 32, "cc" * 32)


@pytest.fixture
def features() -> Features:
    return Features(
        keys=("a,1.jpg", "é.jpg", "c.jpg"),
        X=np.arange(12, dtype=np.float32).reshape(3, 4),
        y=np.asarray(["cat", None, "d\udce9"], dtype=object),
        classes=("cat", "d\udce9"),
        fingerprint="ab" * 16,
        hashes=HASHES,
        splits=("train", None, "test"),
        groups=(None, None, "g"),
    )


def test_npy_with_a_table_beside(features: Features, tmp_path: Path) -> None:
    files = export_features(features, tmp_path / "f.npy")
    assert files == (tmp_path / "f.npy", tmp_path / "f.npy.csv")
    np.testing.assert_array_equal(np.load(files[0], allow_pickle=False), features.X)
    with files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == list(features.keys)
    assert [row["label"] for row in rows] == ["cat", "", "d\\udce9"]
    assert [row["split"] for row in rows] == ["train", "", "test"]
    assert [row["content_hash"] for row in rows] == list(HASHES)


def test_safetensors_holds_all_in_one_file(features: Features, tmp_path: Path) -> None:
    export_features(features, str(tmp_path / "f.SAFETENSORS"))
    with safe_open(tmp_path / "f.SAFETENSORS", framework="np") as file:
        metadata = file.metadata()
        np.testing.assert_array_equal(file.get_tensor("X"), features.X)
    assert metadata["fingerprint"] == "ab" * 16
    assert json.loads(metadata["key"]) == list(features.keys)
    assert json.loads(metadata["label"]) == ["cat", None, "d\udce9"]
    assert json.loads(metadata["classes"]) == ["cat", "d\udce9"]


def test_parquet_is_a_table(features: Features, tmp_path: Path) -> None:
    export_features(features, tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["key", "label", "split", "group", "content_hash", "vector"]
    assert table.column("label").to_pylist() == ["cat", None, "d\\udce9"]
    assert table.column("vector").to_pylist() == features.X.tolist()
    assert table.schema.metadata[b"dinoprobe.fingerprint"] == b"ab" * 16


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_no_rows_can_be_written_too(features: Features, tmp_path: Path, suffix: str) -> None:
    empty = features.select(np.empty(0, dtype=np.intp))
    for path in export_features(empty, tmp_path / f"f{suffix}"):
        assert path.stat().st_size > 0


@pytest.mark.parametrize("name", ["f.csv", "f", "f.npz"])
def test_another_suffix_is_refused(features: Features, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected one of \.npy, \.safetensors, \.parq"):
        export_features(features, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_a_missing_folder_is_a_write_error(features: Features, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(WriteError, match="can not be written"):
        export_features(features, tmp_path / "nowhere" / f"f{suffix}")
