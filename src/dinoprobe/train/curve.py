"""The learning curve of a head: fitted again and again on fewer images of the training part.

Each fold in turn is judged by heads that were fitted on a part of the others, so that every image
is judged once for each size and seed, by a head that saw neither it nor what belongs to it; the
test part is not touched. A seed puts the units (groups, identical and nearly identical images) of a
fold's rest in one order, stratified by class, and each size takes the first of them: sizes are
nested. For each size and fold the head chooses its strength anew, on folds of what it has: with one
strength for all, small sizes would profit from a choice that only all images allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.errors import DatasetError
from dinoprobe.heads import copy_for, frozen_choice
from dinoprobe.learning_curve import summarise
from dinoprobe.partition import dealt_folds, units
from dinoprobe.train.candidates import fit_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from dinoprobe.heads import ProbeBase
    from dinoprobe.learning_curve import LearningCurve
    from dinoprobe.types import Features

    Codes = npt.NDArray[np.intp]

SEEDS = 3
SIZES = 8
SMALLEST_RATIO = 2**0.5
LEAST_PER_CLASS = 3


def learning_curve(
    head: ProbeBase,
    training: Features,
    *,
    near: Sequence[str | None] | None = None,
    seed: int = 0,
    seeds: int = SEEDS,
    say: Callable[[str], None] = lambda _: None,
) -> LearningCurve:
    """Accuracy out of fold at up to 8 sizes in a geometric series, and what more would bring.

    `head` is not fitted, `near` has one name for nearly identical images. Raises DatasetError where
    there are too few images for two folds or two sizes, and HeadError.
    """
    folds = dealt_folds(training, seed=seed, near=near)
    held_out = [int(fold) for fold in np.unique(folds[folds >= 0])]
    together = units(training, near)
    classes = len(set(training.y))
    rests = {fold: np.flatnonzero(folds != fold) for fold in held_out}
    smallest = min((len(rest) for rest in rests.values()), default=0)
    sizes = series(LEAST_PER_CLASS * classes, smallest)
    if len(sizes) < 2:
        raise DatasetError(
            f"found {len(training)} images of {classes} classes to train on; a learning curve "
            f"needs at least {2 * LEAST_PER_CLASS} a class. Add images, or leave it out."
        )
    judged = np.flatnonzero(folds >= 0)
    correct = np.zeros((len(sizes), seeds, len(training)), dtype=bool)
    counts: list[list[int]] = [[] for _ in sizes]
    subsets = _Subsets(head, training, together, near, seed)
    for place, size in enumerate(sizes):
        say(f"learning curve: {size:,} images, {place + 1} of {len(sizes)}")
        for fold, rest in rests.items():
            validation = np.flatnonzero(folds == fold)
            found = subsets.predictions(fold, rest, validation, size, seeds)
            for draw, (count, labels) in enumerate(found):
                correct[place, draw, validation] = labels == training.y[validation]
                counts[place].append(count)
    return summarise(
        np.array([round(np.mean(each)) for each in counts]),
        correct[:, :, judged],
        together[judged],
        n_all=len(training),
        folds=len(held_out),
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class _Subsets:
    """What heads that were fitted on parts of the training part say of a fold."""

    head: ProbeBase
    training: Features
    together: Codes
    near: Sequence[str | None] | None
    seed: int

    def predictions(
        self, fold: int, rest: Codes, validation: Codes, size: int, draws: int
    ) -> Iterator[tuple[int, npt.NDArray[np.object_]]]:
        """How many rows were learnt from, and labels of the validation rows, for each draw of
        `size` rows out of the rest, or of a unit more.

        The first draw's head chooses, on folds of its own rows; the others take its choice, for
        which no row of this fold was seen either.
        """
        head, found, rows = self.head, None, rest
        for draw in range(draws):
            if found is None or len(rows) < len(rest):
                rng = np.random.default_rng([self.seed, draw, fold])
                rows = rest[drawn(self.training.y[rest], self.together[rest], size, rng)]
                head, found = self._fitted(head, rows, validation)
            yield len(rows), found

    def _fitted(
        self, head: ProbeBase, rows: Codes, validation: Codes
    ) -> tuple[ProbeBase, npt.NDArray[np.object_]]:
        """A head with its choice made, and the labels by one that was fitted on these rows."""
        part = self.training.select(rows)
        if len(set(part.y)) < 2:
            return head, np.full(len(validation), part.y[0], dtype=object)
        near = None if self.near is None else [self.near[row] for row in rows]
        fitted = fit_head(
            copy_for(head, part.y), part, dealt_folds(part, seed=self.seed, near=near)
        )
        labels = fitted.predict(self.training.X[validation])
        return frozen_choice(fitted, like=head), np.asarray(labels, dtype=object)


def series(least: int, most: int) -> list[int]:
    """Up to `SIZES` sizes in a geometric series from `least` to `most`, rising."""
    if most <= least:
        return [most] if most else []
    ratio = max((most / least) ** (1 / (SIZES - 1)), SMALLEST_RATIO)
    sizes = [round(most / ratio**step) for step in range(SIZES)]
    return sorted({size for size in sizes if size >= least})


def drawn(
    labels: npt.NDArray[np.object_], together: Codes, size: int, rng: np.random.Generator
) -> Codes:
    """Positions of the first units that hold `size` rows or a unit more, in a stratified order.

    The order depends on the generator alone, so that smaller sizes lie within larger ones.
    """
    order = np.concatenate(list(_in_order(labels, together, rng)))
    _, first = np.unique(together[order], return_index=True)
    ends = np.append(np.sort(first), len(order))
    return np.sort(order[: ends[np.searchsorted(ends, min(size, len(order)))]])


def _in_order(
    labels: npt.NDArray[np.object_], together: Codes, rng: np.random.Generator
) -> Iterator[Codes]:
    """Rows of one unit after the other, so that any first part has the classes in proportion.

    A unit counts for the class of its first row.
    """
    leaders = np.unique(together, return_index=True)[1]
    leaders = rng.permutation(leaders)
    _, codes = np.unique(labels[leaders].astype(str), return_inverse=True)
    position = np.empty(len(leaders))
    for code in range(codes.max() + 1):
        own = np.flatnonzero(codes == code)
        position[own] = (np.arange(len(own)) + rng.random()) / len(own)
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(together.tolist()):
        members.setdefault(unit, []).append(row)
    for leader in leaders[np.argsort(position, kind="stable")]:
        yield np.array(members[int(together[leader])], dtype=np.intp)
