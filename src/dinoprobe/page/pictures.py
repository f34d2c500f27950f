"""Small pictures of the dataset's images, decoded once and kept up to so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, final

from dinoprobe.errors import ImageError
from dinoprobe.preprocess import thumbnail
from dinoprobe.processor import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dinoprobe.types import Sample

SIZES_PX = (128, 640)
CACHE_BYTES = 64 << 20


@final
class Pictures:
    """JPEGs by key and size. A key opens what the dataset lists under it, and nothing else.

    At most as many images are decoded at a time as there are cores.
    """

    def __init__(
        self,
        samples: Mapping[str, Sample],
        bands: tuple[int, ...] | None,
        *,
        max_bytes: int = CACHE_BYTES,
    ) -> None:
        self._samples, self._bands, self._max_bytes = samples, bands, max_bytes
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock, self._decoding = Lock(), BoundedSemaphore(usable_cores())
        self.size_bytes = 0

    def get(self, key: str, size_px: int) -> bytes:
        """A JPEG of at most `size_px` on its longest side.

        Raises KeyError for what is not in the dataset, ImageError for what can not be shown.
        """
        with self._lock:
            if (found := self._kept.get((key, size_px))) is not None:
                self._kept.move_to_end((key, size_px))
                return found
        sample = self._samples[key]
        with self._decoding:
            try:
                made = thumbnail(sample.source.read(), size_px, bands=self._bands)
            except OSError as error:
                message = f"{key}: can not be read any more ({error}). Put it back."
                raise ImageError(message, "unreadable") from error
        self._keep((key, size_px), made)
        return made

    def _keep(self, name: tuple[str, int], picture: bytes) -> None:
        with self._lock:
            self.size_bytes += len(picture) - len(self._kept.pop(name, b""))
            self._kept[name] = picture
            while self.size_bytes > self._max_bytes:
                self.size_bytes -= len(self._kept.popitem(last=False)[1])
