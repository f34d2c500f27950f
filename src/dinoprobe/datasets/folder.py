"""A folder of images, here or in a store: by class, by split, with a metadata table, of shards."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dinoprobe.datasets.archive import open_archives
from dinoprobe.datasets.layout import arrange, classes_of
from dinoprobe.datasets.listing import Listing, list_local, list_remote
from dinoprobe.datasets.location import filesystem_of, is_remote
from dinoprobe.datasets.names import amount, utf8
from dinoprobe.datasets.table import Columns, has_labels, open_table
from dinoprobe.errors import ConfigurationError, DatasetError
from dinoprobe.types import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dinoprobe.datasets.ignored import Ignored

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_LAYOUTS = "<class>/image.jpg, <split>/<class>/image.jpg, or images directly in it"


def open_folder(root: str, columns: Columns) -> Dataset:
    """The images below a folder. A `metadata.csv|jsonl|parquet` in it, if there is one, leads.

    Raises DatasetError when no image is found, and ConfigurationError for columns without a table.
    """
    tables = _metadata_tables(root)
    if len(tables) == 1 and (columns != Columns() or has_labels(tables[0])):
        return open_table(tables[0], columns)
    if columns != Columns():
        raise ConfigurationError(
            f"{utf8(root)}: a folder has no columns ({columns.named()}). Columns belong to a "
            f"table: give its path, or name it {', '.join(_METADATA)}."
        )
    with _collector_paused():
        listing = list_remote(root) if is_remote(root) else list_local(root)
        if listing.images or not listing.archives:
            return _arranged(root, listing, _notes_on_tables(tables))
    return open_archives(listing.archives, utf8(root), ignored=listing.ignored)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Stops the search for cyclic garbage, of which listing makes none.

    It would look at the growing list again and again: a third of the time for 200,000 files.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _arranged(root: str, listing: Listing, notes: list[str]) -> Dataset:
    if listing.archives:
        for path, _ in listing.archives:
            listing.ignored.add(path, "an archive next to images")
    if not listing.images:
        raise no_images(utf8(root), listing.ignored)
    samples, understood = arrange(listing.images)
    return Dataset(
        uri=utf8(root),
        samples=samples,
        classes=classes_of(samples),
        ignored=dict(listing.ignored.counts),
        ignored_files=[(utf8(path), reason) for path, reason in listing.ignored.files],
        notes=(*notes, *listing.notes, *understood),
    )


def no_images(place: str, ignored: Ignored) -> DatasetError:
    """The error for a place that holds no image; it says what was passed over there."""
    passed = f"only other files ({ignored})" if ignored.counts else "it is empty"
    return DatasetError(f"{place}: no images found, {passed}. Expected {_LAYOUTS}.")


def _metadata_tables(root: str) -> list[str]:
    places = [f"{root.rstrip('/')}/{name}" for name in _METADATA]
    if not is_remote(root):
        return [place for place in places if os.path.isfile(place)]  # noqa: PTH113
    filesystem, path = filesystem_of(root)
    names = [f"{path.rstrip('/')}/{name}" for name in _METADATA]
    return [place for place, name in zip(places, names, strict=True) if filesystem.isfile(name)]


def _notes_on_tables(tables: list[str]) -> list[str]:
    if not tables:
        return []
    names = ", ".join(f"'{table.rpartition('/')[2]}'" for table in tables)
    if len(tables) == 1:
        return [f"{names} has no column of paths and labels: labels come from the folders."]
    return [f"{amount(len(tables), 'table', 'tables')} ({names}), so none is used."]
