"""Images with labels, from wherever they are: folders, tables, archives, hubs, stores, memory.

`open_dataset` lists and never decodes, so what it costs is names. Labels are names from here to the
prediction; numbers for classes exist only inside a head.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from dinoprobe.datasets.archive import open_archives
from dinoprobe.datasets.classes import check_classes
from dinoprobe.datasets.corrections import corrected
from dinoprobe.datasets.folder import open_folder
from dinoprobe.datasets.hub import PREFIX as HUB_PREFIX
from dinoprobe.datasets.hub import is_hub_object, is_saved, open_hub, open_named, open_saved
from dinoprobe.datasets.layout import classes_of, one_sided, unique_keys
from dinoprobe.datasets.location import (
    filesystem_of,
    is_remote,
    local_path,
    not_found,
    source_at,
)
from dinoprobe.datasets.memory import is_array, is_pixels, labels_of, rows_of, source_of
from dinoprobe.datasets.names import is_archive, is_image_name, is_table, utf8
from dinoprobe.datasets.shards import expand
from dinoprobe.datasets.split import assign_splits, components, folds, leaks, split_notes
from dinoprobe.datasets.split_file import SplitRow, read_split, with_split, write_split
from dinoprobe.datasets.table import Columns, open_table
from dinoprobe.errors import ConfigurationError, DatasetError, DatasetNotFoundError
from dinoprobe.types import Dataset, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "HUB_PREFIX",
    "DataSettings",
    "SplitRow",
    "assign_splits",
    "check_classes",
    "components",
    "folds",
    "is_image_name",
    "leaks",
    "open_dataset",
    "read_split",
    "split_notes",
    "write_split",
]


def open_dataset(
    source: Any,
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
) -> Dataset:
    """The images of a source, listed and not decoded.

    `source` is a path, an fsspec URI or a pattern (`shards/{000..012}.tar`, `new/*.jpg`) of an
    image, a folder, a table or an archive; `hf-dataset:owner/name`; an object of the datasets
    library; bytes, a PIL image, an array `(height, width[, bands])`, a tensor
    `([bands,] height, width)`; a list of any of these; a tuple `(images, labels)`; or a Dataset,
    which is passed through. The columns are those of a table, and a given one wins.

    Raises DatasetNotFoundError when nothing is there, DatasetError when it can not be used or holds
    no image, and ConfigurationError for columns of something that has none.
    """
    columns = Columns(path_column, label_column, split_column, group_column)
    if is_hub_object(source):
        return open_hub(source, columns)
    if isinstance(source, str | os.PathLike):
        return _open_text(os.fsdecode(source), columns)
    pair = isinstance(source, tuple) and _is_pair(source)
    if columns != Columns() and (pair or not _is_list(source)):
        raise _no_columns(f"a {type(source).__name__}", columns)
    if isinstance(source, Dataset):
        return source
    if pair:
        return _open_pair(*source)
    return _open_list(rows_of(source) if _is_list(source) else [source], columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the images are, and which columns of a table to take.

    `labels` is a file of corrections that counts more than the labels of the source, `split` a
    split.csv that counts more than its split.
    """

    source: str
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    labels: str | None = None
    split: str | None = None

    def open(self) -> Dataset:
        """The dataset. Raises DatasetError, and FormatError and OSError for the two files."""
        dataset = open_dataset(
            self.source,
            path_column=self.path_column,
            label_column=self.label_column,
            split_column=self.split_column,
            group_column=self.group_column,
        )
        if self.split is not None:
            dataset = with_split(dataset, self.split)
        return dataset if self.labels is None else corrected(dataset, self.labels)


def _is_list(source: object) -> bool:
    return isinstance(source, list | tuple) or is_array(source) or is_pixels(source)


def _is_pair(source: tuple[Any, ...]) -> bool:
    """Whether a tuple is `(images, labels)`, and not two images."""
    if len(source) != 2:
        return False
    labels = source[1]
    if is_pixels(labels):
        return bool(labels.ndim == 1)
    return not isinstance(labels, str | bytes | os.PathLike) and hasattr(labels, "__len__")


def _open_pair(images: Any, labels: Any) -> Dataset:
    if isinstance(images, str | bytes | os.PathLike):
        raise DatasetError(
            f"({type(images).__name__}, labels): one image with a list of labels. Expected a list "
            "of images; a folder or a table brings its own labels."
        )
    rows = rows_of(images, count=len(labels))
    names = labels_of(labels, len(rows))
    samples = [_single(row, index) for index, row in enumerate(rows)]
    labelled = [s._replace(label=name) for s, name in zip(samples, names, strict=True)]
    return _joined("(images, labels)", labelled)


def _open_text(text: str, columns: Columns) -> Dataset:
    if text.startswith(HUB_PREFIX):
        return open_named(text.removeprefix(HUB_PREFIX), columns)
    if not text:
        raise DatasetNotFoundError("'': an empty path. Expected the path or URI of a dataset.")
    places = expand(text)
    if len(places) > 1 or places[0] != text:
        return _open_list(places, columns, uri=utf8(text))
    return _open_place(text, columns)


def _open_place(place: str, columns: Columns) -> Dataset:
    """One path or URI, by what is there: a folder, or a file by its suffix."""
    place = os.path.abspath(local_path(place)) if not is_remote(place) else place  # noqa: PTH100
    if _is_folder(place):
        if is_saved(place):
            return open_saved(place, columns)
        return open_folder(place, columns)
    if is_table(place):
        return open_table(place, columns)
    if columns != Columns():
        raise _no_columns(utf8(place), columns)
    if is_archive(place):
        return open_archives([("", place)], utf8(place))
    key = utf8(place.rpartition("/")[2])
    return Dataset(uri=utf8(place), samples=[Sample(key, source_at(place))])


def _is_folder(place: str) -> bool:
    """Raises DatasetNotFoundError when nothing is there; a broken link is something."""
    if not is_remote(place):
        if not os.path.lexists(place):
            raise not_found(place)
        return os.path.isdir(place)  # noqa: PTH112
    if _is_remote_folder(place):
        return True
    filesystem, path = filesystem_of(place)
    if not filesystem.exists(path):
        raise not_found(place)
    return False


def _open_list(items: Sequence[Any], columns: Columns, *, uri: str | None = None) -> Dataset:
    """Images, archives, folders and tables in one list; archives together are shards of one."""
    if not items:
        raise DatasetError("An empty list. Expected at least one image.")
    texts = [os.fsdecode(i) if isinstance(i, str | os.PathLike) else None for i in items]
    expanded = [text for item in texts if item is not None for text in expand(item)]
    if None not in texts and all(is_archive(text) for text in expanded):
        if columns != Columns():
            raise _no_columns("a list of archives", columns)
        return open_archives(_named(expanded), uri or _summary(expanded))
    if None in texts or not any(_is_container(text) for text in expanded):
        flat = items if None in texts else expanded
        if columns != Columns():
            raise _no_columns("a list of images", columns)
        samples = [_single(item, index) for index, item in enumerate(flat)]
        return _joined(uri or _summary(expanded), samples)
    return _merged(uri or _summary(expanded), [_open_text(text, columns) for text in expanded])


def _is_container(text: str) -> bool:
    if is_archive(text) or is_table(text) or text.startswith(HUB_PREFIX):
        return True
    if not is_remote(text):
        return os.path.isdir(local_path(text))  # noqa: PTH112
    return not is_image_name(text) and _is_remote_folder(text)


def _is_remote_folder(uri: str) -> bool:
    filesystem, path = filesystem_of(uri)
    try:
        return bool(filesystem.isdir(path))
    except OSError as error:
        raise DatasetError(f"{uri}: the store can not be asked ({error}).") from error


def _single(item: Any, index: int) -> Sample:
    """One image of a list. A path is taken whatever its suffix, and also when nothing is there."""
    if isinstance(item, str | os.PathLike):
        text = os.fsdecode(item)
        return Sample(utf8(text), source_at(text))
    return Sample(f"{index:06d}", source_of(item, index))


def _named(places: Sequence[str]) -> list[tuple[str, str]]:
    """Shards by their path below the folder that they share."""
    if len(places) == 1:
        return [("", places[0])]
    folders = [place.split("/")[:-1] for place in places]
    levels = zip(*folders, strict=False)
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
    return [("/".join(place.split("/")[shared:]), place) for place in places]


def _summary(places: Sequence[str]) -> str:
    if not places:
        return "images in memory"
    return utf8(places[0]) + (f" and {len(places) - 1:,} more" if len(places) > 1 else "")


def _joined(uri: str, samples: Sequence[Sample]) -> Dataset:
    keys, notes = unique_keys(sample.key for sample in samples)
    unique = [sample._replace(key=key) for sample, key in zip(samples, keys, strict=True)]
    return Dataset(uri=uri, samples=unique, classes=classes_of(unique), notes=tuple(notes))


def _merged(uri: str, parts: Sequence[Dataset]) -> Dataset:
    """Several datasets as one; keys start with the name of the place they come from."""
    samples = [
        sample._replace(key=f"{part.uri.rstrip('/').rpartition('/')[2]}/{sample.key}")
        if len(part) > 1 or sample.label is not None
        else sample
        for part in parts
        for sample in part.samples
    ]
    joined = _joined(uri, samples)
    ignored: Counter[str] = Counter()
    ignored_files: list[tuple[str, str]] = []
    for part in parts:
        ignored.update(part.ignored)
        ignored_files += part.ignored_files
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return Dataset(
        uri=uri,
        samples=joined.samples,
        classes=joined.classes,
        ignored=dict(ignored),
        ignored_files=ignored_files,
        notes=(*notes, *joined.notes, *one_sided(samples)),
    )


def _no_columns(place: str, columns: Columns) -> ConfigurationError:
    return ConfigurationError(
        f"{place}: has no columns ({columns.named()}). Columns belong to a table: a CSV, JSON "
        "Lines or Parquet file, or a Hugging Face dataset."
    )
