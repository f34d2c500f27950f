"""k nearest neighbours among more rows than are compared one by one: Lance's IVF index, measured.

Rows of length 1 lie in a Lance table by which of about sqrt(n) centres they are nearest to (IVF
with whole vectors), and a query looks at the rows of some centres only. What that misses depends on
the features, so it is measured before anything is answered: neighbours of a sample of rows are
compared with the exact ones, one half of the sample chooses how many centres are looked at, the
other half says what share of the neighbours is found then. Below `least_recall` the index is
refused. On features without clusters no number of centres helps (docs/log.md).
"""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np

from dinoprobe.errors import ConfigurationError, FormatError, HeadError, NonFiniteError
from dinoprobe.files import read_json, write_json
from dinoprobe.heads.nearest import Nearest, nearest
from dinoprobe.heads.neighbors import DEFAULT_K, normalized, vote
from dinoprobe.processor import usable_cores
from dinoprobe.store.commits import load_lance, reported

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    Float32s = npt.NDArray[np.float32]
    Float64s = npt.NDArray[np.float64]
    Blocks = Iterable[tuple[npt.NDArray[np.floating], Sequence[str]]]

SCHEMA = "dinoprobe.neighbours/1"
LEAST_RECALL = 0.95
LEAST_ROWS = 1024
"""Fewer are compared one by one in no time."""
SAMPLE_ROWS = 400
MOST_SHARE = 0.25
"""Of the centres that are looked at: beyond, comparing with all rows is as quick."""
READ_ROWS = 8192
EQUAL = 1e-6
"""Similarities that differ by less are equal: of copies of a row either may be found."""


@dataclass(frozen=True, slots=True)
class Recall:
    """`share` of the `k` nearest of `queries` rows that is found where `probes` of `partitions`
    centres are looked at.
    """

    k: int
    share: float
    queries: int
    probes: int
    partitions: int


@final
class NeighbourIndex:
    """Rows with labels in a folder on disk, found by cosine similarity. See `build` and `open`."""

    def __init__(
        self, folder: Path, recall: Recall, classes: Sequence[str], dimension: int
    ) -> None:
        self.folder, self.recall = folder, recall
        self.classes, self.dimension = tuple(classes), dimension
        self._table = _open(folder)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        blocks: Blocks,
        *,
        k: int = DEFAULT_K,
        least_recall: float = LEAST_RECALL,
        seed: int = 0,
    ) -> Self:
        """Write rows that come block by block, index them, and measure what is found.

        Raises HeadError where less than `least_recall` of the k nearest rows is found, and for
        fewer than 1,024 rows; NonFiniteError, ConfigurationError for a folder that is not empty,
        StoreError. Nothing is left then.
        """
        path = Path(folder)
        if "://" in str(folder) or (path.exists() and any(path.iterdir())):
            raise ConfigurationError(
                f"{folder}: not an empty or new folder on this machine, where an index is built. "
                "Name another one."
            )
        try:
            return cls._built(path, blocks, k, least_recall, seed)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    @classmethod
    def _built(cls, path: Path, blocks: Blocks, k: int, least_recall: float, seed: int) -> Self:
        path.mkdir(parents=True, exist_ok=True)
        classes: set[str] = set()
        with reported(str(path)):
            count, dimension = _write(path, blocks, classes)
            if count < max(LEAST_ROWS, k + 1):
                raise HeadError(
                    f"{count:,} rows are too few for an index; expected {max(LEAST_ROWS, k + 1):,} "
                    "or more. Use KNNProbe, which compares with all of them."
                )
            partitions = math.isqrt(count)
            _open(path).create_index(
                "vector", "IVF_FLAT", metric="cosine", num_partitions=partitions
            )
        index = cls(path, Recall(k, 0.0, 0, 1, partitions), sorted(classes), dimension)
        index.recall = index.measure(k, least_recall, seed)
        if index.recall.share < least_recall:
            raise HeadError(
                f"{path}: the index finds a share of {index.recall.share:.3f} of the {k} nearest "
                f"rows where it looks at {index.recall.probes} of {partitions} centres; expected "
                f"{least_recall:g}. These features have too few clusters for it: use KNNProbe, "
                "which is exact, or a smaller least_recall."
            )
        write_json(
            path / "index.json",
            {
                "schema": SCHEMA,
                "recall": asdict(index.recall),
                "classes": list(index.classes),
                "dimension": dimension,
                "rows": count,
            },
        )
        return index

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """An index that was built. Raises FormatError where it is damaged or none."""
        path = Path(folder)
        try:
            found = read_json(path / "index.json")
            if found["schema"] != SCHEMA:
                raise ValueError(f"schema {found['schema']}")
            recall = Recall(**found["recall"])
            return cls(path, recall, found["classes"], int(found["dimension"]))
        except (TypeError, KeyError, ValueError, OSError) as error:
            msg = f"{path}: no index that was built ({error}). Expected index.json. Build it again."
            raise FormatError(msg) from error

    def __len__(self) -> int:
        with reported(str(self.folder)):
            return int(self._table.count_rows())

    def nearest(self, X: npt.NDArray[np.floating], k: int) -> tuple[Nearest, npt.NDArray[Any]]:
        """Similarities and row numbers `(m, k)` of about the nearest, best first, and their labels.

        Raises ConfigurationError for a k beyond the one that was measured.
        """
        if not 1 <= k <= self.recall.k:
            raise ConfigurationError(
                f"k is {k}; expected 1 to {self.recall.k}, for which this index was measured. "
                "Build it with a larger k."
            )
        return self._search(self._queries(X), k, self.recall.probes)

    def predict_proba(
        self, X: npt.NDArray[np.floating], *, k: int = DEFAULT_K, temperature: float = 0.07
    ) -> Float64s:
        """Shares of the weighted vote `(m, classes)`, as `KNNProbe` gives them."""
        found, labels = self.nearest(X, k)
        votes = vote(
            found.similarity, np.searchsorted(self.classes, labels), len(self.classes), temperature
        )
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))

    def measure(self, k: int, least_recall: float = LEAST_RECALL, seed: int = 0) -> Recall:
        """The fewest probes, doubled from 1, that half of a sample needs, judged by the other half.

        At most `MOST_SHARE` of the centres: the recall is then what that finds.
        """
        rows = np.random.default_rng(seed).permutation(len(self))[:SAMPLE_ROWS]
        with reported(str(self.folder)):
            queries = _vectors(self._table.take(rows.tolist(), columns=["vector"]), self.dimension)
        exact = self._exact(queries, k + 1)[:, -1:]  # a row is its own neighbour
        half, most = len(rows) // 2, max(1, int(MOST_SHARE * self.recall.partitions))
        probes = 1
        while True:
            if self._share(queries[:half], exact[:half], k, probes) >= least_recall:
                break
            if probes >= most:
                break
            probes = min(2 * probes, most)
        share = self._share(queries[half:], exact[half:], k, probes)
        return Recall(k, share, len(rows) - half, probes, self.recall.partitions)

    def _share(self, queries: Float32s, least: Float64s, k: int, probes: int) -> float:
        """How much of the k nearest beside the row itself is found."""
        found, _ = self._search(queries, k + 1, probes)
        return float(((found.similarity >= least - EQUAL).sum(axis=1) - 1).clip(0).mean() / k)

    def _exact(self, queries: Float32s, k: int) -> Float64s:
        """Similarities `(m, k)` of the nearest, best first, by comparing with all rows."""
        best = np.full((len(queries), k), -np.inf)
        with reported(str(self.folder)):
            for batch in self._table.to_batches(columns=["vector"], batch_size=READ_ROWS):
                rows = _vectors(batch, self.dimension)
                found = nearest(queries, rows, min(k, len(rows))).similarity
                best = -np.sort(-np.concatenate([best, found], axis=1), axis=1)[:, :k]
        return best

    def _queries(self, X: npt.NDArray[np.floating]) -> Float32s:
        if X.ndim != 2 or X.shape[1] != self.dimension:
            raise HeadError(
                f"Queries have the shape {X.shape}; expected rows of {self.dimension} features, as "
                "those of the index."
            )
        return _unit(X, "A query")

    def _search(self, queries: Float32s, k: int, probes: int) -> tuple[Nearest, npt.NDArray[Any]]:
        similarity = np.full((len(queries), k), -np.inf)
        rows, labels = np.zeros((len(queries), k), np.intp), np.full((len(queries), k), "", object)
        asked = {"column": "vector", "k": k, "metric": "cosine", "nprobes": probes}

        def search(query: int) -> None:
            table = self._table.to_table(
                columns=["row", "label", "_distance"], nearest={**asked, "q": queries[query]}
            )
            count = table.num_rows  # fewer where the centres have not as many
            similarity[query, :count] = 1 - table["_distance"].to_numpy()
            rows[query, :count] = table["row"].to_numpy()
            labels[query, :count] = table["label"].to_pylist()

        with reported(str(self.folder)), ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(search, range(len(queries))))
        labels[labels == ""] = self.classes[0] if self.classes else ""
        return Nearest(similarity, rows), labels


def _open(folder: Path) -> Any:
    with reported(str(folder)):
        return load_lance().dataset(str(folder / "rows.lance"))


def _write(folder: Path, blocks: Blocks, classes: set[str]) -> tuple[int, int]:
    """The table of all rows; their number and length."""
    import pyarrow as pa

    found = iter(blocks)
    first = next(found, None)
    if first is None:
        raise HeadError("There are no blocks of features; expected at least one.")
    dimension, count = np.shape(first[0])[-1], 0
    failed: BaseException | None = None
    fields = [("vector", pa.list_(pa.float32(), dimension)), ("label", pa.string())]
    schema = pa.schema([*fields, ("row", pa.int64())])

    def batches() -> Iterator[Any]:
        nonlocal failed
        try:
            yield from checked()
        except BaseException as error:
            failed = error  # Arrow makes a text of it
            raise

    def checked() -> Iterator[Any]:
        nonlocal count
        for X, y in chain([first], found):
            if np.shape(X) != (len(y), dimension):
                raise HeadError(
                    f"A block has features of shape {np.shape(X)} and {len(y)} labels; expected "
                    f"({len(y)}, {dimension})."
                )
            values = pa.array(_unit(np.asarray(X), f"A block from row {count}").ravel())
            classes.update(y)
            yield pa.record_batch(
                [
                    pa.FixedSizeListArray.from_arrays(values, dimension),
                    pa.array([str(label) for label in y]),
                    pa.array(np.arange(count, count + len(y))),
                ],
                schema=schema,
            )
            count += len(y)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    try:
        load_lance().write_dataset(reader, str(folder / "rows.lance"))
    except OSError:
        if failed is not None:
            raise failed from None
        raise
    return count, dimension


def _unit(X: npt.NDArray[np.floating], what: str) -> Float32s:
    if not np.isfinite(X).all():
        raise NonFiniteError(f"{what} holds NaN or inf; expected finite features.")
    return normalized(X)


def _vectors(table: Any, dimension: int) -> Float32s:
    column = table.column("vector")
    flat = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    values = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return np.array(values, dtype=np.float32)  # Arrow's own can not be written to, as torch wants
