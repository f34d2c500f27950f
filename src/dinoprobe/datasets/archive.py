"""Archives as datasets: one zip or tar, or many shards, in class folders or in WebDataset layout.

In WebDataset layout an image is `000123.jpg` and its label is in `000123.cls`, `.json` or `.txt`
beside it (github.com/webdataset/webdataset: the key is the name up to its first dot).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dinoprobe.datasets.ignored import Ignored
from dinoprobe.datasets.layout import (
    Entry,
    arrange,
    classes_of,
    one_sided,
    split_folders,
    unique_keys,
    unwrap,
)
from dinoprobe.datasets.location import is_remote, local_path, not_found
from dinoprobe.datasets.member import SIDECAR_SUFFIXES
from dinoprobe.datasets.names import NOT_AN_IMAGE, amount, utf8
from dinoprobe.datasets.tars import list_tar
from dinoprobe.datasets.zips import list_zip
from dinoprobe.errors import DatasetError
from dinoprobe.types import Dataset, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dinoprobe.datasets.member import Members
    from dinoprobe.types import Split

_JSON_NAMES = ("label", "class", "target", "cls")


def open_archives(
    shards: Sequence[tuple[str, str]], uri: str, *, ignored: Ignored | None = None
) -> Dataset:
    """All images in these archives, given as `(name, place)`. One name may be empty if it is alone.

    When the names are `<split>/x.tar`, the folders are the splits. Raises DatasetError when an
    archive can not be read or when there is no image in any.
    """
    listed = [(name, list_archive(place)) for name, place in shards]
    ignored = ignored or Ignored()
    for name, members in listed:
        ignored.update(members.ignored, f"{name}/" if name else "")
    if not any(members.images for _, members in listed):
        found = f"only {ignored}" if ignored.counts else "it is empty"
        raise DatasetError(
            f"{uri}: no images in the archive, {found}. "
            "Expected <class>/image.jpg, or 0001.jpg next to 0001.cls, .json or .txt."
        )
    labels = [_labels(members, ignored) for _, members in listed]
    named = any(label is not None for shard in labels for label in shard)
    samples, notes = _by_sidecar(listed, labels) if named else _by_folder(listed)
    folders = split_folders({name.partition("/")[0] if "/" in name else "" for name, _ in listed})
    if folders:
        samples = _with_splits(samples, listed, folders)
    return Dataset(
        uri=uri,
        samples=samples,
        classes=classes_of(samples),
        ignored=dict(ignored.counts),
        ignored_files=ignored.files,
        notes=(*_notes(listed), *notes, *(one_sided(samples) if named or folders else ())),
    )


def list_archive(place: str) -> Members:
    """The members of one archive. Raises DatasetError."""
    import os

    if not is_remote(place) and not os.path.exists(local_path(place)):  # noqa: PTH110
        raise not_found(place)
    return list_zip(place) if place.lower().endswith(".zip") else list_tar(place)


def _by_folder(listed: Sequence[tuple[str, Members]]) -> tuple[list[Sample], list[str]]:
    images = [(name, image) for name, members in listed for image in members.images]
    paths, wrapper = unwrap([image.path for _, image in images])
    entries = [
        Entry(path, image.source, _key(name, image.path))
        for path, (name, image) in zip(paths, images, strict=True)
    ]
    samples, notes = arrange(entries)
    if wrapper is not None:
        notes.insert(0, f"Everything is in the folder '{utf8(wrapper)}'; classes start below it.")
    return samples, notes


def _by_sidecar(
    listed: Sequence[tuple[str, Members]], labels: Sequence[Sequence[str | None]]
) -> tuple[list[Sample], list[str]]:
    images = [(name, image) for name, members in listed for image in members.images]
    flat = [label for shard in labels for label in shard]
    keys, notes = unique_keys(_key(name, image.path) for name, image in images)
    samples = [
        Sample(key, image.source, label)
        for key, (_, image), label in zip(keys, images, flat, strict=True)
    ]
    if missing := flat.count(None):
        notes.append(f"{amount(missing, 'image has', 'images have')} no label file beside it.")
    return samples, notes


def _key(shard: str, path: str) -> str:
    return f"{shard}/{path}" if shard else path


def _labels(members: Members, ignored: Ignored) -> list[str | None]:
    """One label per image out of the files beside it; text files of no use are counted."""
    beside = {stem for image in members.images for stem in (_stem(image.path), _base(image.path))}
    known: dict[str, str] = {}
    for suffix in reversed(SIDECAR_SUFFIXES):
        for path, text in members.sidecars.items():
            if not path.lower().endswith(suffix):
                continue
            label = label_in(text, is_json=suffix == ".json")
            if label is None or path[: -len(suffix)] not in beside:
                ignored.add(path, NOT_AN_IMAGE)
            else:
                known[path[: -len(suffix)]] = label
    return [known.get(_stem(image.path), known.get(_base(image.path))) for image in members.images]


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _base(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def label_in(text: bytes, *, is_json: bool) -> str | None:
    """The label in a file beside an image: one line of text, or a field of a JSON object."""
    content = utf8(text.decode("utf-8", "surrogateescape")).strip()
    if is_json:
        try:
            value = json.loads(content)
        except ValueError:
            return None
        if isinstance(value, dict):
            value = next((value[name] for name in _JSON_NAMES if name in value), None)
        content = str(value).strip() if isinstance(value, str | int) else ""
    return content if content and "\n" not in content else None


def _with_splits(
    samples: list[Sample], listed: Sequence[tuple[str, Members]], folders: Mapping[str, Split]
) -> list[Sample]:
    splits = [folders[name.partition("/")[0]] for name, members in listed for _ in members.images]
    return [sample._replace(split=s) for sample, s in zip(samples, splits, strict=True)]


def _notes(listed: Sequence[tuple[str, Members]]) -> list[str]:
    notes = [note for _, members in listed for note in members.notes]
    if outside := sum(members.outside for _, members in listed):
        notes.append(
            f"{amount(outside, 'name points', 'names point')} outside the archive ('..' or '/'); "
            "nothing is unpacked, and the keys leave that out."
        )
    return notes
