"""What can be exported to: how each is written, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoprobe.errors import ConfigurationError
from dinoprobe.export import (
    head_file,
    onnx_file,
    onnx_reduced,
    openvino_ir,
    timm_folder,
    transformers_folder,
)
from dinoprobe.export.gate import Answers, tolerance_for
from dinoprobe.heads import MultiLabelProbe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dinoprobe.classifier import ImageClassifier
    from dinoprobe.export.pictures import Pictures

AS_PREPARED = "images resized by prepare"
BY_PILLOW = "images resized by prepare_plain"
RESIZED_INSIDE = "images resized in the graph"
FROM_FEATURES = "the encoder's features"
BY_TIMM = "images resized as timm's transform does"
BY_PIPELINE = "images resized by transformers' processor"
DECODED_WHOLE = "JPEGs decoded at full size, resized in the graph"


EXACT, HALF, INT8 = "exact", "fp16", "int8"
TYPES = {EXACT: "float32", HALF: "float16", INT8: "int8"}
"""What a file holds the encoder's weights in, by the name of the precision."""


@dataclass(frozen=True, slots=True)
class Target:
    """`write` puts the files into a folder and returns the one to load, in float32; `reduced` makes
    them smaller in place, by the name of a precision.

    `opened` is what `answers` asks. `told` are ways of asking that are only reported, and do not
    decide. `calibrated` are precisions that want training images.
    """

    name: str
    write: Callable[[ImageClassifier, dict[str, Any], Path], Path]
    opened: Callable[[Path], Any]
    answers: Callable[[Any, ImageClassifier, Pictures], Mapping[str, Answers]]
    told: Callable[[Any, Pictures], Mapping[str, Answers]] | None = None
    has_weights: bool = True
    reduced: Mapping[str, Callable[[Path, ImageClassifier, npt.NDArray[Any]], None]] = field(
        default_factory=dict
    )
    calibrated: frozenset[str] = frozenset()

    def require_precision(self, precision: str) -> None:
        """Raise ConfigurationError for one that the target has not."""
        names = (EXACT, *self.reduced)
        if precision not in names:
            msg = (
                f"--precision {precision}: --to {self.name} has {', '.join(names)} ({EXACT} is "
                "float32). Choose one of these."
            )
            raise ConfigurationError(msg)


def target_named(name: str) -> Target:
    """Raises ConfigurationError for one that does not exist."""
    found = {target.name: target for target in TARGETS}.get(name)
    if found is None:
        names = ", ".join(target.name for target in TARGETS)
        raise ConfigurationError(f"--to {name}: expected one of {names}. Choose one of these.")
    return found


def _onnx_answers(
    runner: onnx_file.Runner, classifier: ImageClassifier, shown: Pictures
) -> Mapping[str, Answers]:
    other = tolerance_for(classifier.encoder.precision, same_input=False)
    ways = {RESIZED_INSIDE: Answers(_each(runner, shown.decoded()), other)}
    if shown.preprocessing.arithmetic == "uint8":
        ways |= _prepared_answers(lambda images: runner(images)["probabilities"], classifier, shown)
    return ways


def _prepared_answers(
    run: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    classifier: ImageClassifier,
    shown: Pictures,
) -> dict[str, Answers]:
    """What `run` says of images of the encoder's size, from `prepare` and from `prepare_plain`."""
    precision, plain = classifier.encoder.precision, shown.prepared_plainly
    answers = {
        AS_PREPARED: (shown.prepared, tolerance_for(precision, same_input=True)),
        BY_PILLOW: (plain, tolerance_for(precision, same_input=False)),
    }
    return {
        way: Answers(np.concatenate([run(image[None]) for image in images]), tolerance)
        for way, (images, tolerance) in answers.items()
    }


def _onnx_told(runner: onnx_file.Runner, shown: Pictures) -> Mapping[str, Answers]:
    found = _each(runner, shown.decoded(whole=True))
    return {DECODED_WHOLE: Answers(found, tolerance_for("float32", same_input=False))}


def _each(runner: onnx_file.Runner, images: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[Any]:
    """Probabilities of images `(height, width, 3)` of any size, one by one."""
    rows = (np.ascontiguousarray(image.transpose(2, 0, 1))[None] for image in images)
    return np.concatenate([runner(row)["probabilities"] for row in rows])


def _head_answers(
    path: Path, classifier: ImageClassifier, shown: Pictures
) -> Mapping[str, Answers]:
    is_multilabel = isinstance(classifier.head, MultiLabelProbe)
    X = shown.features(classifier.encoder)
    found = head_file.probabilities(path, X, multilabel=is_multilabel)
    return {FROM_FEATURES: Answers(found, tolerance_for("float32", same_input=True))}


def _openvino_answers(
    run: Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]],
    classifier: ImageClassifier,
    shown: Pictures,
) -> Mapping[str, Answers]:
    return _prepared_answers(lambda images: run(images)["probabilities"], classifier, shown)


def _transformers_answers(
    path: Path, classifier: ImageClassifier, shown: Pictures
) -> Mapping[str, Answers]:
    precision = classifier.encoder.precision
    pipe = transformers_folder.opened(path)
    same = transformers_folder.by_model(pipe, shown.prepared, shown.preprocessing)
    other = transformers_folder.by_pipeline(pipe, shown.decoded())
    return {
        BY_PIPELINE: Answers(other, tolerance_for(precision, same_input=False)),
        AS_PREPARED: Answers(same, tolerance_for(precision, same_input=True)),
    }


def _timm_answers(
    path: Path, classifier: ImageClassifier, shown: Pictures
) -> Mapping[str, Answers]:
    precision, opened = classifier.encoder.precision, timm_folder.opened(path, classifier)
    other, same = opened.of_decoded(shown.decoded()), opened.of_prepared(shown.prepared)
    return {
        BY_TIMM: Answers(other, tolerance_for(precision, same_input=False)),
        AS_PREPARED: Answers(same, tolerance_for(precision, same_input=True)),
    }


def _onnx_half(path: Path, _: ImageClassifier, __: npt.NDArray[Any]) -> None:
    onnx_reduced.to_float16(path)


def _onnx_int8(path: Path, _: ImageClassifier, __: npt.NDArray[Any]) -> None:
    onnx_reduced.to_int8(path)


def _openvino_half(path: Path, _: ImageClassifier, __: npt.NDArray[Any]) -> None:
    openvino_ir.to_float16(path)


def _openvino_int8(path: Path, classifier: ImageClassifier, images: npt.NDArray[Any]) -> None:
    is_convnext = classifier.encoder.model_type == "dinov3_convnext"
    openvino_ir.to_int8(path, images, is_convnext=is_convnext)


def _openvino_opened(path: Path) -> Any:
    return openvino_ir.opened(path)


def _itself(path: Path) -> Path:
    return path


TARGETS = (
    Target(
        "onnx",
        onnx_file.write,
        onnx_file.Runner,
        _onnx_answers,
        _onnx_told,
        reduced={HALF: _onnx_half, INT8: _onnx_int8},
    ),
    Target("head", head_file.write, _itself, _head_answers, has_weights=False),
    Target("transformers", transformers_folder.write, _itself, _transformers_answers),
    Target("timm", timm_folder.write, _itself, _timm_answers),
    Target(
        "openvino",
        openvino_ir.write,
        _openvino_opened,
        _openvino_answers,
        reduced={HALF: _openvino_half, INT8: _openvino_int8},
        calibrated=frozenset({INT8}),
    ),
)
