"""Files that decode and are odd all the same, and the thumbnails by which copies are found.

Each file is read once more, for features do not tell what it is; of equal files one is decoded.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dinoprobe.audit.finding import Finding
from dinoprobe.errors import ImageError
from dinoprobe.likeness import BLANK
from dinoprobe.preprocess import image_facts
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt
    import torch

    from dinoprobe.preprocess import ImageFacts
    from dinoprobe.types import Features, Sample

SMALLEST_SIDE_PX = 32
LARGEST_PIXELS = 50_000_000
EXTREME_SHAPE = 4.0
UNUSUAL_SHARE = 0.05
_SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"), "PNG": ("png", "apng"), "WebP": ("webp",),
    "GIF": ("gif",), "BMP": ("bmp", "dib"), "TIFF": ("tif", "tiff"), "AVIF": ("avif", "avifs"),
    "HEIF": ("heic", "heif", "heics", "heifs", "hif"),
}  # fmt: skip
_KNOWN = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes}


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is known of the files: facts by content hash, and how to read a row's pixels.

    `read` is None, or gives `(3, height, width)` of a row, None where it can not any more.
    """

    facts: Mapping[str, ImageFacts] = field(default_factory=dict)
    read: Callable[[int], torch.Tensor | None] | None = None


def facts_of(
    features: Features, samples: Mapping[str, Sample], *, bands: tuple[int, ...] | None = None
) -> dict[str, ImageFacts]:
    """The facts of each different file; files that changed or vanished meanwhile are left out."""
    first = {name: key for key, name in zip(features.keys, features.hashes, strict=True)}

    def look(key: str) -> ImageFacts | None:
        try:
            return image_facts(samples[key].source.read(), bands=bands)
        except (ImageError, OSError):
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = zip(first, pool.map(look, first.values()), strict=True)
        return {name: facts for name, facts in found if facts is not None}


def failed_files(features: Features) -> list[Finding]:
    """One finding for each file that could not be used."""
    return [
        Finding(
            kind="unusable", severity="medium", key=f.key, related=f.kind,
            reason=f"{f.kind}: {f.reason}",
        )
        for f in features.failures
    ]  # fmt: skip


def odd_files(features: Features, facts: Mapping[str, ImageFacts]) -> list[Finding]:
    """One finding for each thing that is odd about a file."""
    rows = [(row, facts[name]) for row, name in enumerate(features.hashes) if name in facts]
    unusual = _unusual_colours(fact for _, fact in rows)
    found = []
    for row, fact in rows:
        key, label, split = features.keys[row], features.y[row], features.splits[row]
        for kind, severity, score, reason in _odd(key, fact, unusual):
            found.append(
                Finding(
                    kind=kind, severity=severity, score=score, reason=reason,
                    key=key, label=label, split=split,
                )
            )  # fmt: skip
    return found


def _unusual_colours(facts: Iterable[ImageFacts]) -> dict[str, str]:
    """Colours that few of the files have, with a sentence for each."""
    counts = Counter(fact.colours for fact in facts)
    total = sum(counts.values())
    usual = max(counts, key=lambda name: counts[name], default="")
    return {
        name: f"{name}, as {count:,} of {total:,} files are; most are {usual}"
        for name, count in counts.items()
        if count < UNUSUAL_SHARE * total
    }


def _odd(
    key: str, fact: ImageFacts, unusual: Mapping[str, str]
) -> list[tuple[str, str, float | None, str]]:
    """Kind, severity, score and reason of what is odd."""
    size = f"{fact.width} x {fact.height} pixels"
    short, long = sorted((fact.width, fact.height))
    found: list[tuple[str, str, float | None, str]] = []
    if fact.deviation < 255 * BLANK:
        found.append(("blank", "medium", None, "nearly one colour all over"))
    suffix = PurePosixPath(key).suffix[1:].lower()
    if fact.format and _KNOWN.get(suffix, fact.format) != fact.format:
        found.append(("extension", "low", None, f"a {fact.format} file that is named .{suffix}"))
    if short < SMALLEST_SIDE_PX:
        found.append(("small", "low", 1 - short / SMALLEST_SIDE_PX, size))
    if fact.width * fact.height > LARGEST_PIXELS:
        found.append(("large", "low", fact.width * fact.height / LARGEST_PIXELS, size))
    if long >= EXTREME_SHAPE * short:
        found.append(("elongated", "low", long / short, f"{size}, {long / short:.1f} to 1"))
    if fact.colours in unusual:
        found.append(("colours", "low", None, unusual[fact.colours]))
    if fact.more_frames:
        found.append(("animated", "low", None, "an animation, or a file with pages"))
    return found


def thumbnails_of(names: Sequence[str], facts: Mapping[str, ImageFacts]) -> npt.NDArray[np.uint8]:
    """The thumbnails `(n, 32, 32, 3)` of these content hashes."""
    return np.stack([facts[name].thumbnail for name in names])
