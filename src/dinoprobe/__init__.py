"""Turn a frozen DINOv3 image encoder into a classifier that you can trust and ship.

>>> import dinoprobe as dp
>>> encoder = dp.Encoder.from_pretrained("builtin")
>>> features = dp.embed("photos/", encoder)                    # doctest: +SKIP
>>> head = dp.LogisticProbe().fit(features.X, features.y)      # doctest: +SKIP
>>> dp.ImageClassifier(encoder, head).save("my-classifier")    # doctest: +SKIP

Names are imported when first used: `import dinoprobe` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dinoprobe.registration import register_when_loaded

if TYPE_CHECKING:
    from dinoprobe.api import embed, embed_tokens
    from dinoprobe.checking import check
    from dinoprobe.classifier import ImageClassifier, Prediction
    from dinoprobe.datasets import open_dataset
    from dinoprobe.encoder import Encoder
    from dinoprobe.engine import Embedding
    from dinoprobe.errors import DinoprobeError
    from dinoprobe.evaluation import Evaluation, evaluate
    from dinoprobe.heads import (
        AttentiveProbe,
        KNNProbe,
        LDAProbe,
        LinearGridProbe,
        LinearProbe,
        LogisticProbe,
        MultiLabelProbe,
        PrototypeProbe,
        RidgeProbe,
        SklearnProbe,
        StreamedRows,
    )
    from dinoprobe.multilabel import MultiLabelEvaluation, evaluate_labels
    from dinoprobe.preprocess import Preprocessing
    from dinoprobe.store import FeatureStore
    from dinoprobe.types import Dataset, Failure, Features, Sample

__version__ = "0.1.0"

_HOMES = {
    "AttentiveProbe": "heads",
    "Dataset": "types",
    "DinoprobeError": "errors",
    "Embedding": "engine",
    "Encoder": "encoder",
    "Evaluation": "evaluation",
    "Failure": "types",
    "FeatureStore": "store",
    "Features": "types",
    "ImageClassifier": "classifier",
    "KNNProbe": "heads",
    "LDAProbe": "heads",
    "LinearGridProbe": "heads",
    "LinearProbe": "heads",
    "LogisticProbe": "heads",
    "MultiLabelEvaluation": "multilabel",
    "MultiLabelProbe": "heads",
    "Prediction": "classifier",
    "Preprocessing": "preprocess",
    "PrototypeProbe": "heads",
    "RidgeProbe": "heads",
    "Sample": "types",
    "SklearnProbe": "heads",
    "StreamedRows": "heads",
    "check": "checking",
    "embed": "api",
    "embed_tokens": "api",
    "evaluate": "evaluation",
    "evaluate_labels": "multilabel",
    "open_dataset": "datasets",
}

__all__ = [
    "AttentiveProbe",
    "Dataset",
    "DinoprobeError",
    "Embedding",
    "Encoder",
    "Evaluation",
    "Failure",
    "FeatureStore",
    "Features",
    "ImageClassifier",
    "KNNProbe",
    "LDAProbe",
    "LinearGridProbe",
    "LinearProbe",
    "LogisticProbe",
    "MultiLabelEvaluation",
    "MultiLabelProbe",
    "Prediction",
    "Preprocessing",
    "PrototypeProbe",
    "RidgeProbe",
    "Sample",
    "SklearnProbe",
    "StreamedRows",
    "check",
    "embed",
    "embed_tokens",
    "evaluate",
    "evaluate_labels",
    "open_dataset",
]


register_when_loaded()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dinoprobe' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dinoprobe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
