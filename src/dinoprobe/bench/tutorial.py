"""The loop that tutorials show: Pillow, the processor's float arithmetic, plain transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from dinoprobe.encoder import Encoder

BATCH = 32


def tutorial_features(paths: Sequence[str], encoder: Encoder) -> npt.NDArray[np.float32]:
    """Features of the files by the plain way, with the encoder's own model, statistics and pooling.

    The encoder must be in float32 and squash its images, as DINOv3's processor does.
    """
    import numpy as np
    import torch

    rows = []
    for start in range(0, len(paths), BATCH):
        batch = torch.stack([_pixels(path, encoder) for path in paths[start : start + BATCH]])
        with torch.no_grad():
            rows.append(encoder.plain(batch.to(encoder.device)).cpu().numpy())
    return np.concatenate(rows)


def _pixels(path: str, encoder: Encoder) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL import Image

    preprocessing = encoder.preprocessing
    with Image.open(path) as file:
        picture = torch.from_numpy(np.array(file.convert("RGB")))
    image = picture.permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(
        image, size=preprocessing.size, mode="bilinear", antialias=True
    )[0]
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return (image - mean) / std
