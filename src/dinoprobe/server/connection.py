"""One connection: what uvicorn leaves open of it.

uvicorn alone keeps a connection whose request never comes, and speaks plain text where there are
too many and where a request is no HTTP. Here a head has its time, and both have our document.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, final

from uvicorn.protocols.http.h11_impl import H11Protocol

from dinoprobe.server.gate import EXCESS, new_request_id
from dinoprobe.server.problems import ProblemError

if TYPE_CHECKING:
    import asyncio

_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n"
)
_EXCESS_S = 1.0  # for the head of a request that will be refused


@final
class Connection(H11Protocol):
    """Closed where the head of a request is not whole in time, from the first byte or before.

    Beyond uvicorn's `limit_concurrency` the gate refuses what is asked, and the connection is
    closed; beyond twice as many it is closed at once.
    """

    _waiting: asyncio.TimerHandle | None = None
    _is_excess = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more connection, or one too many."""
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most:
            self._is_excess = True
            self.app_state = {**self.app_state, EXCESS: True}
            if len(self.connections) > 2 * self._most:
                transport.abort()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        """In the form of every other error."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            problem = ProblemError(400, "http", f"{msg} Expected HTTP/1.1. Send that.")
            content = json.dumps(problem.document(new_request_id())).encode()
            self.transport.write(_BAD_REQUEST % len(content) + content)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: of its head, or later ones."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop()

    def on_response_complete(self) -> None:
        """The next head has its time from now."""
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request was there already
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None and not self.transport.is_closing():
            limit_s = _EXCESS_S if self._is_excess else self.timeout_keep_alive
            self._waiting = self.loop.call_later(limit_s, self._close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _close(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
