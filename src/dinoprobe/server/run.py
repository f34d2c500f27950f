"""Runs the service until it is told to end, and ends it in order.

On SIGTERM or Ctrl-C it says that it is not ready, still takes requests for `drain_s`, then closes
its door, answers what it has, and ends with exit code 0. A second signal ends it at once.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, final

import uvicorn

from dinoprobe.errors import ConfigurationError, ServiceError
from dinoprobe.server.app import create_app
from dinoprobe.server.connection import Connection
from dinoprobe.server.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from dinoprobe.server.gate import App
    from dinoprobe.server.predictor import Predictor
    from dinoprobe.server.settings import ServerSettings

_BACKLOG = 2048
log = logging.getLogger("dinoprobe.server")
_SPARE_FILES = 256  # beside connections: weights, libraries, threads
_TALKATIVE = ("python_multipart", "tifffile", "PIL")


def serve(
    predictor: Predictor,
    settings: ServerSettings,
    *,
    ready: Callable[[str], None] = lambda _: None,
    logs: bool = True,
) -> None:
    """Serve until a signal; `ready` gets the address once connections are taken.

    `logs` puts a line of JSON on stderr for each request. Raises ConfigurationError where the
    address can not be had, and ServiceError where it ended because decoders hang.
    """
    listening = listen(settings)
    service = Service(predictor, settings)
    serve_app(create_app(service), service, listening, ready=ready, logs=logs)


def serve_app(
    app: App,
    service: Service,
    listening: socket.socket,
    *,
    ready: Callable[[str], None] = lambda _: None,
    logs: bool = True,
) -> None:
    """As `serve`, with another application before the service. Closes both at the end."""
    _allow_files(2 * service.settings.max_connections + _SPARE_FILES)
    _log_as_json(logging.INFO if logs else logging.ERROR)
    server = _Server(_config(app, service), service, lambda: ready(address_of(listening)))
    try:
        server.run(sockets=[listening])
    finally:
        service.batcher.close()
        listening.close()
    if server.is_stuck:
        raise ServiceError(
            "it ended itself, for decoders hang; expected them to end. Start it again."
        )


def _config(app: App, service: Service) -> uvicorn.Config:
    settings = service.settings
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.head_timeout_s)),
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
        limit_concurrency=settings.max_connections,
    )


@final
class _Server(uvicorn.Server):
    """Says when it listens, and drains before it ends."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._end_s: float | None = None
        self.is_stuck = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        if self._service.draining:
            self.force_exit = self.should_exit = True
            return
        self._service.draining = True
        self._end_s = time.monotonic() + self._service.settings.drain_s

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._end_s is not None and time.monotonic() >= self._end_s:
            self.should_exit = True
        if self._service.settings.exit_when_stuck and self._service.batcher.is_stuck:
            if not self.is_stuck:
                log.error("it ends, for decoders hang")
            self.is_stuck = self.should_exit = True
        return await super().on_tick(counter)


def listen(settings: ServerSettings) -> socket.socket:
    """Bound, and of the protocol TCP by name: only then asyncio sends small parts at once, and an
    answer does not wait 40 ms for the client's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        place = f"{settings.host}:{settings.port}"
        message = f"{place}: can not be listened on ({error.strerror or error}); expected a free "
        raise ConfigurationError(f"{message}port of this machine. Give another --port.") from error
    return listening


def _allow_files(count: int) -> None:
    """So many open files where the system lets a process ask for them; often 1,024 are given."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def address_of(listening: socket.socket) -> str:
    """Where it listens, as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@final
class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def _log_as_json(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    for name in ("dinoprobe.server", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level if logger is log else logging.ERROR)
        logger.propagate = False
    for name in _TALKATIVE:  # of what clients send; the answer says it
        logging.getLogger(name).setLevel(logging.CRITICAL)
