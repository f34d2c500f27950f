"""The lines of Python that load each form and ask it about an image, for its model card.

They need none of this package, but for the ViTs that transformers has no classifier for.
"""

from __future__ import annotations

from typing import Any

FOLDER = "PATH_OF_THIS_FOLDER"

_PIPELINE = """\
from transformers import pipeline

classify = pipeline("image-classification", model="{place}")
print(classify("cat.jpg"))"""
_IMPORT = "import dinoprobe  # it brings the class for this architecture\n"
_TIMM = """\
import timm, torch
from PIL import Image

model = timm.create_model("{source}:{place}", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings, is_training=False)
with torch.inference_mode():
    logits = model(transform(Image.open("cat.jpg").convert("RGB"))[None])
{answer}"""
_TIMM_ANSWERS = (
    """\
probability, best = logits.softmax(dim=1).max(dim=1)
print(model.pretrained_cfg["label_names"][best], float(probability))""",
    """\
print(dict(zip(model.pretrained_cfg["label_names"], logits.sigmoid()[0].tolist())))""",
)
_ONNX = """\
import json
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
about = json.loads(session.get_modelmeta().custom_metadata_map["dinoprobe"])
image = Image.open("cat.jpg")
height, width = about["preprocessing"]["size"]
image.draft("RGB", (2 * width, 2 * height))  # large JPEGs are decoded at a reduced scale
pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)[None]
probabilities = session.run(["probabilities"], {"images": pixels})[0][0]
print(dict(zip(about["classes"], probabilities.tolist())))"""
_OPENVINO = """\
import json, pathlib
import openvino
from dinoprobe.preprocess import Preprocessing, prepare_plain

network = openvino.Core().read_model("model.xml")
about = json.loads(network.get_rt_info(["dinoprobe"]).astype(str))
model = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
preprocessing = Preprocessing.from_dict(about["preprocessing"])
image = prepare_plain(pathlib.Path("cat.jpg").read_bytes(), preprocessing)
probabilities = model(image[None])["probabilities"][0]
print(dict(zip(about["classes"], probabilities.tolist())))"""
_HEAD = """\
import json, pathlib
import numpy as np
from safetensors.numpy import load_file

about = json.loads(pathlib.Path("head.json").read_bytes())
head = load_file("head.safetensors")
X = np.load("features.npy")
logits = X @ head["weight"].T + head["bias"]
{answer}"""
_HEAD_ANSWERS = (
    """\
odds = np.exp(logits - logits.max(axis=1, keepdims=True))
probabilities = odds / odds.sum(axis=1, keepdims=True)
labels = [about["classes"][i] for i in probabilities.argmax(axis=1)]""",
    """\
probabilities = 1 / (1 + np.exp(-logits))
found = probabilities >= np.array(about["thresholds"])
labels = [[name for name, is_in in zip(about["classes"], row) if is_in] for row in found]""",
)


def lines(to: str, document: dict[str, Any], repository: str | None) -> str:
    """The lines for the form `to`, of a folder or, with its id, of a repository on the hub."""
    several = bool(document["multilabel"])
    place = repository or FOLDER
    if to == "transformers":
        needs_import = bool(document["encoder"]["model_type"] == "dinov3_vit")
        return _IMPORT * needs_import + _PIPELINE.format(place=place)
    if to == "timm":
        source = "hf-hub" if repository else "local-dir"
        return _TIMM.format(source=source, place=place, answer=_TIMM_ANSWERS[several])
    if to == "head":
        return _HEAD.format(answer=_HEAD_ANSWERS[several])
    return _ONNX if to == "onnx" else _OPENVINO


def before(to: str, document: dict[str, Any], repository: str | None) -> str:
    """What has to be there first, in sentences."""
    fetch = f"`hf download {repository} --local-dir .` fetches the files. "
    fetched = fetch if repository and to in {"onnx", "openvino", "head"} else ""
    name, pooling = document["encoder"]["name"], document["pooling"]
    needs = {
        "transformers": (
            "`pip install dinoprobe` has what this needs."
            if document["encoder"]["model_type"] == "dinov3_vit"
            else "This needs transformers, torch and Pillow."
        ),
        "timm": "This needs timm and torchvision.",
        "onnx": "This needs ONNX Runtime, NumPy and Pillow; images may have any size.",
        "openvino": "`pip install 'dinoprobe[cpu]'` has what this needs.",
        "head": (
            f"The features are {pooling} of {name} ({document['dimension']} numbers an image). "
            f"`dinoprobe embed IMAGES --encoder {name} --pooling {pooling} --export features.npy` "
            "makes them where images are prepared as `preprocessing` in head.json says, and so "
            "does any program that runs the same weights."
        ),
    }
    return fetched + needs[to]
