"""Features as one file for other programs: .npy, .safetensors or .parquet, chosen by the suffix.

Each file is whole or absent. `.npy` opens everywhere but holds only numbers, so names and labels go
into a .csv beside it; `.safetensors` holds all in one file and loads at disk speed; `.parquet` is
for tables and takes 5 times as long to write.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ConfigurationError
from dinoprobe.files import atomic_writer, save_tensors, to_json, valid_text, write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from dinoprobe.types import Features


def export_features(features: Features, path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write `features` in the format that the suffix of `path` names; the files written.

    Raises ConfigurationError for another suffix, WriteError where the disk refuses.
    """
    target = Path(path)
    return writer_for(target)(features, target)


def writer_for(path: Path) -> Callable[[Features, Path], tuple[Path, ...]]:
    """The writer for a suffix: ask it before a long run. Raises ConfigurationError."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ConfigurationError(
            f"{path}: no format for features is called {path.suffix or 'nothing'!r}. "
            f"Expected one of {', '.join(_WRITERS)}. Choose another file name."
        )
    return writer


def _write_npy(features: Features, path: Path) -> tuple[Path, ...]:
    """`X` alone, with the rows' names in `<name>.npy.csv`, which comes first."""
    import numpy as np

    table = path.with_name(f"{path.name}.csv")
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("key", "label", "split", "group", "content_hash"))
    rows.writerows(zip(*_columns(features).values(), strict=True))
    write_atomic(table, text.getvalue().encode("utf-8", "backslashreplace"))
    with atomic_writer(path, size_bytes=features.X.nbytes) as file:
        np.save(file, features.X, allow_pickle=False)
    return path, table


def _write_safetensors(features: Features, path: Path) -> tuple[Path, ...]:
    """`X` with keys, labels, splits, groups, hashes and classes as JSON in the metadata."""
    values: dict[str, Any] = _columns(features) | {"classes": list(features.classes)}
    metadata = {name: to_json(value).decode() for name, value in values.items()}
    metadata["fingerprint"] = features.fingerprint
    save_tensors(path, {"X": features.X}, metadata)
    return (path,)


def _write_parquet(features: Features, path: Path) -> tuple[Path, ...]:
    """One row an image: key, label, split, group, content_hash, vector."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        name: pa.array([valid_text(value) for value in values], pa.string())
        for name, values in _columns(features).items()
    }
    columns["vector"] = pa.FixedSizeListArray.from_arrays(
        pa.array(features.X.ravel()), features.X.shape[1]
    )
    described = {
        "dinoprobe.fingerprint": features.fingerprint,
        "dinoprobe.classes": to_json(list(features.classes)),
    }
    table = pa.table(columns).replace_schema_metadata(described)
    with atomic_writer(path, size_bytes=features.X.nbytes) as file:
        pq.write_table(table, file)
    return (path,)


_WRITERS = {".npy": _write_npy, ".safetensors": _write_safetensors, ".parquet": _write_parquet}


def _columns(features: Features) -> dict[str, list[str | None]]:
    return {
        "key": list(features.keys),
        "label": features.y.tolist(),
        "split": list(features.splits),
        "group": list(features.groups),
        "content_hash": list(features.hashes),
    }
