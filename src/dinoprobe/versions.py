"""The versions that a figure depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_LIBRARIES = ("dinoprobe", "torch", "transformers", "scikit-learn", "numpy", "pillow", "pylance")


def own_version() -> str:
    """The version of this package as it is installed."""
    return versions()["dinoprobe"]


def versions() -> dict[str, str]:
    """Version of each library by name, and of Python."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
