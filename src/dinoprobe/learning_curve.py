"""Accuracy against the number of labelled images, and what more of them would bring.

The error falls like a + b n^-c (Cortes et al. 1994; Hestness et al. 2017, equation 1). For each c
of a grid a and b follow in closed form, so that the fit has no start and no local minimum, and a
thousand bootstrap draws of images and seeds are fitted at once: their spread is the interval. Small
training sets leave the law, so that the smallest sizes are dropped until the rest fits. Where it
does not fit, or does not fall, nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads.threads import one_blas_thread

if TYPE_CHECKING:
    import numpy.typing as npt

    from dinoprobe.evaluation import Interval

    Codes = npt.NDArray[np.intp]
    Float64s = npt.NDArray[np.float64]

EXPONENTS = np.linspace(0.05, 2.0, 79)
LEAST_SIZES = 5
"""Three unknowns, and two sizes more to see whether they fit."""
DRAWS = 1000
DRAWN_VALUES = 2**20
"""Draws times images that exist at a time."""
MISFIT = 0.05
"""Chance of so bad a fit under the law, below which the smallest size is left out."""
WIDEST = 0.15
"""An interval of the extrapolated accuracy that is wider says nothing."""
FACTOR = 2
SMALLEST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy out of fold of heads fitted on `n` images, its 95 % interval, and what it came from.

    `deviation` is the standard deviation between the seeds, of which each drew other images.
    """

    n: int
    accuracy: float
    interval: Interval
    deviation: float


@dataclass(frozen=True, slots=True)
class Expected:
    """Accuracy that the law gives at `n` images, with its 95 % interval."""

    n: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Law:
    """error = floor + scale n^-exponent, fitted to the points from `n_from` images on."""

    floor: float
    scale: float
    exponent: float
    n_from: int


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Points by size; a law with what it says of all images and of twice as many, or a refusal."""

    folds: int
    seeds: int
    points: tuple[Point, ...]
    law: Law | None
    now: Expected | None
    doubled: Expected | None
    refusal: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.doubled is None or self.now is None:
            return f"No extrapolation: {self.refusal}."
        return (
            f"With {FACTOR}x the images ({self.doubled.n:,}): {_percent(self.doubled)}, where "
            f"{self.now.n:,} give {_percent(self.now)}."
        )


def _percent(expected: Expected) -> str:
    low, high = (100 * bound for bound in expected.interval)
    return f"{100 * expected.accuracy:.1f} % ({low:.1f} to {high:.1f})"


def summarise(
    sizes: Codes, correct: npt.NDArray[np.bool_], units: Codes, *, n_all: int, folds: int, seed: int
) -> LearningCurve:
    """The curve from answers `(sizes, seeds, rows)`; rows of a unit `(rows,)` are drawn together.

    `n_all` is what twice the images are twice of. Raises ConfigurationError for other shapes.
    """
    if correct.ndim != 3 or correct.shape[0] != len(sizes) or correct.shape[2] != len(units):
        raise ConfigurationError(
            f"answers of the shape {correct.shape} for {len(sizes)} sizes and {len(units)} rows; "
            "expected (sizes, seeds, rows)."
        )
    with one_blas_thread():
        drawn = _bootstrap(correct, units, seed)
    errors = 1 - correct.mean(axis=(1, 2))
    deviation = correct.mean(axis=2).std(axis=1, ddof=1) if correct.shape[1] > 1 else 0 * errors
    points = tuple(
        Point(int(n), float(1 - error), _accuracies(column), float(spread))
        for n, error, column, spread in zip(sizes, errors, drawn.T, deviation, strict=True)
    )
    law, now, doubled, refusal = _extrapolated(sizes, errors, drawn, n_all)
    return LearningCurve(folds, correct.shape[1], points, law, now, doubled, refusal)


def _bootstrap(correct: npt.NDArray[np.bool_], units: Codes, seed: int) -> Float64s:
    """Errors `(draws, sizes)` with units and seeds drawn anew, the same for all sizes."""
    rng = np.random.default_rng(seed)
    _, codes, counts = np.unique(units, return_inverse=True, return_counts=True)
    wrong = np.zeros((*correct.shape[:2], len(counts)))
    for place in np.ndindex(wrong.shape[:2]):
        wrong[place] = np.bincount(codes, ~correct[place], len(counts))
    chances, seeds = np.full(len(counts), 1 / len(counts)), correct.shape[1]
    result = []
    for start in range(0, DRAWS, step := max(1, DRAWN_VALUES // len(counts))):
        times = rng.multinomial(len(counts), chances, size=min(step, DRAWS - start)).T
        errors = wrong @ times / (counts @ times)
        chosen = rng.integers(seeds, size=(seeds, times.shape[1]))
        result.append(errors[:, chosen, np.arange(times.shape[1])].mean(axis=1).T)
    return np.concatenate(result)


def _extrapolated(
    sizes: Codes, errors: Float64s, drawn: Float64s, n_all: int
) -> tuple[Law | None, Expected | None, Expected | None, str | None]:
    refusal = _unfit(sizes, drawn)
    if refusal:
        return None, None, None, refusal
    deviations = np.maximum(drawn.std(axis=0), SMALLEST_DEVIATION)
    x = sizes / n_all
    for start in range(len(sizes) - LEAST_SIZES + 1):
        used = slice(start, None)
        fitted, misfit = fit_laws(x[used], errors[None, used], deviations[used])
        chance = chi2.sf(misfit[0], len(sizes) - start - 3)
        if chance >= MISFIT:
            break
    else:
        return None, None, None, "the points do not follow a power law"
    floor, scale, exponent = fitted[0]
    law = Law(float(floor), float(scale * n_all**exponent), float(exponent), int(sizes[start]))
    draws, _ = fit_laws(x[used], drawn[:, used], deviations[used])
    now, doubled = (_expected(fitted[0], draws, factor, n_all) for factor in (1, FACTOR))
    if doubled.interval[1] - doubled.interval[0] > WIDEST:
        low, high = (100 * bound for bound in doubled.interval)
        return law, None, None, f"it could be anything from {low:.1f} to {high:.1f} %"
    return law, now, doubled, None


def _unfit(sizes: Codes, drawn: Float64s) -> str | None:
    """Why a law can not be told from these points at all."""
    if len(sizes) < LEAST_SIZES:
        return f"{len(sizes)} sizes, and a law needs {LEAST_SIZES}; add images"
    fallen = drawn[:, len(sizes) // 2 - 1] - drawn[:, -1]
    if np.quantile(fallen, 0.025) <= 0:
        n = int(sizes[len(sizes) // 2 - 1])
        return f"from {n:,} to {int(sizes[-1]):,} images the error did not measurably fall"
    return None


def fit_laws(x: Float64s, errors: Float64s, deviations: Float64s) -> tuple[Float64s, Float64s]:
    """Floor, scale and exponent `(m, 3)` of each row of errors `(m, sizes)`, and its misfit `(m,)`.

    The misfit is the sum of squared residuals over `deviations` `(sizes,)`; floor and scale are not
    negative.
    """
    weights = 1 / np.square(deviations)
    best = np.full(len(errors), np.inf)
    found = np.zeros((len(errors), 3))
    for exponent in EXPONENTS:
        falling = x**-exponent
        floor, scale = _line(falling, errors, weights)
        residuals = errors - floor[:, None] - scale[:, None] * falling
        misfit = np.square(residuals) @ weights
        better = misfit < best
        best[better] = misfit[better]
        found[better] = np.column_stack([floor, scale, np.full_like(floor, exponent)])[better]
    return found, best


def _line(falling: Float64s, errors: Float64s, weights: Float64s) -> tuple[Float64s, Float64s]:
    """The best floor and scale `(m,)`, neither of them negative."""
    total = weights.sum()
    mean_x, mean_y = falling @ weights / total, errors @ weights / total
    centred = falling - mean_x
    scale = (errors * weights) @ centred / (weights @ np.square(centred))
    scale = np.maximum(scale, 0)
    floor = mean_y - scale * mean_x
    through_zero = (errors * weights) @ falling / (weights @ np.square(falling))
    return np.maximum(floor, 0), np.where(floor < 0, through_zero, scale)


def _expected(law: Float64s, draws: Float64s, factor: float, n_all: int) -> Expected:
    errors = draws[:, 0] + draws[:, 1] * factor ** -draws[:, 2]
    accuracy = 1 - (law[0] + law[1] * factor ** -law[2])
    return Expected(int(factor * n_all), float(accuracy), _accuracies(errors))


def _accuracies(errors: Float64s) -> Interval:
    """The 95 % interval of the accuracy from draws of the error."""
    high, low = np.quantile(errors, [0.025, 0.975])
    return float(1 - low), float(1 - high)
