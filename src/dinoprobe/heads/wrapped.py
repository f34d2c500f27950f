"""Any classifier of scikit-learn on the same features, by import path.

Features reach it as they are, in float32: put the scaling into the classifier if it needs one.
Only classes of scikit-learn itself are accepted, so that a saved head never imports anything else.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from dinoprobe.errors import ConfigurationError, HeadError
from dinoprobe.heads.base import ProbeBase, check_features, check_training, softmax

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dinoprobe.heads.base import Codes, Float64s


class SklearnProbe(ProbeBase):
    """The classifier at import path `estimator`, made with `params`.

    A `random_state` that is not given becomes 0, so that saving features and fitting again gives
    the same head. `predict` takes the largest probability, which for a few classifiers (`SVC` with
    tied votes) is not what their own `predict` does. After fit: `estimator_`, and
    `probabilities_are_scores_`: the classifier has no probabilities, and `predict_proba` is the
    softmax of its decision function (of its answers as 0 and 1 where it has neither): ordered
    right, not calibrated.
    """

    def __init__(
        self, estimator: str = "sklearn.svm.SVC", params: Mapping[str, Any] | None = None
    ) -> None:
        self.estimator = estimator
        self.params = params

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fit the classifier on features as they are."""
        estimator = make_estimator(self.estimator, self.params or {})
        rows, self.codes_ = check_training(self, X, y)
        self.features_ = _to_float32(rows)
        self.estimator_ = _fitted(estimator, self.features_, self.codes_)
        self.probabilities_are_scores_ = not hasattr(self.estimator_, "predict_proba")
        return self

    def predict_proba(self, X: npt.ArrayLike) -> Float64s:
        """Probabilities `(n, k)` in the order of `classes_`; see `probabilities_are_scores_`."""
        check_is_fitted(self)
        rows = _to_float32(check_features(self, X))
        if not self.probabilities_are_scores_:
            values = np.asarray(self.estimator_.predict_proba(rows), dtype=np.float64)
            probabilities: Float64s = values / values.sum(axis=1, keepdims=True)
        elif hasattr(self.estimator_, "decision_function"):
            probabilities = softmax(_class_scores(self.estimator_.decision_function(rows)))
        else:
            probabilities = np.eye(len(self.classes_))[self.estimator_.predict(rows)]
        if probabilities.shape[1] != len(self.classes_):
            raise HeadError(
                f"{self.estimator} with {self.params} gives {probabilities.shape[1]} scores for "
                f"{len(self.classes_)} classes; expected one for each. Use its one-against-rest "
                f'form, such as decision_function_shape="ovr".'
            )
        if not np.isfinite(probabilities).all():
            raise HeadError(
                f"{self.estimator} gives probabilities that are NaN or infinite; expected finite "
                f"ones. Its training features may be constant: take another head."
            )
        return probabilities


def _fitted(estimator: Any, X: npt.NDArray[np.float32], codes: Codes) -> Any:
    """The classifier, fitted. Raises HeadError with scikit-learn's own words where it refuses."""
    try:
        return estimator.fit(X, codes)
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        msg = f"{type(estimator).__name__} refuses these features or options: {reason}"
        raise HeadError(msg) from error


def sklearn_probe(import_path: str, **params: Any) -> SklearnProbe:
    """A head from a scikit-learn classifier, such as `sklearn_probe("sklearn.svm.SVC", C=10)`."""
    return SklearnProbe(import_path, params or None)


def with_random_state(head: SklearnProbe, seed: int) -> SklearnProbe:
    """The head with the classifier's `random_state` set, where it takes one that was not given."""
    accepted = inspect.signature(_import_classifier(head.estimator)).parameters
    if "random_state" not in accepted:
        return head
    return SklearnProbe(head.estimator, {"random_state": seed, **(head.params or {})})


def make_estimator(import_path: str, params: Mapping[str, Any]) -> Any:
    """The classifier, not fitted, or ConfigurationError. Imports from scikit-learn only."""
    kind = _import_classifier(import_path)
    accepted = inspect.signature(kind).parameters
    unknown = sorted(set(params) - set(accepted))
    if unknown:
        raise ConfigurationError(
            f"{import_path} has no parameter {unknown[0]!r}; expected some of "
            f"{', '.join(accepted)}."
        )
    options = dict(params)
    if "random_state" in accepted and options.get("random_state") is None:
        options["random_state"] = 0
    return kind(**options)


def _import_classifier(import_path: str) -> Any:
    module_name, _, name = import_path.rpartition(".")
    found: Any = None
    if module_name.split(".")[0] == "sklearn":
        try:
            found = getattr(importlib.import_module(module_name), name, None)
        except ImportError:
            found = None
    if not _is_own_classifier(found):
        raise ConfigurationError(
            f"{import_path!r} is not a classifier of scikit-learn; expected an import path such as "
            f"sklearn.svm.SVC or sklearn.ensemble.RandomForestClassifier."
        )
    return found


def _is_own_classifier(found: object) -> bool:
    return (
        inspect.isclass(found)
        and issubclass(found, ClassifierMixin)
        and issubclass(found, BaseEstimator)
        and found.__module__.split(".")[0] == "sklearn"
    )


def _class_scores(decision: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """One column for each class; a single column is the second of two classes against the first."""
    if decision.ndim == 1:
        return np.stack([np.zeros_like(decision), decision], axis=1)
    return decision


def _to_float32(X: Any) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(X, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise HeadError("Features go beyond 3.4e38, the range of float32. Scale them down.")
    return rows
