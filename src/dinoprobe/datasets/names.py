"""What a file's name says: image, table, archive, split, or noise. Suffixes match in any case.

Names decide, not contents: opening each of 200,000 files to look at its first bytes would take
minutes. What is not an image in spite of its name becomes a failure when it is decoded.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dinoprobe.types import Split

# fmt: off
IMAGE_SUFFIXES = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff",
    "avif", "avifs", "heic", "heif", "heics", "heifs", "hif", "mpo", "jp2", "j2k", "jpx", "ppm",
    "pgm", "pbm", "pnm", "pcx", "tga", "ico", "qoi", "sgi",
})
# fmt: on
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
PLAIN_TAR_SUFFIXES = (".tar",)
PACKED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVE_SUFFIXES = (".zip", *PLAIN_TAR_SUFFIXES, *PACKED_TAR_SUFFIXES)

HIDDEN = "hidden"
SYSTEM = "left by an operating system"
NOT_AN_IMAGE = "not an image by name"
NOT_A_FILE = "not a regular file"

_SYSTEM_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", ".ds_store"})
_SPLITS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def split_named(name: str) -> Split | None:
    """The split that this word stands for, or None."""
    return _SPLITS.get(name.strip().casefold())


def is_image_name(name: str) -> bool:
    """Whether the suffix is one of an image format."""
    return name[name.rfind(".") + 1 :].lower() in IMAGE_SUFFIXES and "." in name


def is_table(name: str) -> bool:
    """Whether the suffix is one of a table that can be read."""
    return name.lower().endswith(TABLE_SUFFIXES)


def is_archive(name: str) -> bool:
    """Whether the suffix is one of an archive that can be read."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def noise(name: str) -> str | None:
    """Why a file or folder of this name is passed over, or None. Suffixes are not looked at."""
    if name.lower() in _SYSTEM_NAMES or name.startswith("._"):
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


def noise_in(path: str) -> str | None:
    """Like `noise`, for a path with slashes: the first part that says so decides."""
    for part in path.split("/"):
        reason = noise(part)
        if reason:
            return reason
    return None


def utf8(name: str) -> str:
    r"""The name as valid UTF-8: a byte that is none, such as 0xff, becomes `\xff`."""
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        return _bytes_of(name).decode("utf-8", "backslashreplace")
    return name


def _bytes_of(name: str) -> bytes:
    """The bytes behind a name: of a file system, or, as JSON allows, of a lone surrogate."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def unique(keys: Sequence[str]) -> tuple[list[str], int]:
    """The keys with `#2`, `#3` after repeated ones, and how many were changed."""
    if len(set(keys)) == len(keys):
        return list(keys), 0
    taken = set(keys)
    seen: dict[str, int] = {}
    result, changed = [], 0
    for key in keys:
        count = seen.get(key, 0) + 1
        candidate = key
        while count > 1 and (candidate := f"{key}#{count}") in taken:
            count += 1
        seen[key] = count
        taken.add(candidate)
        changed += candidate != key
        result.append(candidate)
    return result, changed


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice spelt most like `name`, in any case, or None when nothing is close."""
    folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def some(names: Iterable[str], limit: int = 5) -> str:
    """`'a', 'b' and 7 more`, for messages."""
    listed = [repr(utf8(name)) for name in names]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def amount(count: int, one: str, many: str) -> str:
    """`1 image`, `12 images`."""
    return f"{count:,} {one if count == 1 else many}"
