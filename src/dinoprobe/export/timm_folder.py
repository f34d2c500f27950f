"""A folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

For heads on one part: CLS is timm's `global_pool="token"`, the mean of the patches its `avg`, which
for DINOv3 comes behind the last norm (models/eva.py: use_fc_norm=False); a ConvNeXt's pooled output
is its only one. timm is not asked here, for it needs torchvision: the gate reads the folder back by
this package's reader of timm's files, and resizes by Pillow as the settings in config.json say.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.encoder import Encoder
from dinoprobe.encoder.formats import to_timm
from dinoprobe.encoder.weights import StoredTensors
from dinoprobe.errors import ConfigurationError
from dinoprobe.export.head_file import from_logits
from dinoprobe.export.transformers_folder import ABOUT
from dinoprobe.files import read_json, umask, write_json
from dinoprobe.heads import MultiLabelProbe
from dinoprobe.pooling import CLS, MEAN
from dinoprobe.preprocess import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.encoder.formats import TimmModel

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_POOLS = {CLS: "token", MEAN: "avg"}
_BATCH = 16
_ELSEWHERE = "Export to transformers or onnx."


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """Everything in `folder`, which is returned. Raises ConfigurationError for what timm has no
    place for: other architectures, two parts, padding.
    """
    import torch
    from safetensors.torch import save_file

    encoder, pool = classifier.encoder, _pool(classifier)
    head: Any = classifier.head
    if encoder.rope != "float32":
        msg = f"the encoder's rope is {encoder.rope}, and timm computes it in float32. {_ELSEWHERE}"
        raise ConfigurationError(msg)
    settings: Any = encoder.model.config
    model = to_timm(encoder.model.state_dict(), settings.to_dict())
    config = _config(classifier, model, pool)
    tensors = {
        **model.tensors,
        f"{model.head}.weight": torch.from_numpy(head.coef_.copy()),
        f"{model.head}.bias": torch.from_numpy(head.intercept_.copy()),
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o666 & ~umask())  # safetensors leaves it to its owner
    write_json(folder / CONFIG, config)
    write_json(folder / ABOUT, document)
    return folder


def _pool(classifier: ImageClassifier) -> str:
    """timm's word for the pooling. Raises ConfigurationError for one that it has not."""
    pooling, is_convnext = classifier.encoder.pooling, classifier.encoder.family.is_convnext
    if pooling in _POOLS and not (is_convnext and pooling != CLS):
        return "avg" if is_convnext else _POOLS[pooling]
    expected = "cls" if is_convnext else "cls or mean"
    msg = (
        f"pooling '{pooling}' has no place in timm's models, whose classifier reads one part, "
        f"expected {expected}. Train with --pooling cls, or export to transformers or onnx."
    )
    raise ConfigurationError(msg)


def _config(classifier: ImageClassifier, model: TimmModel, pool: str) -> dict[str, Any]:
    """config.json as timm's `save_config_for_hf` has it (models/_hub.py)."""
    encoder, count = classifier.encoder, len(classifier.classes)
    pools = {} if encoder.family.is_convnext else {"global_pool": pool}
    checkpoint = encoder.reference.checkpoint
    tag = checkpoint.timm[0].partition(".")[2] if checkpoint and checkpoint.timm else "dinov3"
    return {
        "architecture": model.architecture,
        "num_classes": count,
        "num_features": encoder.dimension,
        "global_pool": pool,
        "label_names": list(classifier.classes),
        "model_args": {**model.arguments, **pools},
        "pretrained_cfg": {
            "tag": tag,
            "custom_load": False,
            "fixed_input_size": not encoder.family.is_convnext,
            "num_classes": count,
            "first_conv": model.first,
            "classifier": model.head,
            **_preparation(encoder.preprocessing),
        },
    }


def _preparation(preprocessing: Preprocessing) -> dict[str, Any]:
    """What timm's evaluation transform goes by (data/transforms_factory.py)."""
    height, width = preprocessing.size
    edge = preprocessing.shortest_edge or height
    if preprocessing.resize == "pad" or (preprocessing.resize == "crop" and height != width):
        what = f"resize '{preprocessing.resize}' to {height}x{width}"
        msg = f"{what} is no transform of timm's. Train with --resize squash, or export to onnx."
        raise ConfigurationError(msg)
    if not math.isclose(preprocessing.rescale, 1 / 255):
        msg = f"pixels are scaled by {preprocessing.rescale}, and timm's by 1/255. {_ELSEWHERE}"
        raise ConfigurationError(msg)
    return {
        "input_size": [3, height, width],
        "interpolation": preprocessing.interpolation,
        "crop_pct": _share(height, edge) if preprocessing.resize == "crop" else 1.0,
        "crop_mode": "squash" if preprocessing.resize == "squash" else "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def _share(size: int, edge: int) -> float:
    """The largest share of which timm makes `edge` again: floor(size / share)."""
    share = size / edge
    return share if math.floor(size / share) == edge else math.nextafter(share, 0)


class Opened:
    """The folder as this package's reader of timm's files has it, in float32 on the CPU."""

    def __init__(self, folder: Path, preprocessing: Preprocessing, *, multilabel: bool) -> None:
        config = read_json(folder / CONFIG)
        self._settings = config["pretrained_cfg"]
        self._multilabel = multilabel
        stored = StoredTensors([folder / WEIGHTS])
        name = self._settings["classifier"]
        self._weight = stored[f"{name}.weight"].numpy()
        self._bias = stored[f"{name}.bias"].numpy()
        is_token = config["global_pool"] == "token" or name == "head.fc"
        self._encoder = Encoder.from_pretrained(
            str(folder),
            device="cpu",
            dtype="float32",
            backend="torch",
            pooling=CLS if is_token else MEAN,
            preprocessing=self._stated(preprocessing),
        )

    def _stated(self, preprocessing: Preprocessing) -> Preprocessing:
        """The statistics of config.json; the arithmetic is the classifier's."""
        return Preprocessing(
            size=tuple(self._settings["input_size"][1:]),
            mean=tuple(self._settings["mean"]),
            std=tuple(self._settings["std"]),
            arithmetic=preprocessing.arithmetic,
        )

    def of_prepared(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Probabilities of images `(n, 3, height, width)` as `prepare` gives them."""
        import torch

        starts = range(0, len(images), _BATCH)
        batches = (torch.from_numpy(images[start : start + _BATCH]) for start in starts)
        X = np.concatenate([self._encoder.encode(batch) for batch in batches])
        return from_logits(X @ self._weight.T + self._bias, multilabel=self._multilabel)

    def of_decoded(self, images: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Probabilities of images `(height, width, 3)` of any size, one by one."""
        prepared = np.stack([_transformed(image, self._settings) for image in images])
        if self._encoder.preprocessing.arithmetic == "exact":
            return self.of_prepared(prepared.astype(np.float32) * np.float32(1 / 255))
        return self.of_prepared(prepared)


def _transformed(pixels: npt.NDArray[np.uint8], settings: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """`(3, height, width)` by what torchvision's Resize and CenterCrop make of a Pillow image."""
    from PIL import Image

    _, height, width = settings["input_size"]
    wide, high = (math.floor(side / settings["crop_pct"]) for side in (width, height))
    if settings["crop_mode"] == "center":
        short = min(pixels.shape[:2])
        high, wide = (int(high * side / short) for side in pixels.shape[:2])
    how = Image.Resampling[settings["interpolation"].upper()]
    whole = Image.fromarray(pixels).resize((wide, high), how)
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return np.asarray(whole.crop((left, top, left + width, top + height))).transpose(2, 0, 1)


def opened(folder: Path, classifier: ImageClassifier) -> Opened:
    """What was written, read back."""
    several = isinstance(classifier.head, MultiLabelProbe)
    return Opened(folder, classifier.encoder.preprocessing, multilabel=several)
