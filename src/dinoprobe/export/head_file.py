"""The head alone: kilobytes of safetensors and JSON, and ten lines of NumPy that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.files import load_tensors, save_tensors, write_atomic, write_json
from dinoprobe.heads import MultiLabelProbe

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier

FILE, ABOUT, README = "head.safetensors", "head.json", "README.md"

_SOFTMAX = """\
odds = np.exp(logits - logits.max(axis=1, keepdims=True))
probabilities = odds / odds.sum(axis=1, keepdims=True)
labels = [about["classes"][i] for i in probabilities.argmax(axis=1)]"""
_SIGMOID = """\
probabilities = 1 / (1 + np.exp(-logits))
found = probabilities >= np.array(about["thresholds"])
labels = [[name for name, is_in in zip(about["classes"], row) if is_in] for row in found]"""
_TEXT = """\
# A head for image features

`head.safetensors` is one linear layer on {pooling} features of {encoder} ({dimension} numbers an
image); its temperature is in the weights. `head.json` names the classes, how images are prepared
(`preprocessing`), and what prediction sets, novelty and abstention go by. `dinoprobe embed IMAGES
--export features.npy` makes the features, and so does any program that runs the same weights and
preprocessing. From features to labels:

```python
import json, pathlib
import numpy as np
from safetensors.numpy import load_file

about = json.loads(pathlib.Path("head.json").read_bytes())
head = load_file("head.safetensors")
X = np.load("features.npy")
logits = X @ head["weight"].T + head["bias"]
{rest}
```
"""


def write(classifier: ImageClassifier, document: dict[str, Any], folder: Path) -> Path:
    """FILE, ABOUT and README in `folder`; returns the folder's FILE."""
    head: Any = classifier.head
    save_tensors(folder / FILE, {"weight": head.coef_, "bias": head.intercept_})
    write_json(folder / ABOUT, document)
    text = _TEXT.format(
        pooling=document["pooling"],
        encoder=document["encoder"]["name"],
        dimension=document["dimension"],
        rest=_SIGMOID if isinstance(head, MultiLabelProbe) else _SOFTMAX,
    )
    write_atomic(folder / README, text)
    return folder / FILE


def probabilities(
    path: Path, X: npt.NDArray[np.float32], *, multilabel: bool
) -> npt.NDArray[np.float32]:
    """What the lines of the README give for features `(n, dimension)`."""
    head = load_tensors(path)
    logits = X @ head["weight"].T + head["bias"]
    if multilabel:
        return np.asarray(1 / (1 + np.exp(-logits)))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
