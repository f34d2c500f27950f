"""Heads to plain JSON values and arrays, and back: no pickle, so a loaded file runs no code.

Every linear head becomes one weight and one bias, k rows also for two classes. A k-NN head keeps
its normalised rows, an attentive one its attention, its projection and a linear layer. A
scikit-learn head keeps its training rows and is fitted again at load, which costs a fit and is
right across versions: a few probabilities are kept to check the result. Anything unexpected raises
FormatError: keys, shapes, types, values that are not finite, versions.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import sklearn

from dinoprobe.errors import ConfigurationError, FormatError, HeadError, MismatchError
from dinoprobe.heads.attentive import AttentiveProbe
from dinoprobe.heads.base import LinearBase, ProbeBase
from dinoprobe.heads.multilabel import MultiLabelProbe
from dinoprobe.heads.neighbors import KNNProbe, normalized
from dinoprobe.heads.wrapped import SklearnProbe, make_estimator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Config = dict[str, Any]
    Arrays = dict[str, npt.NDArray[Any]]

FORMAT = 1
PROBE_ROWS = 8
PROBE_TOLERANCE = 1e-5
COMMON_KEYS = {"format", "kind", "classes", "n_features"}
ATTENTIVE = ("attention", "value", "coef", "intercept")


class FittedLinear(LinearBase):
    """A linear head that was loaded: it predicts, and is not fitted again."""


def to_state(head: ProbeBase | MultiLabelProbe) -> tuple[Config, Arrays]:
    """What `from_state` needs: values that JSON can hold, and arrays.

    Raises HeadError for a head that is not fitted, or that can not be saved, such as one with
    labels that are not strings.
    """
    if not hasattr(head, "classes_"):
        raise HeadError(f"This {type(head).__name__} is not fitted; fit it before saving.")
    classes = head.classes_.tolist()
    if not all(isinstance(label, str) for label in classes):
        raise HeadError(f"The labels are {classes[:3]}…; only a head with string labels is saved.")
    common = {"format": FORMAT, "classes": classes, "n_features": int(head.n_features_in_)}
    if isinstance(head, MultiLabelProbe):
        linear = {"weight": head.coef_, "bias": head.intercept_}
        return {**common, "kind": "multilabel"}, {**linear, "thresholds": head.thresholds_}
    if isinstance(head, LinearBase):
        return {**common, "kind": "linear"}, {"weight": head.coef_, "bias": head.intercept_}
    if isinstance(head, KNNProbe):
        return _knn_state(head, common)
    if isinstance(head, AttentiveProbe):
        names = {name: getattr(head, f"{name}_") for name in ATTENTIVE}
        return {**common, "kind": "attentive", "heads": len(head.attention_)}, names
    if isinstance(head, SklearnProbe):
        return _sklearn_state(head, common)
    raise HeadError(f"{type(head).__name__} can not be saved; expected a head of this package.")


def from_state(
    config: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> ProbeBase | MultiLabelProbe:
    """The head that `to_state` took apart, ready to predict; FormatError for anything else.

    A scikit-learn head is fitted again; MismatchError when it then predicts differently.
    """
    readers: dict[str, Callable[[Config, Arrays], ProbeBase | MultiLabelProbe]] = {
        "multilabel": _read_multilabel,
        "linear": _read_linear,
        "knn": _read_knn,
        "attentive": _read_attentive,
        "sklearn": _read_sklearn,
    }
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        _refuse(f"format {found!r}", f"format {FORMAT}; save it with this version")
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in readers:
        _refuse(f"kind {kind!r}", f"one of {', '.join(readers)}")
    _check_common(config)
    head = readers[kind](config, dict(arrays))
    head.classes_ = np.array(config["classes"], dtype=object)
    head.n_features_in_ = config["n_features"]
    if isinstance(head, SklearnProbe):
        _check_probe(head, config, arrays["probe"])
    return head


def _knn_state(head: KNNProbe, common: Config) -> tuple[Config, Arrays]:
    config = {**common, "kind": "knn", "k": int(head.k_), "temperature": float(head.temperature)}
    arrays = {"features": head.features_, "labels": head.codes_.astype(np.int32)}
    weights = {"sample_weight": head.sample_weight_, "class_weight": head.class_weight_}
    return config, arrays | {name: w for name, w in weights.items() if w is not None}


def _sklearn_state(head: SklearnProbe, common: Config) -> tuple[Config, Arrays]:
    params = dict(head.params or {})
    try:
        params = json.loads(json.dumps(params, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise HeadError(
            f"The parameters of {head.estimator} are {params}; only values that JSON can hold "
            f"(numbers, strings, lists, true, false, null) are saved."
        ) from error
    config = {**common, "kind": "sklearn", "estimator": head.estimator, "params": params}
    config["sklearn_version"] = sklearn.__version__
    probe = head.predict_proba(_probe_rows(head))
    labels = head.codes_.astype(np.int32)
    return config, {"features": head.features_, "labels": labels, "probe": probe}


def _read_linear(config: Config, arrays: Arrays) -> FittedLinear:
    _check_keys(config, arrays, COMMON_KEYS, {"weight", "bias"})
    k, d = len(config["classes"]), config["n_features"]
    head = FittedLinear()
    head.coef_ = _floats(arrays, "weight", (k, d), np.float32)
    head.intercept_ = _floats(arrays, "bias", (k,), np.float32)
    return head


def _read_multilabel(config: Config, arrays: Arrays) -> MultiLabelProbe:
    _check_keys(config, arrays, COMMON_KEYS, {"weight", "bias", "thresholds"})
    k, d = len(config["classes"]), config["n_features"]
    head = MultiLabelProbe()
    head.coef_ = _floats(arrays, "weight", (k, d), np.float32)
    head.intercept_ = _floats(arrays, "bias", (k,), np.float32)
    head.thresholds_ = _floats(arrays, "thresholds", (k,), np.float64)
    return head


def _read_knn(config: Config, arrays: Arrays) -> KNNProbe:
    names = {"features", "labels"} | ({"sample_weight", "class_weight"} & arrays.keys())
    _check_keys(config, arrays, COMMON_KEYS | {"k", "temperature"}, names)
    features, labels = _training_rows(config, arrays)
    sample_weight = _weights(arrays, "sample_weight", len(features))
    class_weight = _weights(arrays, "class_weight", len(config["classes"]))
    k, temperature = config["k"], config["temperature"]
    most = len(features) if sample_weight is None else max(1, math.ceil(sample_weight.sum()))
    if type(k) is not int or not 1 <= k <= most:
        _refuse(f"k {k!r}", f"a number from 1 to {most}")
    if type(temperature) not in (int, float) or not 0 < temperature < float("inf"):
        _refuse(f"temperature {temperature!r}", "a number above 0")
    if not np.allclose(normalized(features), features, rtol=0, atol=1e-5):
        _refuse("features with rows that are not of length 1", "normalised rows")
    head = KNNProbe(k, temperature=temperature)
    head.features_, head.codes_ = features, labels
    head.k_, head.selection_ = k, "loaded"
    head.sample_weight_, head.class_weight_ = sample_weight, class_weight
    return head


def _read_attentive(config: Config, arrays: Arrays) -> AttentiveProbe:
    _check_keys(config, arrays, COMMON_KEYS | {"heads"}, set(ATTENTIVE))
    k, d, heads = len(config["classes"]), config["n_features"], config["heads"]
    if type(heads) is not int or heads < 1 or d % heads:
        _refuse(f"heads {heads!r}", f"a divisor of {d}")
    head = AttentiveProbe(heads=heads)
    for name, shape in zip(ATTENTIVE, ((heads, d), (d, d), (k, d), (k,)), strict=True):
        setattr(head, f"{name}_", _floats(arrays, name, shape, np.float32))
    return head


def _weights(arrays: Arrays, name: str, count: int) -> npt.NDArray[Any] | None:
    """Weights above 0 `(count,)`, None where there are none."""
    if name not in arrays:
        return None
    weights = _floats(arrays, name, (count,), np.float64)
    if not (weights > 0).all():
        _refuse(f"{name} with numbers of 0 or below", "numbers above 0")
    return weights


def _read_sklearn(config: Config, arrays: Arrays) -> SklearnProbe:
    keys = COMMON_KEYS | {"estimator", "params", "sklearn_version"}
    _check_keys(config, arrays, keys, {"features", "labels", "probe"})
    features, labels = _training_rows(config, arrays)
    estimator, params = config["estimator"], config["params"]
    if not isinstance(config["sklearn_version"], str):
        _refuse(f"sklearn_version {config['sklearn_version']!r}", "a version, as a string")
    if not isinstance(estimator, str) or not isinstance(params, dict):
        _refuse(f"estimator {estimator!r} with {params!r}", "an import path and its parameters")
    head = SklearnProbe(estimator, params)
    try:
        make_estimator(estimator, params)
        return head.fit(features, labels)
    except ConfigurationError as error:
        raise FormatError(f"Saved head: {error}") from error
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"Saved head: {estimator} with {params} can not be fitted again ({error}). "
            f"Train and save the head again."
        ) from error


def _check_probe(head: SklearnProbe, config: Config, probe: npt.NDArray[Any]) -> None:
    """The fitted head must give the probabilities that were saved."""
    actual = head.predict_proba(_probe_rows(head))
    expected = _floats({"probe": probe}, "probe", actual.shape, np.float64)
    difference = float(np.abs(actual - expected).max())
    if difference > PROBE_TOLERANCE:
        raise MismatchError(
            f"Saved head: {head.estimator}, fitted again with scikit-learn {sklearn.__version__}, "
            f"gives probabilities that are off by {difference:.2g} from those of scikit-learn "
            f"{config['sklearn_version']}; expected at most {PROBE_TOLERANCE:g}. Install that "
            f"version, or train and save the head again."
        )


def _probe_rows(head: SklearnProbe) -> npt.NDArray[np.float32]:
    count = min(PROBE_ROWS, len(head.features_))
    rows = np.linspace(0, len(head.features_) - 1, count).astype(np.intp)
    return head.features_[rows]


def _check_common(config: Config) -> None:
    classes, n_features = config.get("classes"), config.get("n_features")
    if not isinstance(classes, list) or not all(isinstance(label, str) for label in classes):
        _refuse(f"classes of type {type(classes).__name__}", "a list of strings")
    if config["kind"] == "multilabel":
        if not classes or len(set(classes)) != len(classes):
            _refuse(f"{len(classes)} classes", "at least 1, each once")
    elif len(classes) < 2 or sorted(set(classes)) != classes:
        _refuse(f"{len(classes)} classes", "at least 2, sorted, each once")
    if type(n_features) is not int or n_features < 1:
        _refuse(f"n_features {n_features!r}", "a number from 1")


def _check_keys(config: Config, arrays: Arrays, keys: set[str], names: set[str]) -> None:
    for found, expected in ((set(config), keys), (set(arrays), names)):
        if found != expected:
            _refuse(f"the entries {sorted(map(str, found))}", f"{sorted(expected)}")


def _training_rows(config: Config, arrays: Arrays) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Features and codes in which every class occurs."""
    labels = arrays["labels"]
    rows = len(labels) if labels.ndim == 1 else 0
    features = _floats(arrays, "features", (rows, config["n_features"]), np.float32)
    if labels.dtype != np.int32 or rows == 0:
        _refuse(f"labels {labels.dtype} {labels.shape}", f"int32 ({len(features)},)")
    k = len(config["classes"])
    if not np.array_equal(np.unique(labels), np.arange(k)):
        _refuse(f"labels from {labels.min()} to {labels.max()}", f"each of the codes 0 to {k - 1}")
    return features, labels.astype(np.intp)


def _floats(
    arrays: Arrays, name: str, shape: tuple[int, ...], dtype: type[np.floating]
) -> npt.NDArray[Any]:
    array = arrays[name]
    if array.shape != shape or array.dtype != dtype:
        _refuse(f"{name} {array.dtype} {array.shape}", f"{np.dtype(dtype)} {shape}")
    if not np.isfinite(array).all():
        _refuse(f"{name} with NaN or infinity", "finite numbers")
    return array


def _refuse(found: str, expected: str) -> NoReturn:
    raise FormatError(
        f"Saved head: found {found}; expected {expected}. Load an undamaged copy, or train again."
    )
