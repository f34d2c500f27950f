"""From paths to labels and splits: `<class>/...` or `<split>/<class>/...`.

Shared by folders, object stores and archives, so that the same pictures mean the same in each.
A label is a folder's name, never its position in a list.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.datasets.names import amount, some, split_named, unique, utf8
from dinoprobe.types import SPLITS, Sample, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dinoprobe.types import Split


class Entry(NamedTuple):
    """An image by its path below the root, with slashes. `key` is the path unless given."""

    path: str
    source: Source
    key: str | None = None


class Arranged(NamedTuple):
    """Samples, and sentences on how the folders were understood."""

    samples: list[Sample]
    notes: list[str]


def arrange(entries: Sequence[Entry]) -> Arranged:
    """Samples with the labels and splits that the folders say, in the order given."""
    tops = {entry.path.partition("/")[0] for entry in entries if "/" in entry.path}
    splits = split_folders(tops)
    notes = _notes_on_root(entries, tops)
    keys, notes_on_keys = unique_keys(entry.key or entry.path for entry in entries)
    read = _split_and_class if splits else _class_only
    samples = [
        Sample(key, entry.source, *read(entry.path, splits))
        for key, entry in zip(keys, entries, strict=True)
    ]
    notes += notes_on_keys + _notes_on_splits(samples, tops, splits)
    return Arranged(samples, notes)


def split_folders(names: Iterable[str]) -> dict[str, Split]:
    """Folder name -> split when these folders are splits, else nothing.

    They are when every one has a split's name, and one is 'train' or there are two or more. So
    the classes 'train', 'plane' and 'bus' stay classes.
    """
    found = {name: split_named(name) for name in names}
    known = {name: split for name, split in found.items() if split is not None}
    if len(known) < len(found):
        return {}
    return known if len(known) >= 2 or "train" in known.values() else {}


def _class_only(path: str, _: Mapping[str, Split]) -> tuple[str | None, Split | None]:
    label, slash, _rest = path.partition("/")
    return (_label(label) if slash else None), None


def _split_and_class(path: str, splits: Mapping[str, Split]) -> tuple[str | None, Split | None]:
    folder, slash, rest = path.partition("/")
    return _class_only(rest, splits)[0], splits[folder] if slash else None


_label = lru_cache(maxsize=4096)(utf8)


def unwrap(paths: Sequence[str]) -> tuple[list[str], str | None]:
    """The paths without the one folder that holds everything, and its name if there is one.

    `zip -r photos.zip photos` packs `photos/cat/1.jpg`. A folder is taken for such a wrapper only
    when no image is directly in it, and when it is not a split.
    """
    tops = {path.partition("/")[0] for path in paths}
    nested = all(path.count("/") >= 2 for path in paths)
    if len(tops) != 1 or not nested or split_folders(tops):
        return list(paths), None
    return [path.partition("/")[2] for path in paths], tops.pop()


def unique_keys(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Valid and unique keys for these names, and a note when some had to be changed."""
    keys, changed = unique([name if name.isascii() else utf8(name) for name in names])
    if not changed:
        return keys, []
    repeated = amount(changed, "image repeats a path", "images repeat a path")
    return keys, [f"{repeated} that came before; their keys end in '#2', '#3', and so on."]


def classes_of(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The labels, sorted, each once."""
    return tuple(sorted({sample.label for sample in samples if sample.label is not None}))


def _notes_on_root(entries: Sequence[Entry], tops: set[str]) -> list[str]:
    loose = sum("/" not in entry.path for entry in entries) if tops else 0
    if not loose:
        return []
    images = amount(loose, "image lies", "images lie")
    return [f"{images} next to the class folders and not in one: without a label."]


def _notes_on_splits(
    samples: Sequence[Sample], tops: set[str], splits: Mapping[str, Split]
) -> list[str]:
    if not splits:
        lone = next(iter(tops)) if len(tops) == 1 else ""
        return [f"The only folder, '{lone}', is taken for a class."] if split_named(lone) else []
    if not any(sample.label is not None for sample in samples):
        return [f"{some(sorted(splits))} are taken for splits; no class folders are below them."]
    return one_sided(samples)


def one_sided(samples: Iterable[Sample]) -> list[str]:
    """A note for each split that lacks classes which another has."""
    seen: dict[Split, set[str]] = {}
    for sample in samples:
        if sample.split is not None and sample.label is not None:
            seen.setdefault(sample.split, set()).add(sample.label)
    every = set().union(*seen.values()) if seen else set()
    missing = {split: sorted(every - seen[split]) for split in SPLITS if split in seen}
    return [
        f"{amount(len(names), 'class has', 'classes have')} no image in '{split}': {some(names)}."
        for split, names in missing.items()
        if names
    ]
