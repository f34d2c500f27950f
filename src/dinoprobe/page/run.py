"""Runs the page on this machine until Ctrl-C."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from dinoprobe.page.app import PREDICT_PATH, create_page
from dinoprobe.page.gate import LocalGate
from dinoprobe.page.predicting import EncoderPredictor
from dinoprobe.server.gate import Gate
from dinoprobe.server.run import address_of, listen, serve_app
from dinoprobe.server.service import Service
from dinoprobe.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.page.workspace import Workspace


def settings_for(port: int) -> ServerSettings:
    """Of this machine alone, for one person: the service's limits, and time for a slow refit."""
    return ServerSettings(host="127.0.0.1", port=port, deadline_s=60.0, grace_s=5.0)


def guarded_page(
    work: Workspace, service: Service, token: str, say: Callable[[str], None]
) -> LocalGate:
    """The page behind both gates: who may ask, and how much."""
    app = create_page(work, service, say)
    check = service.batcher.check_room
    paths = frozenset({PREDICT_PATH})
    return LocalGate(Gate(app, service.settings, service.metrics, check, paths), token)


def open_page(
    work: Workspace,
    *,
    port: int = 0,
    ready: Callable[[str], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until Ctrl-C; `ready` gets the address with its token.

    Raises ConfigurationError where the port can not be had.
    """
    settings = settings_for(port)
    listening = listen(settings)
    service = Service(EncoderPredictor(work.encoder), settings)
    token = secrets.token_urlsafe(24)
    gate = guarded_page(work, service, token, say)
    gate.port = listening.getsockname()[1]
    address = f"{address_of(listening)}/?token={token}"
    serve_app(gate, service, listening, ready=lambda _: ready(address), logs=False)
