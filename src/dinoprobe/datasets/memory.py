"""Images that are in memory already: bytes, arrays, PIL images, tensors.

They are kept by reference and turned into bytes or an array only when they are read, so a long list
of PIL images costs no second copy.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeGuard, final

from dinoprobe.datasets.location import only_oserror
from dinoprobe.errors import DatasetError
from dinoprobe.types import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_TIFF_MODES = frozenset({"CMYK", "YCbCr", "LAB", "F", "I"})
_BANDS = (1, 3, 4)


@final
class BytesSource(Source):
    """An encoded file in memory."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> bytes:
        """The bytes."""
        return self.data


@final
class ArraySource(Source):
    """Pixels, `(height, width)` or `(height, width, bands)`, kept by reference."""

    __slots__ = ("pixels",)

    def __init__(self, pixels: npt.NDArray[np.generic]) -> None:
        self.pixels = pixels

    def read(self) -> npt.NDArray[np.generic]:
        """The pixels."""
        return self.pixels


@final
class TensorSource(Source):
    """A torch tensor, `(bands, height, width)` or `(height, width)`, on any device."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def read(self) -> npt.NDArray[np.generic]:
        """The pixels as `(height, width, bands)` or `(height, width)`; bfloat16 as float32."""
        with only_oserror("tensor"):
            tensor = self.tensor.detach().cpu()
            tensor = tensor.movedim(0, -1) if tensor.ndim == 3 else tensor
            pixels: npt.NDArray[np.generic] = (
                tensor.float().numpy() if "float16" in str(tensor.dtype) else tensor.numpy()
            )
            return pixels


@final
class PilSource(Source):
    """A PIL image. Read as a lossless file, so palettes and alpha are handled in one place."""

    __slots__ = ("image",)

    def __init__(self, image: Image) -> None:
        self.image = image

    def read(self) -> bytes:
        """A PNG, or a TIFF for the modes that PNG lacks; turned upright as EXIF says."""
        from PIL import ImageOps

        with only_oserror("PIL image"):
            image = ImageOps.exif_transpose(self.image)
            if image.mode not in _PNG_MODES | _TIFF_MODES:
                image = image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")
            buffer = io.BytesIO()
            if image.mode in _PNG_MODES:
                image.save(buffer, "PNG", compress_level=1)
            else:
                image.save(buffer, "TIFF")
            return buffer.getvalue()


def is_array(value: object) -> TypeGuard[npt.NDArray[Any]]:
    """Whether this is a numpy array. numpy is not imported to find out."""
    return _class_from(value, "numpy", "ndarray")


def is_tensor(value: object) -> bool:
    """Whether this is a torch tensor. torch is not imported to find out."""
    return _class_from(value, "torch", "Tensor")


def is_pil(value: object) -> TypeGuard[Image]:
    """Whether this is a PIL image."""
    return _class_from(value, "PIL.Image", "Image")


def _class_from(value: object, module: str, name: str) -> bool:
    return any(
        base.__name__ == name and (base.__module__ + ".").startswith(module + ".")
        for base in type(value).__mro__
    )


def is_pixels(value: object) -> bool:
    """Whether this is an array or a tensor of numbers, and not, say, an array of paths."""
    return is_tensor(value) or (is_array(value) and value.dtype.kind in "buif")


def source_of(value: object, index: int) -> Source:
    """The source of one image in memory. Raises DatasetError for another type or shape."""
    if isinstance(value, bytes | bytearray | memoryview):
        return BytesSource(bytes(value))
    if is_pil(value):
        return PilSource(value)
    if is_tensor(value):
        return TensorSource(_checked_tensor(value, index))
    if is_array(value):
        return ArraySource(_checked_array(value, index))
    raise DatasetError(
        f"Image {index} is a {type(value).__name__}. Expected a path, bytes, a PIL image, an array "
        "(height, width, bands) or a tensor (bands, height, width)."
    )


def _checked_array(array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
    shape = array.shape
    if len(shape) == 3 and shape[0] in _BANDS and shape[-1] not in _BANDS and min(shape[1:]) > 4:
        raise DatasetError(
            f"Image {index} has the shape {shape}, bands first. Expected (height, width, bands) "
            "for an array: use numpy.moveaxis(image, 0, -1), or give a torch tensor."
        )
    if len(shape) not in (2, 3) or 0 in shape or array.dtype.kind not in "buif":
        raise DatasetError(
            f"Image {index} is an array of shape {shape} and type {array.dtype}. Expected numbers "
            "as (height, width) or (height, width, bands)."
        )
    return array


def _checked_tensor(tensor: Any, index: int) -> Any:
    shape = tuple(tensor.shape)
    if len(shape) == 3 and shape[-1] in _BANDS and shape[0] not in _BANDS and min(shape[:2]) > 4:
        raise DatasetError(
            f"Image {index} has the shape {shape}, bands last. Expected (bands, height, width) for "
            "a tensor: use tensor.permute(2, 0, 1), or give a numpy array."
        )
    if len(shape) not in (2, 3) or 0 in shape:
        raise DatasetError(
            f"Image {index} is a tensor of shape {shape}. Expected (bands, height, width) or "
            "(height, width)."
        )
    return tensor


def rows_of(images: Any, count: int | None = None) -> list[Any]:
    """The images of a batch, or of a sequence.

    Pixels are a batch with four axes, or with three when `count` labels belong to the first.
    """
    if is_pixels(images) and images.ndim != 4 and not (images.ndim == 3 and len(images) == count):
        return [images]
    return list(images)


def labels_of(labels: Any, count: int) -> list[str | None]:
    """Labels as text, one for each image. Raises DatasetError when there are more or fewer."""
    from dinoprobe.datasets.table import text_of

    values: Sequence[Any] = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(values) != count:
        raise DatasetError(
            f"{len(values):,} labels for {count:,} images. Expected one label for each image."
        )
    return [text_of(value.item() if hasattr(value, "item") else value) for value in values]
