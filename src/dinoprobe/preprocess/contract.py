"""`Preprocessing`: everything that decides which numbers an encoder sees for an image.

Frozen, JSON in and out, with a digest: two features are comparable only where the digests are
equal. The default is what the DINOv3 processor does, with an 8-bit antialiased resize in place of
its float one: 2.2 times faster, at most 1 grey level apart.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from dinoprobe.catalog import IMAGENET_MEAN, IMAGENET_STD
from dinoprobe.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]
Arithmetic = Literal["uint8", "exact"]

VERSION = 1
MAX_SIZE_PX = 8192

_CHOICES = {"resize": Resize, "interpolation": Interpolation, "arithmetic": Arithmetic}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a decoded image to pixel values. Sides are in pixels.

    `size` is (height, width). `resize` is "squash" (as the DINOv3 processor does), "crop" (shortest
    edge, then centre crop) or "pad" (longest edge, then the mean colour around it). `shortest_edge`
    is what "crop" resizes to where that differs from `size`, such as 256 for a crop of 224.
    `arithmetic` "exact" is the processor's float32, bit for bit. `bands` are the three bands,
    counted from 1, that stand for red, green and blue in an image with more than three.
    Raises ConfigurationError for values that can not work.
    """

    size: tuple[int, int] = (224, 224)
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"
    arithmetic: Arithmetic = "uint8"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rescale: float = 1 / 255
    bands: tuple[int, ...] | None = None
    shortest_edge: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            _check_choice(name, getattr(self, name), get_args(kind))
        _check_size(self.size)
        _check_edge(self)
        _check_statistics(self)
        _check_bands(self.bands)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, patch_size: int | None = None
    ) -> Preprocessing:
        """Reads a preprocessor_config.json; an empty one gives the DINOv3 processor's defaults.

        Raises FormatError that names every key or value which this package can not reproduce.
        """
        from dinoprobe.preprocess.config import read_config

        values = read_config(config)
        try:
            preprocessing = cls(**values)
            check_patches(preprocessing.size, patch_size)
        except ConfigurationError as error:
            raise FormatError(f"preprocessor_config.json: {error}") from error
        return preprocessing

    def with_options(
        self,
        *,
        size: int | None = None,
        resize: str | None = None,
        exact: bool | None = None,
        bands: tuple[int, ...] | None = None,
        patch_size: int | None = None,
    ) -> Preprocessing:
        """The same with a user's options in place; None leaves a value as it is.

        Raises ConfigurationError; for a size that patches do not tile it names the nearest.
        """
        changes: dict[str, Any] = {}
        if size is not None:
            check_patches((size, size), patch_size)
            changes["size"] = (size, size)
            changes["shortest_edge"] = _scaled_edge(self, size)
        if resize is not None and resize != self.resize:
            changes |= {"resize": resize, "shortest_edge": None}
        if exact is not None:
            changes["arithmetic"] = "exact" if exact else "uint8"
        if bands is not None:
            changes["bands"] = tuple(bands)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Raises FormatError for another version or an unknown key."""
        if not hasattr(values, "keys"):
            raise FormatError(
                f"preprocessing is a {type(values).__name__}; expected an object. {_SAVE_AGAIN}"
            )
        if values.get("version") != VERSION:
            raise FormatError(
                f"preprocessing has version {values.get('version')!r}; this release reads version "
                f"{VERSION}. Use the release that wrote it, or save it again."
            )
        known = {field.name for field in fields(cls)}
        wrong = sorted(set(values) ^ known)
        if wrong:
            raise FormatError(
                f"preprocessing has unknown or missing keys {', '.join(map(str, wrong))}; expected "
                f"{', '.join(sorted(known))}. {_SAVE_AGAIN}"
            )
        try:
            read: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
            return cls(**read)
        except (ConfigurationError, TypeError, ValueError) as error:
            raise FormatError(f"preprocessing can not be used: {error}") from error

    def digest(self) -> str:
        """16 hex digits over everything that changes the numbers."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_SAVE_AGAIN = "It was damaged or written by another program: save it again."


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")


def _check_size(size: tuple[int, int]) -> None:
    usable = (
        isinstance(size, tuple)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= MAX_SIZE_PX for side in size)
    )
    if not usable:
        raise ConfigurationError(
            f"size is {size!r}; expected (height, width) of 1 to {MAX_SIZE_PX} pixels each. "
            "Most checkpoints are best at 224 to 512."
        )


def _check_edge(preprocessing: Preprocessing) -> None:
    edge, size = preprocessing.shortest_edge, preprocessing.size
    if edge is None:
        return
    if preprocessing.resize != "crop":
        raise ConfigurationError(
            f"shortest_edge is {edge!r} with resize {preprocessing.resize!r}; only resize 'crop' "
            "has one. Leave it out, or choose resize 'crop'."
        )
    if type(edge) is not int or not max(size) <= edge <= MAX_SIZE_PX:
        raise ConfigurationError(
            f"shortest_edge is {edge!r}; expected {max(size)} to {MAX_SIZE_PX}, so that the crop "
            f"of {size[0]}x{size[1]} fits. Raise it, or leave it out."
        )


def _check_statistics(preprocessing: Preprocessing) -> None:
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        if not (isinstance(values, tuple) and len(values) == 3 and all(map(_finite, values))):
            raise ConfigurationError(
                f"{name} is {values!r}; expected three finite numbers, for red, green and blue."
            )
    if min(preprocessing.std) <= 0 or not _finite(preprocessing.rescale):
        raise ConfigurationError(
            f"std is {preprocessing.std!r} and rescale {preprocessing.rescale!r}; "
            "expected numbers above 0."
        )
    if preprocessing.rescale <= 0:
        raise ConfigurationError(
            f"rescale is {preprocessing.rescale!r}; expected a number above 0, usually 1/255."
        )


def _finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")  # type: ignore[arg-type]


def _check_bands(bands: tuple[int, ...] | None) -> None:
    if bands is None:
        return
    usable = isinstance(bands, tuple) and len(bands) == 3
    if not usable or not all(type(band) is int and band >= 1 for band in bands):
        raise ConfigurationError(
            f"bands are {bands!r}; expected three numbers counted from 1, for red, green and blue. "
            "Say for example --bands 4,3,2."
        )


def check_patches(size: tuple[int, int], patch_size: int | None) -> None:
    """Raise ConfigurationError, with the nearest sizes, where patches do not tile this one."""
    if not patch_size or all(side % patch_size == 0 for side in size):
        return
    side = next(side for side in size if side % patch_size)
    below, above = side // patch_size * patch_size, (side // patch_size + 1) * patch_size
    nearest = " or ".join(str(near) for near in (below, above) if near)
    raise ConfigurationError(
        f"size {side} is not a multiple of the encoder's patch size {patch_size}. "
        f"The nearest that work: {nearest}."
    )


def _scaled_edge(preprocessing: Preprocessing, size: int) -> int | None:
    """The shortest edge that keeps the crop's share of the image at another size."""
    if preprocessing.shortest_edge is None:
        return None
    return max(size, round(preprocessing.shortest_edge * size / max(preprocessing.size)))
