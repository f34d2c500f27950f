"""Heads by the names that the command line and configuration files use."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads.linear import LinearProbe
from dinoprobe.heads.logistic import LogisticProbe
from dinoprobe.heads.neighbors import KNNProbe
from dinoprobe.heads.wrapped import make_estimator, sklearn_probe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dinoprobe.heads.base import ProbeBase

HEADS: dict[str, type[ProbeBase]] = {
    "linear": LinearProbe,
    "logistic": LogisticProbe,
    "knn": KNNProbe,
}
SKLEARN_PREFIX = "sklearn:"


def head_from_name(name: str, **options: Any) -> ProbeBase:
    """A head that is not fitted: "linear", "logistic", "knn", or "sklearn:" and an import path.

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


def _nearest(name: str, choices: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.4)
    return f" Did you mean {match[0]!r}?" if match else ""
