"""What zip and tar have in common: members, safe names, and what an archive's listing holds.

Members are read from the archive into memory, never unpacked to disk; so a member called
`../../x.jpg` can overwrite nothing. Its key has no `..` all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dinoprobe.datasets.ignored import Ignored
from dinoprobe.datasets.names import NOT_AN_IMAGE, is_image_name, noise_in

if TYPE_CHECKING:
    from dinoprobe.types import Source

MEMBER_LIMIT_BYTES = 256 * 2**20
SIDECAR_LIMIT_BYTES = 64 * 2**10
SIDECAR_SUFFIXES = (".cls", ".json", ".txt")


class Member(NamedTuple):
    """An image in an archive, by its cleaned path."""

    path: str
    source: Source


@dataclass(slots=True)
class Members:
    """Images in the order of the archive, and small text files that may hold their labels."""

    images: list[Member] = field(default_factory=list)
    sidecars: dict[str, bytes] = field(default_factory=dict)
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)
    outside: int = 0

    def wants(self, path: str, size_bytes: int) -> str | None:
        """'image', 'sidecar', or None for a member that is counted as ignored."""
        if reason := noise_in(path):
            self.ignored.add(path, reason)
        elif is_image_name(path):
            return "image"
        elif path.lower().endswith(SIDECAR_SUFFIXES) and size_bytes <= SIDECAR_LIMIT_BYTES:
            return "sidecar"
        else:
            self.ignored.add(path, NOT_AN_IMAGE)
        return None

    def clean(self, name: str) -> str:
        """The member's path with slashes, without a drive, `.`, `..` or a leading slash."""
        parts = name.replace("\\", "/").split("/")
        kept = [part for part in parts if part not in ("", ".", "..")]
        if name.startswith(("/", "\\")) or ".." in parts:
            self.outside += 1
        return "/".join(kept)
