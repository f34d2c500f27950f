"""Getting to a Ray cluster, or starting one, with no dashboard, no report home and no noise."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoprobe.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Say = Callable[[str], None]

_REACH_S = 5.0


def load_ray(address: str) -> Any:
    """Ray, without what it reports home and writes to the terminal. The environment is read when
    Ray is imported, and handed on to the processes of a local cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":
        _require_token()
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray") from error
    for handler in list(logging.getLogger("ray.data").handlers):
        if type(handler).__name__ == "PlainRayHandler":
            logging.getLogger("ray.data").removeHandler(handler)
    return ray


def _require_token() -> None:
    """Who may talk to the local cluster: who has its token. Ray would write one to the home."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def resolved(address: str, say: Say) -> str:
    """What `auto` stands for: `RAY_ADDRESS`, or what `ray start` has noted on this machine, or
    `local`. Ray's own search would also join the private cluster of another program here.

    Raises ConfigurationError for Ray Client's addresses, and where nothing listens: Ray itself
    would try for minutes, without a word.
    """
    if address.startswith("ray://"):
        raise ConfigurationError(
            f"--address {address}: an address of Ray Client, whose driver is not in the cluster. "
            "Expected auto, local or host:port. Run this on a node of the cluster, such as with "
            "`ray job submit`."
        )
    given = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if given:
        if given != "local" and not _listens(given):
            raise _nothing_there(given, "nothing listens")
        return given
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # noqa: S108
    if note.is_file() and _listens(noted := note.read_text(encoding="utf-8").strip()):
        return noted
    say("No Ray cluster runs here: one is started on this machine, for this run.")
    return "local"


def connect(ray: Any, address: str) -> None:
    """Join the cluster at the address. Raises ConfigurationError where there is none."""
    if ray.is_initialized():
        raise ConfigurationError(
            "this process is connected to a Ray cluster already. Expected none. Call "
            "ray.shutdown() before."
        )
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    try:
        with _silent_stderr():
            if address == "local":
                ray.init(address="local", include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0][:300]
        raise _nothing_there(address, first_line) from error


def _listens(address: str) -> bool:
    """Whether anything does, at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _nothing_there(address: str, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"--address {address}: no Ray cluster there ({found}). Expected host:port of one that "
        "runs: start it with `ray start`, or use --address local for this machine alone."
    )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what Ray's C++ part writes to the descriptor itself while it starts."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
