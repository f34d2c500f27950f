"""Hugging Face datasets: saved on disk, by name, or as an object. Needs the extra `datasets`.

Images stay encoded (`Image(decode=False)`), so a row costs one read of an Arrow record and every
format goes through our own decoder.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, final

from dinoprobe.datasets.layout import classes_of, one_sided
from dinoprobe.datasets.location import is_remote, only_oserror, source_at
from dinoprobe.datasets.names import nearest, some, split_named, utf8
from dinoprobe.datasets.table import KNOWN_COLUMNS, Columns, text_of
from dinoprobe.errors import DatasetError, DatasetNotFoundError, MissingExtraError
from dinoprobe.types import Dataset, Sample, Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from dinoprobe.types import Split

PREFIX = "hf-dataset:"


@final
class RowSource(Source):
    """The image of one row. Pickling many of one dataset together stores the dataset once."""

    __slots__ = ("column", "row", "rows")

    def __init__(self, rows: Any, column: str, row: int) -> None:
        self.rows = rows
        self.column = column
        self.row = row

    def read(self) -> bytes:
        """The encoded image, from the row itself or from the path in it."""
        with only_oserror(f"row {self.row}"):
            value = self.rows[self.row][self.column]
            if isinstance(value, dict) and value.get("bytes") is not None:
                return bytes(value["bytes"])
            path = value.get("path") if isinstance(value, dict) else value
            if not path:
                raise OSError(f"row {self.row}: no image in column '{self.column}'")
            found = source_at(str(path)).read()
            if not isinstance(found, bytes):
                raise OSError(f"{path}: not an encoded image")
            return found


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of the datasets library wrote this folder."""
    if is_remote(folder):
        from dinoprobe.datasets.location import filesystem_of

        filesystem, path = filesystem_of(folder)
        names = {str(name).rpartition("/")[2] for name in filesystem.ls(path, detail=False)}
    else:
        marks = ("dataset_dict.json", "state.json", "dataset_info.json")
        names = {name for name in marks if os.path.isfile(f"{folder}/{name}")}  # noqa: PTH113
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names


def is_hub_object(value: object) -> bool:
    """Whether this is an object of the datasets library, which is not imported to find out."""
    return type(value).__module__.partition(".")[0] == "datasets"


def open_saved(folder: str, columns: Columns) -> Dataset:
    """A dataset that `save_to_disk` wrote. Raises DatasetError when it can not be loaded."""
    library = _library()
    try:
        loaded = library.load_from_disk(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{utf8(folder)}: a saved dataset that can not be loaded ({error})."
        ) from error
    return open_hub(loaded, columns, uri=utf8(folder))


def open_named(name: str, columns: Columns) -> Dataset:
    """A dataset of the hub: `owner/name`, with `@revision` and `#configuration` where needed."""
    library = _library()
    rest, _, configuration = name.partition("#")
    place, _, revision = rest.partition("@")
    try:
        loaded = library.load_dataset(place, configuration or None, revision=revision or None)
    except FileNotFoundError as error:  # the library's DatasetNotFoundError is one
        raise DatasetNotFoundError(
            f"{PREFIX}{name}: no such dataset, or no access to it ({error}). Expected "
            f"{PREFIX}owner/name; log in with `hf auth login` if it is private."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise DatasetError(f"{PREFIX}{name}: can not be loaded ({error}).") from error
    return open_hub(loaded, columns, uri=PREFIX + name)


def open_hub(loaded: Any, columns: Columns, *, uri: str = "datasets.Dataset") -> Dataset:
    """A `datasets.Dataset` or `DatasetDict`. The dict's names are splits; a single one has none.

    Raises DatasetError for a streamed dataset, and when no column holds images.
    """
    parts = dict(loaded.items()) if isinstance(loaded, dict) else {"": loaded}
    samples: list[Sample] = []
    notes: list[str] = []
    for name, part in parts.items():
        if not hasattr(part, "__len__"):
            raise DatasetError(
                f"{uri}: a streamed dataset ({type(part).__name__}). Expected one that is loaded: "
                "load it without streaming=True."
            )
        samples += _samples(part, name, columns, uri)
        if name and split_named(name) is None:
            notes.append(
                f"'{name}' is none of train, val and test: its {len(part):,} images have no split."
            )
    if not samples:
        raise DatasetError(f"{uri}: no rows. Expected one row for each image.")
    notes += one_sided(samples)
    return Dataset(uri=uri, samples=samples, classes=classes_of(samples), notes=tuple(notes))


def _samples(part: Any, name: str, columns: Columns, uri: str) -> list[Sample]:
    image = _image_column(part, columns.path, uri)
    label = _find(part, "label", columns.label, uri) or _only_class_label(part)
    split = _find(part, "split", columns.split, uri)
    group = _find(part, "group", columns.group, uri)
    rows = part.select_columns([image]).with_format(None)
    if type(rows.features[image]).__name__ == "Image":
        rows = rows.cast_column(image, _library().Image(decode=False))
    given = split_named(name) if name else None
    splits: Sequence[Split | None] = [
        split_named(value) if value else given for value in _texts(part, split)
    ]
    prefix = f"{utf8(name)}/" if name else ""
    return [
        Sample(f"{prefix}{row}", RowSource(rows, image, row), *about)
        for row, about in enumerate(
            zip(_texts(part, label), splits, _texts(part, group), strict=True)
        )
    ]


def _image_column(part: Any, given: str | None, uri: str) -> str:
    if given is None:
        images = [n for n, kind in part.features.items() if type(kind).__name__ == "Image"]
        if images:
            return next((n for n in KNOWN_COLUMNS["path"] if n in images), images[0])
    found = _find(part, "path", given, uri)
    if found is None:
        raise DatasetError(
            f"{uri}: no column of images among {some(part.column_names, 20)}. Expected an Image "
            "column or a column of paths; or name yours as the path column."
        )
    return found


def _find(part: Any, role: str, given: str | None, uri: str) -> str | None:
    names: list[str] = part.column_names
    if given is None:
        return next((name for name in KNOWN_COLUMNS[role] if name in names), None)
    if given in names:
        return given
    close = nearest(given, names)
    raise DatasetError(
        f"{uri}: no column '{given}' for the {role}. It has {some(names, 20)}."
        + (f" Did you mean '{close}'?" if close else "")
    )


def _only_class_label(part: Any) -> str | None:
    found = [n for n, kind in part.features.items() if type(kind).__name__ == "ClassLabel"]
    return found[0] if len(found) == 1 else None


def _texts(part: Any, column: str | None) -> list[str | None]:
    """A column as text; the number of a class becomes its name, and -1, for hidden, None."""
    if column is None:
        return [None] * len(part)
    values = part.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    names = getattr(part.features[column], "names", None)
    if names is None:
        return [text_of(value) for value in values]
    return [None if v is None or v < 0 else utf8(str(names[v])) for v in values]


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Reading a Hugging Face dataset", "datasets") from error
    library: ModuleType = datasets
    return library
