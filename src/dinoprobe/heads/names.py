"""Heads by the names that the command line and configuration files use."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads.grid import LinearGridProbe
from dinoprobe.heads.lda import LDAProbe
from dinoprobe.heads.linear import LinearProbe
from dinoprobe.heads.logistic import LogisticProbe
from dinoprobe.heads.neighbors import KNNProbe
from dinoprobe.heads.prototype import PrototypeProbe
from dinoprobe.heads.ridge import RidgeProbe
from dinoprobe.heads.weights import check_class_weight
from dinoprobe.heads.wrapped import make_estimator, sklearn_probe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dinoprobe.heads.base import ProbeBase

HEADS: dict[str, type[ProbeBase]] = {
    "linear": LinearProbe,
    "linear-grid": LinearGridProbe,
    "logistic": LogisticProbe,
    "knn": KNNProbe,
    "lda": LDAProbe,
    "ridge": RidgeProbe,
    "prototype": PrototypeProbe,
}
SKLEARN_PREFIX = "sklearn:"


def head_from_name(name: str, **options: Any) -> ProbeBase:
    """A head that is not fitted, by a name of `HEADS` or by "sklearn:" and an import path.

    Options are those of the head's class. Raises ConfigurationError, naming the nearest choice.
    """
    if name.startswith(SKLEARN_PREFIX):
        import_path = name.removeprefix(SKLEARN_PREFIX)
        make_estimator(import_path, options)
        return sklearn_probe(import_path, **options)
    if name not in HEADS:
        choices = [*HEADS, "sklearn:<import path>, such as sklearn:sklearn.svm.SVC"]
        raise ConfigurationError(
            f"No head is called {name!r}; expected {', '.join(choices)}.{_nearest(name, HEADS)}"
        )
    kind = HEADS[name]
    accepted = [option for option in inspect.signature(kind).parameters if option != "self"]
    for option in options:
        if option not in accepted:
            raise ConfigurationError(
                f"The head {name!r} has no option {option!r}; expected some of "
                f"{', '.join(accepted)}.{_nearest(option, accepted)}"
            )
    return kind(**options)


def check_options(head: ProbeBase) -> None:
    """Try the options of one of this package's heads on twelve rows.

    Raises ConfigurationError: a wrong type or range is found before hours of embedding, and not
    after. Class weights may name labels that these rows lack.
    """
    X = np.eye(12, 4) + np.arange(12)[:, None] / 7
    y = np.array(["a", "b"] * 6, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tried = clone(head)
            if hasattr(tried, "class_weight"):
                check_class_weight(tried.class_weight)
                tried.set_params(class_weight=None)
            tried.fit(X, y)
        except ConfigurationError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
            msg = f"an option of {type(head).__name__} can not be used: {error}. Change or omit it."
            raise ConfigurationError(msg) from error


def _nearest(name: str, choices: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.4)
    return f" Did you mean {match[0]!r}?" if match else ""
