"""What stands before the application: ids, the token, and bodies that are bounded and timely.

Plain ASGI, so that a request that is refused costs a fraction of a millisecond: under ten times the
load that fits, nearly all of the time should still go to the images.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from dinoprobe.server.problems import ProblemError, overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from dinoprobe.server.metrics import Metrics
    from dinoprobe.server.settings import ServerSettings

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("dinoprobe.server")
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
UNLOGGED_PATHS = OPEN_PATHS | {"/metrics"}
EXCESS = "dinoprobe.excess"  # in the state of a scope: one connection too many
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SEND_S = 10.0


@dataclass(slots=True)
class RequestFacts:
    """What is logged of a request; never what is in an image."""

    request_id: str
    path: str = "other"
    status: int = 0
    reason: str | None = None
    images: int = 0
    body_bytes: int = 0
    closes: bool = False


@final
class Gate:
    """The application behind it sees a request only when its head is acceptable, and its body only
    within the limits. `check_room` raises ProblemError where no image would be admitted.
    """

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        metrics: Metrics,
        check_room: Callable[[], None],
        paths: frozenset[str],
    ) -> None:
        """`paths` are those that there are, of which requests are counted."""
        self._app, self._settings, self._metrics = app, settings, metrics
        self._check_room, self._paths = check_room, paths
        self._token = settings.token.encode() if settings.token else None
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = dict(scope["headers"])
        facts = RequestFacts(
            _request_id(headers.get(b"x-request-id", b"")),
            scope["path"] if scope["path"] in self._paths else "other",
        )
        facts.closes = EXCESS in scope.get("state", ())
        scope["facts"] = facts
        body = _Body(self, facts, receive)
        answer = _Answer(send, facts)
        try:
            self._check_head(scope, headers, facts)
            await self._app(scope, body.receive, answer.send)
        except ProblemError as problem:
            await refuse(problem, facts, answer)
        except Exception:
            if facts.reason != "slow-reader":
                facts.reason = "bug"
                log.exception("failed", extra={"fields": {"request_id": facts.request_id}})
            if not answer.finished:
                raise  # the connection is closed
        finally:
            self.buffer(-facts.body_bytes)
            self._leave(scope, facts, time.monotonic() - start)

    def buffer(self, count: int) -> None:
        """So many more bytes of bodies are held. Raises ProblemError where they are too many."""
        if count > 0 and self._buffered + count > self._settings.max_buffered_bytes:
            held = f"{self._buffered / 1e6:.0f} MB of requests are held"
            raise overloaded(f"{held}; expected less at a time. Ask again.", "too-many-bytes")
        self._buffered += count
        self._metrics.buffered.set(self._buffered)

    def _check_head(self, scope: Scope, headers: dict[bytes, bytes], facts: RequestFacts) -> None:
        if facts.closes and scope["path"] not in OPEN_PATHS:
            most = f"more than {self._settings.max_connections:,} connections"
            message = f"{most}; expected fewer at a time. Keep connections, and ask again."
            raise overloaded(message, "too-many-connections")
        self._check_token(scope["path"], headers.get(b"authorization", b""))
        if scope["method"] != "POST":
            return
        coding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if coding.lower() != "identity":
            message = f"a body in {coding[:50]!r}; expected one that is not compressed. Send that."
            raise ProblemError(415, "content-encoding", message)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            raise self._too_long(f"{int(length):,}")
        if scope["path"] in self._paths:  # all that is posted to holds images
            self._check_room()

    def _check_token(self, path: str, given: bytes) -> None:
        if self._token is None or path in OPEN_PATHS:
            return
        scheme, _, token = given.partition(b" ")
        is_same = hmac.compare_digest(token.strip(), self._token)  # in constant time
        if scheme.lower() != b"bearer" or not is_same:
            found = "another token" if given else "no token"
            message = f"{found}; expected the header 'Authorization: Bearer TOKEN'. Send it."
            raise ProblemError(401, "unauthorized", message)

    def _too_long(self, found: str) -> ProblemError:
        limit = self._settings.max_body_bytes
        message = f"a body of {found} bytes; expected at most {limit:,}. Send less at a time."
        return ProblemError(413, "body-too-large", message)

    async def receive_within(self, body: _Body) -> Message:
        """The next part of a body. Raises ProblemError where it is late, or one too many."""
        message = await self._timely(body)
        size = len(message.get("body", b""))
        if body.facts.body_bytes + size > self._settings.max_body_bytes:
            raise self._too_long(f"more than {self._settings.max_body_bytes:,}")
        self.buffer(size)
        body.facts.body_bytes += size
        return message

    async def _timely(self, body: _Body) -> Message:
        limit_s = self._settings.body_timeout_s
        try:
            async with asyncio.timeout_at(body.end_s(limit_s)):
                return await body.wait()
        except TimeoutError:
            message = (
                f"a body that is not here after {limit_s:g} s; expected all of it. Send again."
            )
            raise ProblemError(408, "slow-body", message) from None

    def _leave(self, scope: Scope, facts: RequestFacts, seconds: float) -> None:
        self._metrics.request.observe(seconds)
        self._metrics.responses.labels(facts.path, str(facts.status)).inc()
        if facts.reason:
            self._metrics.failures.labels(facts.reason).inc()
        if facts.path not in UNLOGGED_PATHS:
            fields = {
                "request_id": facts.request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": facts.status,
                "ms": round(1000 * seconds, 1),
                "images": facts.images,
                "bytes": facts.body_bytes,
                "reason": facts.reason,
            }
            log.info("request", extra={"fields": fields})


@final
class _Body:
    """The body of one request as it arrives, against one clock that starts with its first wait."""

    def __init__(self, gate: Gate, facts: RequestFacts, wait: Receive) -> None:
        self._gate = gate
        self.facts = facts
        self.wait = wait
        self._end_s: float | None = None

    def end_s(self, limit_s: float) -> float:
        """Until when, by the loop's clock, all of it is to be here."""
        if self._end_s is None:
            self._end_s = asyncio.get_running_loop().time() + limit_s
        return self._end_s

    async def receive(self) -> Message:
        """ASGI's receive, within the limits."""
        return await self._gate.receive_within(self)


@final
class _Answer:
    """ASGI's send with the request's id, given up where nobody reads."""

    def __init__(self, send: Send, facts: RequestFacts) -> None:
        self._send = send
        self._facts = facts
        self.started = self.finished = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._facts.status = message["status"]
            named = (b"x-request-id", self._facts.request_id.encode())
            own = list(message.get("headers", ()))
            known = {name for name, _ in own}
            safe = [header for header in _SAFE if header[0] not in known]
            closing = [(b"connection", b"close")] if self._facts.closes else []
            message["headers"] = [*own, named, *safe, *closing]
        try:
            async with asyncio.timeout(_SEND_S):
                await self._send(message)
            self.finished = self.started and not message.get("more_body", False)
        except TimeoutError:
            self._facts.reason = "slow-reader"
            raise


_SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


async def refuse(problem: ProblemError, facts: RequestFacts, answer: _Answer) -> None:
    """Send what went wrong, unless an answer has begun."""
    facts.reason = problem.reason
    if answer.started:
        return
    content = json.dumps(problem.document(facts.request_id)).encode()
    headers = [(name.encode(), value.encode()) for name, value in problem.headers().items()]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    start = {"type": "http.response.start", "status": problem.status, "headers": headers}
    await answer.send(start)
    await answer.send({"type": "http.response.body", "body": content})


def _request_id(given: bytes) -> str:
    """The client's, where it is harmless in a log, else one of our own."""
    text = given.decode("latin-1")
    return text if _ID.fullmatch(text) else new_request_id()


def new_request_id() -> str:
    """One that no other request has."""
    return secrets.token_hex(8)
