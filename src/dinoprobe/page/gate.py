"""What stands before the page: only this machine's browser, and only who was given the address.

A page on this machine can be reached by every web page that its browser shows, and by each of its
users. Against the first: the Host must be ours (a name that another site points here is refused),
and so must the Origin and what the browser says of the site that asks. Against the others: a random
token, which the first load brings in its address, and a cookie from then on.
"""

from __future__ import annotations

import hmac
import json
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, final
from urllib.parse import parse_qs

from dinoprobe.server.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dinoprobe.server.gate import App, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
)
TOKEN_HEADER = b"x-dinoprobe-token"
_NAMES = ("127.0.0.1", "localhost")


@final
class LocalGate:
    """ASGI before the application; `port` is set once it is known."""

    def __init__(self, app: App, token: str) -> None:
        self._app, self._token = app, token.encode()
        self.port = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        try:
            if (path := self._login(scope)) is not None:
                await _redirect(path, self._cookie(), send)
                return
        except ProblemError as problem:
            await _refuse(problem, send)
            return

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                known = {name for name, _ in own}
                message["headers"] = [*own, *(each for each in SAFE if each[0] not in known)]
            await send(message)

        await self._app(scope, receive, safe)

    @property
    def cookie_name(self) -> str:
        """Cookies are shared by all ports of a host, so each has a name of its own."""
        return f"dinoprobe-{self.port}"

    def _cookie(self) -> str:
        return f"{self.cookie_name}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"

    def _login(self, scope: Scope) -> str | None:
        """Where to go after a login by the address; None for who is in. Raises ProblemError."""
        headers = dict(scope["headers"])
        self._check_site(scope["headers"])
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = query.get("token", [""])[0]
        if given and scope["method"] == "GET" and scope["path"] == "/":
            self._check_token(given.encode("latin-1"))
            return "/"
        self._check_token(headers.get(TOKEN_HEADER) or self._of_cookie(headers))
        return None

    def _check_site(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise ProblemError for another Host, another Origin, or another site that asks."""
        hosts = {f"{name}:{self.port}" for name in _NAMES}
        given = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if len(given) != 1 or given[0] not in hosts:
            raise _refused("host", f"the Host {given[:1]}", f"127.0.0.1:{self.port}")
        for name, value in headers:
            text = value.decode("latin-1").lower()
            if name == b"origin" and text != f"http://{given[0]}":
                raise _refused("origin", f"the Origin {text[:100]!r}", f"http://{given[0]}")
            if name == b"sec-fetch-site" and text not in ("same-origin", "none"):
                raise _refused("site", f"a request by another site ({text[:20]})", "this page")

    def _of_cookie(self, headers: dict[bytes, bytes]) -> bytes:
        try:
            jar = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return b""
        found = jar.get(self.cookie_name)
        return found.value.encode("latin-1") if found else b""

    def _check_token(self, given: bytes) -> None:
        if not hmac.compare_digest(given, self._token):  # in constant time
            message = "no token, or another one; expected that of this page's address. Open the "
            raise ProblemError(403, "token", f"{message}address that dinoprobe open printed.")


def _refused(reason: str, found: str, expected: str) -> ProblemError:
    return ProblemError(403, reason, f"{found}; expected {expected}. Open the page's own address.")


async def _redirect(path: str, cookie: str, send: Send) -> None:
    headers = [(b"location", path.encode()), (b"set-cookie", cookie.encode())]
    await _answer(303, [*headers, (b"cache-control", b"no-store")], b"", send)


async def _refuse(problem: ProblemError, send: Send) -> None:
    body = json.dumps(problem.document("")).encode()
    await _answer(problem.status, [(b"content-type", b"application/json")], body, send)


async def _answer(status: int, headers: list[Any], body: bytes, send: Send) -> None:
    size = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [*headers, *SAFE, size]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
