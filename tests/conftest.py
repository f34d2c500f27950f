"""What every test shares: an environment of its own, no network, and the data beside the checkout.

The environment is set when this file is imported: huggingface_hub and torch read theirs once.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for name in ("HF_TOKEN", "GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "DINOPROBE_CACHE"):
    os.environ.pop(
        name, None
    )  # a token, and what makes rich colour its output, are not the tests' business
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # one thread each: workers times threads is the machine

_SCRATCH = tempfile.TemporaryDirectory(prefix="dinoprobe-tests-")
os.environ["DINOPROBE_CACHE"] = str(Path(_SCRATCH.name, "cache"))
os.environ["HF_HOME"] = str(Path(_SCRATCH.name, "hub"))


def pytest_unconfigure() -> None:
    """Remove the caches of this session."""
    _SCRATCH.cleanup()


class NetworkError(RuntimeError):
    """A test reached for the network. Not an OSError, which code under test would handle."""


def is_local(host: str | bytes | None) -> bool:
    """Whether a connection to `host` stays on this machine."""
    text = host.decode() if isinstance(host, bytes) else host
    if text in {None, "", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> NoReturn:
    raise NetworkError(
        f"a test reached for {host!r}: tests use this machine's loopback address only"
    )


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Let sockets reach loopback addresses and local files only; subprocesses are on their own."""
    real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}
    real_getaddrinfo = socket.getaddrinfo

    def guard(name: str) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in {socket.AF_INET, socket.AF_INET6} and not is_local(address[0]):
                _refuse(address[0])
            return real[name](self, address)

        return guarded

    def getaddrinfo(host: str | bytes | None, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            _refuse(host)
        return real_getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(socket.socket, name, guard(name))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small public image sets beside the checkout, or skip."""
    return _beside("data")


@pytest.fixture(scope="session")
def shared_corpus() -> Path:
    """The folder of difficult image files beside the checkout, or skip."""
    return _beside("corpus")


def _beside(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no shared/{name} beside the checkout")
    return folder
