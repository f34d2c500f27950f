"""A multinomial problem made ready for any strength: rows by chunks, in their principal axes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dinoprobe.heads.axes import BLOCK_ROWS, principal_axes, standardization
from dinoprobe.heads.rows import Chunk, Lanes, Standardized, chunk_bounds, coarse_dtype
from dinoprobe.heads.threads import one_torch_thread
from dinoprobe.mapped import folder_of, mapped
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from dinoprobe.heads.base import Codes, Float64s

    Floats = npt.NDArray[np.floating]

SPANNED = 1e-12
"""Share of the largest variance from which a direction is kept: what a weak penalty can still use,
also of features that are not standardised, is far above the rounding of float64."""
SMALL_WORK = 2**26
"""Rows times axes times classes up to which everything is float64: there it costs little."""


@dataclass(slots=True)
class Problem:
    """Rows in principal axes, and the way back to features as they came.

    `total` is the sum of the rows' weights, their number without weights; `variances` `(r,)` are
    those of the axes, `axes` `(d, r)` take standardised features to them.
    """

    lanes: Lanes
    class_count: int
    total: float
    variances: Tensor
    axes: Tensor
    mean: Float64s
    scale: Float64s
    start: Tensor
    coarse: torch.dtype
    is_exact: bool


def prepare(
    X: Floats,
    codes: Codes,
    class_count: int,
    *,
    rows: Codes | None = None,
    weights: Float64s | None = None,
    standardize: bool = True,
    device: str = "cpu",
    threads: int | None = None,
) -> Problem:
    """The problem of these rows of X (all without `rows`), with the codes and weights of them.

    Without `standardize` features are centred alone, which a free intercept makes up for.
    Wants `class_count` * 8 bytes a row beside the rows kept: 2 bytes a value in bfloat16, 4 in
    float32, 8 in small problems; in files where X is in one.
    """
    rows = np.arange(len(X)) if rows is None else rows
    place, d = torch.device(device), X.shape[1]
    mean, scale = standardization(X, rows, weights)
    scale = scale if standardize else np.ones_like(scale)
    source = Standardized(X, rows, mean, scale)
    wide = len(rows) < d
    small = len(rows) * min(d, len(rows)) * class_count <= SMALL_WORK
    coarse = torch.float32 if wide else coarse_dtype(place)
    dtype = torch.float64 if small else coarse
    points = torch.float64 if small else torch.float32
    bounds = chunk_bounds(len(rows), class_count, place)
    workers = threads or usable_cores()
    with one_torch_thread():
        variances, axes = _axes(source, weights, workers, is_small=small or wide)
    counts = np.bincount(codes, weights=weights, minlength=class_count)

    def chunk(bound: tuple[int, int]) -> Chunk:
        def block() -> Tensor:
            return torch.from_numpy(source.block(*bound)).to(place, points)

        part = slice(*bound)
        rotated = block().to(dtype) @ rotation
        places = None
        if kept is not None and scores is not None:
            rotated = kept[part].copy_(rotated)
            size = 2 * class_count
            places = scores[size * bound[0] : size * bound[1]].view(2, class_count, -1)
        return Chunk(
            kept=rotated,
            codes=torch.from_numpy(codes[part]).to(place)[None],
            weights=None if weights is None else _row(weights[part], place, points),
            fresh=None if dtype == points else block,
            places=places,
        )

    rotation = axes.to(place, dtype)
    folder = folder_of(X) if place.type == "cpu" else None
    kept = scores = None
    if folder is not None:
        kept = _in_file((len(rows), axes.shape[1]), dtype, folder)
        scores = _in_file((2 * class_count * len(rows),), points, folder)
    with one_torch_thread(), ThreadPoolExecutor(workers) as pool:
        chunks = list(pool.map(chunk, bounds))
    start = torch.zeros((class_count, axes.shape[1] + 1), dtype=points, device=place)
    frequencies = np.log(np.maximum(counts, counts[counts > 0].min()) / counts.sum())
    start[:, -1] = torch.from_numpy(frequencies - frequencies.mean()).to(place, points)
    return Problem(
        lanes=Lanes(chunks, workers),
        class_count=class_count,
        total=float(counts.sum()),
        variances=variances.to(place, points),
        axes=axes.to(place, points),
        mean=mean,
        scale=scale,
        start=start,
        coarse=dtype,
        is_exact=dtype == points,
    )


def _in_file(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """A tensor in a file."""
    numpy_dtype = np.int16 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(mapped(shape, numpy_dtype, folder)).view(dtype)


def _axes(
    source: Standardized, weights: Float64s | None, workers: int, *, is_small: bool
) -> tuple[Tensor, Tensor]:
    """Variances `(r,)` and orthonormal axes `(d, r)` of the rows."""
    if is_small:
        Z = source.block(0, len(source))
        if weights is not None:
            Z *= np.sqrt(weights * len(weights) / weights.sum())[:, None]
        variances, axes = principal_axes(Z, tolerance=SPANNED)
        return torch.from_numpy(variances), torch.from_numpy(axes)
    found = torch.linalg.eigh(_gram(source, weights, workers))
    return found.eigenvalues.clamp(min=0), found.eigenvectors


def _row(values: npt.NDArray[np.floating], place: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(values).to(place, dtype)[None]


def _gram(source: Standardized, weights: Float64s | None, workers: int) -> Tensor:
    """Covariance `(d, d)` of the rows, by coarse products: good enough to precondition."""
    dtype = coarse_dtype(torch.device("cpu"))
    bounds = [(start, start + BLOCK_ROWS) for start in range(0, len(source), BLOCK_ROWS)]

    def product(bound: tuple[int, int]) -> Tensor:
        block = torch.from_numpy(source.block(*bound)).float()
        if weights is not None:
            block *= torch.from_numpy(np.sqrt(weights[slice(*bound)])[:, None]).float()
        rows = block.to(dtype)
        return (rows.T @ rows).float()

    total = torch.zeros((source.X.shape[1],) * 2)
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(product, bounds):
            total += found
    return total / (len(source) if weights is None else weights.sum())
