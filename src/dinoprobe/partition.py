"""Which rows train the head and which one test it: the dataset's own split, or one made here.

The test part is read once, at the end. A validation part chooses hyper-parameters where there is
one, else folds of the training part do. With `train` and `val` but no `test`, `val` is the test
part, and it then chooses nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.datasets import assign_splits, check_classes, components, folds, split_notes
from dinoprobe.datasets import leaks as identical_across
from dinoprobe.duplicates import clusters, leaks
from dinoprobe.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dinoprobe.duplicates import Leak, NearPair
    from dinoprobe.types import Dataset, Features, Split


@dataclass(frozen=True, slots=True)
class Partition:
    """`splits` holds a part for each row, None for rows without a label.

    `given` says whether the dataset brought its split, `notes` are for the user. `near` has one
    name for images that are nearly identical, `leaks` are test images that stand in another part.
    """

    splits: tuple[Split | None, ...]
    given: bool
    notes: tuple[str, ...]
    near: tuple[str | None, ...]
    leaks: tuple[Leak, ...]

    def rows(self, *parts: Split) -> npt.NDArray[np.intp]:
        """Positions of the rows in these parts, in order."""
        return np.array([i for i, part in enumerate(self.splits) if part in parts], dtype=np.intp)


def partition(
    features: Features, *, seed: int, test_fraction: float, pairs: Sequence[NearPair] = ()
) -> Partition:
    """Parts for all labelled rows; `pairs` are nearly identical images, which a split made here
    keeps on one side. Raises DatasetError when nothing can be trained or tested.
    """
    labelled = [i for i, label in enumerate(features.y) if label is not None]
    notes = []
    if len(labelled) < len(features):
        notes.append(f"{len(features) - len(labelled)} images without a label were left out.")
    if len({features.y[i] for i in labelled}) < 2:
        raise DatasetError(_too_few(features, {str(features.y[i]) for i in labelled}))
    given = {features.splits[i] for i in labelled} - {None, "train"} != set()
    near = _together(features, pairs)
    splits, more = (
        _given(features, labelled)
        if given
        else _made(features, labelled, near, seed, test_fraction)
    )
    leaked = tuple(leaks(features, splits, pairs))
    notes += [*more, *_identical(features, splits), *_near(leaked)]
    notes += _split_groups(features, splits)
    return _checked(features, Partition(tuple(splits), given, tuple(notes), near, leaked))


def set_aside(features: Features) -> list[bool]:
    """Which rows a given split sets aside for the test; none where it does not."""
    labelled = [label is not None for label in features.y]
    parts = {part for part, use in zip(features.splits, labelled, strict=True) if use}
    name = "test" if "test" in parts else "val"
    return [use and part == name for part, use in zip(features.splits, labelled, strict=True)]


def _together(features: Features, pairs: Sequence[NearPair]) -> tuple[str | None, ...]:
    """A name for images that are nearly identical; a test image joins no others by its likeness."""
    rows = enumerate(set_aside(features))
    known = {features.hashes[row] for row, is_tested in rows if not is_tested}
    joined = [pair for pair in pairs if pair.first in known and pair.second in known]
    return clusters(features.hashes, joined)


_LAYOUT = (
    "Put images into one folder per class and name the folder above, or give a table with a label "
    "column; a list or a pattern of files has no labels."
)


def check_labels(dataset: Dataset) -> None:
    """Raise DatasetError for fewer than two classes, before anything is embedded."""
    if len(dataset.classes) < 2:
        found = ", ".join(dataset.classes) or "none"
        msg = f"{dataset.uri}: found {len(dataset.classes)} classes ({found}), expected at least 2."
        raise DatasetError(f"{msg} {_LAYOUT}")


def _too_few(features: Features, classes: set[str]) -> str:
    found = f"{len(classes)} classes ({', '.join(sorted(classes)) or 'none'})"
    if not features.failures:
        return f"found {found}, expected at least 2. {_LAYOUT}"
    first = features.failures[0]
    return (
        f"found {found} among the images that can be used, expected at least 2. "
        f"{len(features.failures)} images can not be used, first {first.key}: {first.reason}"
    )


def _given(features: Features, labelled: list[int]) -> tuple[list[Split | None], list[str]]:
    splits: list[Split | None] = [None] * len(features)
    for i in labelled:
        splits[i] = features.splits[i] or "train"
    if "test" in splits:
        return splits, _without_split(features, labelled)
    note = "No test part was given: the validation part is the test part and chose nothing."
    tested = set_aside(features)
    found = zip(splits, tested, strict=True)
    return ["test" if is_tested else part for part, is_tested in found], [note]


def _without_split(features: Features, labelled: list[int]) -> list[str]:
    count = sum(features.splits[i] is None for i in labelled)
    return [f"{count} images without a split went to the training part."] if count else []


def _made(
    features: Features,
    labelled: list[int],
    near: Sequence[str | None],
    seed: int,
    test_fraction: float,
) -> tuple[list[Split | None], list[str]]:
    keys = [features.keys[i] for i in labelled]
    labels = [str(features.y[i]) for i in labelled]
    groups = [features.groups[i] for i in labelled]
    hashes = [features.hashes[i] for i in labelled]
    together: dict[str, Sequence[str | None]] = {
        "groups": groups,
        "hashes": hashes,
        "near": [near[i] for i in labelled],
    }
    parts = assign_splits(keys, labels, **together, seed=seed, test_fraction=test_fraction)
    note = f"No test part was given: {test_fraction:.0%} of the images were set aside for it."
    notes = [note, *_kept_together(near), *split_notes(keys, labels, **together)]
    return [parts.get(key) for key in features.keys], notes


def _kept_together(near: Sequence[str | None]) -> list[str]:
    count = sum(name is not None for name in near)
    if not count:
        return []
    note = (
        f"{count} images are nearly identical to another one (re-encoded, resized, or cut a "
        "little): they stand on one side of the split, and of each fold."
    )
    return [note]


def _identical(features: Features, splits: list[Split | None]) -> list[str]:
    rows = [i for i, part in enumerate(splits) if part is not None]
    pairs = identical_across(
        [features.keys[i] for i in rows],
        [splits[i] for i in rows],
        [features.hashes[i] for i in rows],
    )
    if not pairs:
        return []
    first, second = pairs[0]
    return [
        (
            f"{len(pairs)} identical images stand in two parts, first {first} and {second}: "
            "figures on the test part are too good by as much."
        )
    ]


def _near(leaked: Sequence[Leak]) -> list[str]:
    """Test images of a given split that are nearly those of another part."""
    near = [leak for leak in leaked if leak.kind == "near"]
    if not near:
        return []
    are = "1 test image is" if len(near) == 1 else f"{len(near)} test images are"
    note = (
        f"{are} nearly identical to an image of another part, first {near[0].key} and "
        f"{near[0].other_key}: leaks.csv lists them, and the figures say how much they change."
    )
    return [note]


def _split_groups(features: Features, splits: list[Split | None]) -> list[str]:
    """Groups of a given split that stand on both sides of the test."""
    sides: dict[str, set[bool]] = {}
    for group, part in zip(features.groups, splits, strict=True):
        if group is not None and part is not None:
            sides.setdefault(group, set()).add(part == "test")
    shared = sorted(group for group, found in sides.items() if len(found) > 1)
    if not shared:
        return []
    return [
        (
            f"{len(shared)} groups have images in the test part and outside of it, first "
            f"'{shared[0]}': figures on the test part may be too good."
        )
    ]


def _checked(features: Features, result: Partition) -> Partition:
    train, test = result.rows("train", "val"), result.rows("test")
    if not len(train) or not len(test):
        counts = dict(Counter(part for part in result.splits if part))
        msg = (
            f"found parts {counts}, expected images to train on and images to test on. "
            "Add images, or give both parts."
        )
        raise DatasetError(msg)
    notes = check_classes(
        [str(label) for label in features.y[train]], [str(label) for label in features.y[test]]
    )
    return replace(result, notes=(*result.notes, *notes))


def selection_folds(
    features: Features,
    splits: list[Split | None],
    *,
    seed: int,
    n_folds: int = 5,
    near: Sequence[str | None] | None = None,
) -> npt.NDArray[np.intp]:
    """The fold of each row, in which it is held out; -1 where it never is.

    One fold, the validation part, where there is one; else `n_folds` that keep groups and identical
    images together, and those to which `near` gives one name; fewer where there are too few images,
    none (all -1) where two are too many.
    """
    if "val" in splits:
        return np.array([0 if part == "val" else -1 for part in splits], dtype=np.intp)
    return dealt_folds(features, seed=seed, n_folds=n_folds, near=near)


def units(features: Features, near: Sequence[str | None] | None = None) -> npt.NDArray[np.intp]:
    """A number for each row, the same for rows that no fold parts."""
    columns = [features.groups, features.hashes, *([] if near is None else [near])]
    return np.array(components(len(features), columns), dtype=np.intp)


def dealt_folds(
    features: Features,
    *,
    seed: int,
    n_folds: int = 5,
    near: Sequence[str | None] | None = None,
) -> npt.NDArray[np.intp]:
    """As `selection_folds` without a validation part."""
    for count in range(n_folds, 1, -1):
        try:
            return folds(
                [str(label) for label in features.y],
                n_folds=count,
                keys=features.keys,
                groups=features.groups,
                hashes=features.hashes,
                near=near,
                seed=seed,
            )
        except DatasetError:
            continue
    return np.full(len(features), -1, dtype=np.intp)
