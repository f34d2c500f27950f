"""Requests to the hub with a bound on silence: an answer or a reason within 4.5 s, no retries.

The session is huggingface_hub's, so proxies and certificates are those a user has set up for it.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urljoin, urlsplit

from dinoprobe.encoder.hub.refusal import RefusedError, state_of
from dinoprobe.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECT_TIMEOUT_S = 4.0
ANSWER_TIMEOUT_S = 4.0  # for small questions; HF_HUB_DOWNLOAD_TIMEOUT, where it is set, replaces it
_NAME_LIMIT_S = 1.0  # a name in a message is a courtesy: not worth more of the time
_SLACK_S = 0.5  # what may pass beyond a timeout before the caller is told
_BROKEN = frozenset({"RequestError", "InvalidURL", "ConnectionError", "TimeoutError"})
_WORDS = 200  # characters of a foreign text that a message holds at most


def token() -> str | None:
    """The user's token as huggingface_hub finds it: the environment, then `hf auth login`."""
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def token_place() -> str | None:
    """Where the token comes from, in words: a variable or a file; None without one."""
    from huggingface_hub import constants

    if token() is None:
        return None
    named = next((n for n in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(n)), None)
    return named or str(constants.HF_TOKEN_PATH)


def user_name() -> str | None:
    """The token's account; None without a token, and where it is not valid or may not tell."""
    if token() is None:
        return None
    try:
        value = get_json("api/whoami-v2", limit_s=_NAME_LIMIT_S)
    except RefusedError:
        return None
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    """The hub's address, without a slash at its end."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT).rstrip("/")


def get_json(path: str, *, limit_s: float | None = None) -> Any:
    """The JSON at `path` of the hub. Raises RefusedError."""
    read_s = limit_s or _answer_timeout_s()
    with stream("GET", f"{endpoint()}/{path}", read_s=read_s) as response:
        raise_for_status(response)
        content = response.read()
    try:
        return json.loads(content)
    except ValueError as error:
        detail = f"{endpoint()} answered with something else than JSON, perhaps a proxy's page"
        raise RefusedError("unreachable", detail) from error


def head(url: str) -> Any:
    """The answer to HEAD, with redirects within the hub followed. Raises RefusedError."""
    for _ in range(5):
        with stream("HEAD", url, read_s=_answer_timeout_s(), follow_redirects=False) as response:
            raise_for_status(response)
        target = response.headers.get("location")
        if response.status_code // 100 != 3 or not target:
            return response
        following = urljoin(url, target)
        if not is_hub(following):
            return response
        url = following
    raise RefusedError("unreachable", f"{endpoint()} redirects in a circle")


def _answer_timeout_s() -> float:
    from huggingface_hub import constants

    chosen = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT")
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT) if chosen else ANSWER_TIMEOUT_S


@contextmanager
def stream(
    method: str,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    read_s: float | None = None,
    follow_redirects: bool = True,
) -> Iterator[Any]:
    """An answer whose body is read as it comes. The token goes to the hub's own host only.

    `read_s` is how long it may be silent. Raises RefusedError for every failure on the way; one
    within the block is left as it is.
    """
    from huggingface_hub import constants

    read = read_s or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    all_headers = {"user-agent": _agent(), "accept-encoding": "identity", **(headers or {})}
    if is_hub(url):
        all_headers |= _authorization()
    timeout = (min(CONNECT_TIMEOUT_S, read), read, read, CONNECT_TIMEOUT_S)
    options = {"headers": all_headers, "timeout": timeout, "follow_redirects": follow_redirects}
    request, response = _open(_session(), method, url, options, read)
    try:
        yield response
    finally:
        request.__exit__(None, None, None)


def _session() -> Any:
    """huggingface_hub's client; a proxy or a certificate that it can not use is a refusal.

    The error's own text is kept back: it may quote a proxy's password.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        return get_session()
    except Exception as error:
        kind = type(error).__name__
        detail = f"the connection can not be set up ({kind}): check the proxy and SSL variables"
        raise RefusedError("unreachable", detail) from error


def _authorization() -> dict[str, str]:
    """The header with the token. One that no header can hold is refused here: an error of the
    session's library would quote it.
    """
    secret = token()
    if secret is None:
        return {}
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise RefusedError("invalid-token", "it holds characters that no token has")
    return {"authorization": f"Bearer {secret}"}


def _open(
    session: Any, method: str, url: str, options: dict[str, Any], read_s: float
) -> tuple[Any, Any]:
    """The request and its answer; asked a second time where a kept connection had gone stale."""

    def enter() -> tuple[Any, Any]:
        request = session.stream(method, url, **options)
        return request, request.__enter__()

    try:
        return _bounded(enter, read_s + _SLACK_S)
    except Exception as error:  # noqa: BLE001 - the library is huggingface_hub's choice
        if type(error).__name__ not in {"RemoteProtocolError", "ReadError"}:
            _unreachable(error, url)
    try:
        return _bounded(enter, read_s + _SLACK_S)
    except Exception as error:  # noqa: BLE001
        _unreachable(error, url)


def _bounded(call: Callable[[], tuple[Any, Any]], limit_s: float) -> tuple[Any, Any]:
    """What `call` returns or raises; TimeoutError after `limit_s`.

    It runs in a thread of its own, which is left to its end: a silent name server, or a host with
    eight addresses of which none answers, takes a multiple of every timeout (22 s were measured).
    """
    box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            box.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            box.put((None, error))

    threading.Thread(target=work, daemon=True, name="dinoprobe-hub").start()
    try:
        found, error = box.get(timeout=limit_s)
    except queue.Empty:
        msg = f"no answer within {limit_s:g} s; HF_HUB_DOWNLOAD_TIMEOUT=30 waits longer"
        raise TimeoutError(msg) from None
    if error is not None:
        raise error
    answer: tuple[Any, Any] = found
    return answer


def raise_for_status(response: Any) -> None:
    """Raise RefusedError for an answer from 400 up."""
    if response.status_code < 400:
        return
    text = _words(response)
    state = state_of(response.status_code, response.headers, text, has_token=token() is not None)
    detail = f"status {response.status_code} from {endpoint()}"
    if "html" in response.headers.get("content-type", ""):
        detail += ", a web page, perhaps a proxy's"
    elif said := scrub(response.headers.get("x-error-message", "")):
        detail += f": {said}"
    wait = response.headers.get("retry-after", "")
    wait_s = int(wait) if _is_seconds(wait) else None
    if wait_s is not None:
        detail += f", retry after {wait_s} s"
    raise RefusedError(state, detail, wait_s=wait_s)


def _is_seconds(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 7


def scrub(text: str) -> str:
    """A foreign text as one short line, in which the token can not stand."""
    secret = token()
    words = " ".join((text.replace(secret, "<token>") if secret else text).split())
    return words if len(words) <= _WORDS else words[: _WORDS - 3] + "..."


def _words(response: Any) -> str:
    try:
        return bytes(response.read())[:2000].decode("utf-8", "replace")
    except Exception:  # noqa: BLE001 - an error's text is a courtesy
        return ""


def is_transport_error(error: BaseException) -> bool:
    """Whether the connection broke, in whichever library huggingface_hub uses."""
    return not _BROKEN.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def is_hub(url: str) -> bool:
    """Whether this address is on the hub's own host and port."""
    return _origin(url) == _origin(endpoint())


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; `host:443` and `host` are one. What is no address is like no other."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", url, None
    return parts.scheme, parts.hostname or "", port


def _agent() -> str:
    return f"dinoprobe/{own_version()}"


def _unreachable(error: Exception, url: str) -> NoReturn:
    if type(error).__name__ == "OfflineModeIsEnabled":
        raise RefusedError("offline") from error
    if not is_transport_error(error) and not isinstance(error, OSError | ValueError):
        raise error
    at_hub = is_hub(url) or url.startswith(f"{endpoint()}/")
    where = endpoint() if at_hub else f"{_host(url)}, where {endpoint()} keeps its files"
    raise RefusedError("unreachable", f"{where}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a connection broke, without what a message must not hold."""
    return scrub(str(error)) or type(error).__name__


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]
