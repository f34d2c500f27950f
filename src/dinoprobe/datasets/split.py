"""Which images are for training, testing and each validation fold.

Images that belong together never part: those of one group (a patient, a scene), identical ones (an
equal content hash), and those to which `near` gives one name (nearly identical ones). The parts of
that relation are the units, found by union-find in close to linear time. Units are ordered by a
hash of the seed and their smallest key, so a split depends neither on the order of the files nor on
a random generator, and adding images moves few old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinoprobe.datasets.names import amount, some
from dinoprobe.errors import ConfigurationError, DatasetError
from dinoprobe.types import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from dinoprobe.types import Split

Label = str | None
ALWAYS_TRAIN = -1


@dataclass(frozen=True, slots=True)
class _Unit:
    """Images that stay together: their positions, how many there are of each label, their order."""

    rows: tuple[int, ...]
    counts: Mapping[Label, int]
    order: str

    @property
    def size(self) -> int:
        return len(self.rows)


def assign_splits(
    keys: Sequence[str],
    labels: Sequence[Label],
    *,
    groups: Sequence[str | None] | None = None,
    hashes: Sequence[str | None] | None = None,
    near: Sequence[str | None] | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
) -> dict[str, Split]:
    """Key -> 'train' or 'test', stratified by label; what belongs together on one side.

    About `test_fraction` of the images of each class are for testing. A class with one unit is
    trained on (`split_notes` says which); every other has a unit in train and, where the units
    allow it, one in test. Raises ConfigurationError for a fraction outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ConfigurationError(
            f"test_fraction is {test_fraction}. Expected a number between 0 and 1, such as 0.2."
        )
    units = _units(keys, labels, (groups, hashes, near), seed)
    test = _choose_test(units, test_fraction)
    chosen: dict[str, Split] = {}
    for index, unit in enumerate(units):
        split: Split = "test" if index in test else "train"
        chosen.update((keys[row], split) for row in unit.rows)
    return {key: chosen[key] for key in keys}


def folds(
    labels: Sequence[Label],
    *,
    n_folds: int,
    keys: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
    hashes: Sequence[str | None] | None = None,
    near: Sequence[str | None] | None = None,
    seed: int = 0,
) -> npt.NDArray[np.intp]:
    """The validation fold of each image, `(n,)`, with the rules of `assign_splits`.

    -1 is for an image that no fold validates: its class has one unit only, so leaving it out
    would leave nothing to train on. Without `keys` the order comes from `hashes`, else from the
    positions. Raises ConfigurationError for fewer than two folds, and DatasetError when there are
    fewer units than folds.
    """
    import numpy as np

    if n_folds < 2:
        raise ConfigurationError(f"n_folds is {n_folds}. Expected 2 or more.")
    names = keys if keys is not None else _names(hashes, len(labels))
    units = _units(names, labels, (groups, hashes, near), seed)
    placed = _place_in_folds(units, n_folds)
    usable = sum(fold != ALWAYS_TRAIN for fold in placed)
    if usable < n_folds:
        raise DatasetError(
            f"{n_folds} folds of {usable} independent images or groups, counting only classes with "
            "two or more. Expected at least one for each fold: use fewer folds or add images."
        )
    result = np.full(len(labels), ALWAYS_TRAIN, dtype=np.intp)
    for unit, fold in zip(units, placed, strict=True):
        result[list(unit.rows)] = fold
    return result


def split_notes(
    keys: Sequence[str],
    labels: Sequence[Label],
    *,
    groups: Sequence[str | None] | None = None,
    hashes: Sequence[str | None] | None = None,
    near: Sequence[str | None] | None = None,
) -> tuple[str, ...]:
    """What a user should know of a split: the classes that can not be tested."""
    units = _units(keys, labels, (groups, hashes, near), seed=0)
    counts = Counter(label for unit in units for label in unit.counts)
    single = sorted(label for label, n in counts.items() if n == 1 and label is not None)
    if not single:
        return ()
    classes = amount(len(single), "class has", "classes have")
    note = (
        f"{classes} one independent image or group only: {some(single)}. It is trained on, so "
        "nothing tests it; add images."
    )
    return (note,)


def leaks(
    keys: Sequence[str], splits: Sequence[Split | None], hashes: Sequence[str | None]
) -> list[tuple[str, str]]:
    """Pairs of keys of identical images in different splits.

    Of each image, the first key of its first split (train, val, test) with each key of the others;
    so the list is never longer than the dataset.
    """
    same: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for key, split, content in zip(keys, splits, hashes, strict=True):
        if content and split is not None:
            same[content].append((SPLITS.index(split), key))
    pairs = []
    for found in same.values():
        first_split, first = min(found)
        pairs += [(first, key) for split, key in sorted(found) if split != first_split]
    return sorted(pairs)


def _names(hashes: Sequence[str | None] | None, count: int) -> list[str]:
    names = [f"{row:012d}" for row in range(count)]
    if hashes is None:
        return names
    return [content or name for content, name in zip(hashes, names, strict=True)]


def _units(
    keys: Sequence[str],
    labels: Sequence[Label],
    columns: Iterable[Sequence[str | None] | None],
    seed: int,
) -> list[_Unit]:
    """The units in their order. Raises ValueError when the sequences differ in length."""
    roots = components(len(keys), [column for column in columns if column is not None])
    members: dict[int, list[int]] = defaultdict(list)
    for row, (root, _key, _label) in enumerate(zip(roots, keys, labels, strict=True)):
        members[root].append(row)
    units = []
    for rows in members.values():
        name = min(keys[row] for row in rows)
        order = hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()
        units.append(_Unit(tuple(rows), Counter(labels[row] for row in rows), order + name))
    return sorted(units, key=lambda unit: unit.order)


def components(count: int, columns: Iterable[Sequence[str | None]]) -> list[int]:
    """The root of each row, equal for rows that share a value, not an empty one, in any column."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for column in columns:
        first: dict[str, int] = {}
        for row, value in enumerate(column):
            if value:
                parent[root(row)] = root(first.setdefault(value, row))
    return [root(row) for row in range(count)]


def _by_class(units: Sequence[_Unit]) -> list[tuple[Label, list[int]]]:
    """Label -> the units that hold it, the rarest label first: it has the least choice."""
    holding: dict[Label, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        for label in unit.counts:
            holding[label].append(index)
    return sorted(holding.items(), key=lambda item: (len(item[1]), item[0] or "", item[0] is None))


def _choose_test(units: Sequence[_Unit], fraction: float) -> set[int]:
    classes = _by_class(units)
    test: set[int] = set()
    decided: set[int] = set()
    for label, holding in classes:
        free = [index for index in holding if index not in decided]
        test |= _fill(units, label, holding, free, test, fraction)
        decided.update(free)
    _train_on_each(units, classes, test)
    _test_each(units, classes, test)
    return test


def _fill(
    units: Sequence[_Unit],
    label: Label,
    holding: Sequence[int],
    free: Sequence[int],
    test: set[int],
    fraction: float,
) -> set[int]:
    """The free units of one class that bring its test images closest to the fraction."""
    sizes = {index: units[index].counts[label] for index in holding}
    target = round(fraction * sum(sizes.values()))
    have = sum(size for index, size in sizes.items() if index in test)
    taken: set[int] = set()
    for index in free:
        if abs(have + sizes[index] - target) < abs(have - target):
            taken.add(index)
            have += sizes[index]
    if have == 0 and len(holding) >= 2 and free:
        taken.add(min(free, key=lambda index: (units[index].size, units[index].order)))
    return taken


def _train_on_each(
    units: Sequence[_Unit], classes: Sequence[tuple[Label, list[int]]], test: set[int]
) -> None:
    """Moves a unit of each class that is wholly in test to train, the smallest one."""
    for _, holding in classes:
        if all(index in test for index in holding):
            test.discard(min(holding, key=lambda index: (units[index].size, units[index].order)))


def _test_each(
    units: Sequence[_Unit], classes: Sequence[tuple[Label, list[int]]], test: set[int]
) -> None:
    """Moves a unit of each class without test images to test, if all its classes keep another."""
    in_train = Counter(
        label for index, unit in enumerate(units) if index not in test for label in unit.counts
    )
    for _, holding in classes:
        if any(index in test for index in holding):
            continue
        movable = [i for i in holding if all(in_train[label] >= 2 for label in units[i].counts)]
        if movable:
            chosen = min(movable, key=lambda index: (units[index].size, units[index].order))
            test.add(chosen)
            in_train.subtract(units[chosen].counts.keys())


def _place_in_folds(units: Sequence[_Unit], n_folds: int) -> list[int]:
    """A fold per unit: the one with the fewest images of its rarest class, large units first."""
    classes = _by_class(units)
    placed: dict[int, int] = {
        i: ALWAYS_TRAIN for _, holding in classes if len(holding) == 1 for i in holding
    }
    of_class: Counter[tuple[int, Label]] = Counter()
    of_all: Counter[int] = Counter()
    for label, holding in classes:
        free = [index for index in holding if index not in placed]
        for index in sorted(free, key=lambda i: (-units[i].counts[label], units[i].order)):
            fold = min(range(n_folds), key=lambda f: (of_class[f, label], of_all[f], f))
            placed[index] = fold
            of_all[fold] += units[index].size
            for other, count in units[index].counts.items():
                of_class[fold, other] += count
    for _, holding in classes:
        if len({placed[index] for index in holding}) == 1:
            placed[holding[0]] = ALWAYS_TRAIN
    return [placed[index] for index in range(len(units))]
