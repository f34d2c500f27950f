"""A folder that transformers loads: encoder, head and processor.

A ConvNeXt becomes transformers' own ConvNextForImageClassification, for DINOv3's pooled output is
that model's; DINOv2 and plain ViTs have classes of their own, too. For DINOv3's ViT the class is
this package's (`vit_classifier`), found by `pipeline` after `import dinoprobe`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import ConfigurationError
from dinoprobe.files import umask, write_json
from dinoprobe.heads import MultiLabelProbe
from dinoprobe.pooling import CLS, MEAN, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt
    import torch

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.preprocess import Preprocessing

ABOUT = "dinoprobe.json"


@dataclass(frozen=True, slots=True)
class _Layout:
    """The class, where the encoder's tensors go in it, and what its classifier stands on."""

    class_name: str
    prefix: str
    parts: tuple[str, ...] = (CLS, MEAN)
    renamed: tuple[tuple[str, str], ...] = ()

    def rename(self, name: str) -> str:
        """The name of an encoder's tensor in the classifier."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return f"{self.prefix}.{name}"


_CONVNEXT = (
    (r"^model\.stages\.0\.downsample_layers\.0\.", "embeddings.patch_embeddings."),
    (r"^model\.stages\.0\.downsample_layers\.1\.", "embeddings.layernorm."),
    (r"^model\.stages\.(\d+)\.downsample_layers\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^model\.stages\.", "encoder.stages."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"layer_norm\.", "layernorm."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.gamma$", ".layer_scale_parameter"),
)
_LAYOUTS = {
    "dinov3_vit": _Layout("DINOv3ViTForImageClassification", "dinov3"),
    "dinov3_convnext": _Layout("ConvNextForImageClassification", "convnext", (CLS,), _CONVNEXT),
    "dinov2": _Layout("Dinov2ForImageClassification", "dinov2"),
    "dinov2_with_registers": _Layout(
        "Dinov2WithRegistersForImageClassification", "dinov2_with_registers"
    ),
    "vit": _Layout("ViTForImageClassification", "vit", (CLS,)),
}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """Everything in `folder`, which is returned. Raises ConfigurationError for what has no place in
    transformers' layouts: a pooling of several blocks, padding.
    """
    encoder = classifier.encoder
    layout = _LAYOUTS[encoder.model_type]
    processor = _processor(encoder.preprocessing)
    weight = _spread(classifier, layout)
    model = _model_class(layout)(_config(classifier, layout))
    _fill(model, classifier, layout, weight)
    with _quiet():
        model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o666 & ~umask())  # safetensors leaves it to its owner
    write_json(folder / "preprocessor_config.json", processor)
    write_json(folder / ABOUT, document)
    return folder


def opened(folder: Path) -> Any:
    """transformers' pipeline of a folder, on the CPU."""
    from transformers import pipeline

    from dinoprobe.registration import register_when_loaded

    register_when_loaded()
    with _quiet():
        return pipeline("image-classification", model=str(folder), device="cpu")


def by_pipeline(pipe: Any, images: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[Any]:
    """What it says of images `(height, width, 3)`, in the order of the classes."""
    from PIL import Image

    names = [pipe.model.config.id2label[i] for i in range(pipe.model.config.num_labels)]
    rows = []
    for pixels in images:
        found = pipe(Image.fromarray(pixels), top_k=len(names))
        by_name = {answer["label"]: answer["score"] for answer in found}
        rows.append([by_name[name] for name in names])
    return np.array(rows, dtype=np.float64)


def by_model(pipe: Any, images: npt.NDArray[Any], preprocessing: Preprocessing) -> npt.NDArray[Any]:
    """What its model says of images `(n, 3, height, width)` as `prepare` gives them."""
    import torch

    from dinoprobe.preprocess import to_pixel_values

    rows = []
    with torch.inference_mode():
        for image in images:
            pixels = torch.from_numpy(image[None])
            values = to_pixel_values(pixels, preprocessing, dtype=torch.float32, device="cpu")
            logits = pipe.model(pixel_values=values).logits.double()
            several = pipe.model.config.problem_type == "multi_label_classification"
            rows.append((logits.sigmoid() if several else logits.softmax(dim=1)).numpy())
    return np.concatenate(rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars, which tell of a second's work."""
    from transformers.utils import logging

    was_active = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_active:
            logging.enable_progress_bar()


def _model_class(layout: _Layout) -> Any:
    if layout.prefix == "dinov3":
        from dinoprobe.export.vit_classifier import DINOv3ViTForImageClassification

        return DINOv3ViTForImageClassification
    import transformers

    return getattr(transformers, layout.class_name)


def _config(classifier: ImageClassifier, layout: _Layout) -> Any:
    """The encoder's own, with the labels; a ConvNeXt's in transformers' words."""
    from copy import deepcopy

    encoder = classifier.encoder
    config: Any = deepcopy(encoder.model.config)
    height, width = encoder.preprocessing.size
    if layout.prefix == "vit" and (config.image_size not in (height, [height, width])):
        msg = (
            f"the encoder is a plain ViT made for {config.image_size} px, and transformers' "
            f"pipeline takes no {height}x{width}. Train without --size, or export to onnx."
        )
        raise ConfigurationError(msg)
    if layout.prefix == "convnext":
        from transformers import ConvNextConfig

        shared = ("num_channels", "hidden_sizes", "depths", "hidden_act", "layer_norm_eps")
        config = ConvNextConfig(**{name: getattr(config, name) for name in shared})
    config.id2label = dict(enumerate(classifier.classes))
    config.label2id = {name: i for i, name in enumerate(classifier.classes)}
    several = isinstance(classifier.head, MultiLabelProbe)
    config.problem_type = f"{'multi' if several else 'single'}_label_classification"
    return config


def _spread(classifier: ImageClassifier, layout: _Layout) -> npt.NDArray[np.float32]:
    """The head's weight on the parts of the layout, zero for those that it does not read."""
    head: Any = classifier.head
    parts = parts_of(classifier.encoder.pooling)
    if not set(parts) <= set(layout.parts):
        msg = (
            f"pooling '{classifier.encoder.pooling}' has no place in transformers' "
            f"{layout.class_name}, which reads {' and '.join(layout.parts)}. Train with --pooling "
            f"{'+'.join(layout.parts)}, or export to onnx."
        )
        raise ConfigurationError(msg)
    own = dict(zip(parts, np.split(head.coef_, len(parts), axis=1), strict=True))
    nothing = np.zeros_like(own[parts[0]])
    return np.concatenate([own.get(part, nothing) for part in layout.parts], axis=1)


def _fill(
    model: torch.nn.Module,
    classifier: ImageClassifier,
    layout: _Layout,
    weight: npt.NDArray[np.float32],
) -> None:
    """All tensors, none missing and none left: `load_state_dict` is strict."""
    import torch

    head: Any = classifier.head
    tensors = {
        layout.rename(name): tensor
        for name, tensor in classifier.encoder.model.state_dict().items()
    }
    tensors["classifier.weight"] = torch.from_numpy(weight)
    tensors["classifier.bias"] = torch.from_numpy(head.intercept_.copy())
    model.load_state_dict(tensors)


def _processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json of a processor that needs no torchvision."""
    height, width = preprocessing.size
    if preprocessing.resize == "pad":
        msg = (
            "resize 'pad' has no processor in transformers. Train with --resize squash or crop, or "
            "export to onnx."
        )
        raise ConfigurationError(msg)
    common = {
        "do_resize": True,
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": preprocessing.rescale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    size = {"height": height, "width": width}
    if preprocessing.resize == "squash":
        return {"image_processor_type": "ViTImageProcessor", "size": size, **common}
    if height != width and preprocessing.shortest_edge is None:
        msg = f"a crop to {height}x{width} has no processor in transformers. Export to onnx."
        raise ConfigurationError(msg)
    edge = preprocessing.shortest_edge or height
    crop = {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": size}
    return {"image_processor_type": "BitImageProcessor", **crop, **common}
