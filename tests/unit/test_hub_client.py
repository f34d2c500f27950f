"""Requests to the hub: a bound on silence, no token in any word, answers that are no hub's."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import close_session, constants
from tests.answers import answering

from dinoprobe.encoder import hub
from dinoprobe.encoder.hub import client
from dinoprobe.encoder.hub.refusal import RefusedError
from dinoprobe.errors import AccessError, HubUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VITS16 = "facebook/dinov3-vits16-pretrain-lvd1689m"
SECRET = "hf_neverprinted"


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_DOWNLOAD_TIMEOUT", raising=False)
    yield
    close_session()


def refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> RefusedError:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(RefusedError) as caught:
        client.get_json("api/models/x/y")
    return caught.value


# --- silence --------------------------------------------------------------------------------------


def test_a_host_that_accepts_and_says_nothing_is_left_within_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(HubUnreachableError, match="could not be reached"):
            hub.preflight(VITS16, None)
    assert time.perf_counter() - start < 0.3 + 0.7


def test_a_silent_name_server_is_left_within_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of the session's library covers a look-up: it took 22 s for one of 12."""
    asked, wait = threading.Event(), threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        asked.set()
        wait.wait(20)
        return []

    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    start = time.perf_counter()
    error = refused("http://127.0.0.1:9", monkeypatch)
    took = time.perf_counter() - start
    wait.set()
    assert asked.is_set()
    assert took < 0.3 + 0.5 + 0.5
    assert error.state == "unreachable"
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in error.detail


def test_the_bounds_together_stay_below_five_seconds() -> None:
    assert client.CONNECT_TIMEOUT_S <= client.ANSWER_TIMEOUT_S <= 4.5 - client._SLACK_S


def test_who_waits_longer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "30")
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 30)
    assert client._answer_timeout_s() == 30


# --- the token ------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["hf_never\x01printed", "hf_neverprinté", "hf_never printed"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", secret)
    with answering(lambda *_: (200, {}, b"{}")) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(AccessError) as caught:
            hub.preflight(VITS16, None)
    assert server.asked == []
    assert "the token in HF_TOKEN is invalid" in str(caught.value)
    assert "hf_never" not in str(caught.value)


def test_a_server_that_repeats_the_token_does_not_get_it_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    said = {"X-Error-Message": f"no such token: {SECRET}"}
    with answering(lambda *_: (401, said, b"")) as server:
        error = refused(server.url, monkeypatch)
    assert error.state == "invalid-token"
    assert "no such token: <token>" in error.detail


def test_the_token_is_not_sent_where_it_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with answering(lambda *_: (200, {}, b"{}")) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        client.get_json("api/models/x/y")
    assert "authorization" not in server.asked[0][2]


def test_a_redirect_elsewhere_leaves_the_token_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with answering(lambda *_: (200, {}, b'{"here": 1}')) as elsewhere:
        to = {"Location": f"{elsewhere.url}/other"}
        with answering(lambda *_: (302, to, b"")) as server:
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            assert client.get_json("api/models/x/y") == {"here": 1}
    assert server.asked[0][2]["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in elsewhere.asked[0][2]


@pytest.mark.parametrize(
    ("endpoint", "url", "expected"),
    [
        ("https://huggingface.co", "https://huggingface.co:443/x", True),
        ("https://huggingface.co", "http://huggingface.co/x", False),
        ("https://huggingface.co", "https://huggingface.co.evil.example/x", False),
        ("https://huggingface.co", "https://user@huggingface.co/x", True),
        ("http://mirror:80", "http://mirror/x", True),
        ("http://[::1", "http://[::1", True),
        ("http://mirror:port", "http://mirror/x", False),
    ],
)
def test_who_may_see_the_token(
    endpoint: str, url: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert client.is_hub(url) is expected


def test_the_place_of_a_token_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert client.token_place() is None
    path.write_text(SECRET)
    assert client.token_place() == str(path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert client.token_place() == "HF_TOKEN"


# --- answers that are not a hub's -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "state"),
    [
        (403, "text/html", "unreachable"),
        (403, "text/plain", "unreachable"),
        (404, "text/html; charset=utf-8", "unreachable"),
        (407, "text/html", "unreachable"),
        (502, "text/html", "busy"),
        (429, "application/json", "busy"),
        (200, "text/html", "unreachable"),
    ],
)
def test_a_proxys_answer_is_not_taken_for_the_hubs(
    status: int, kind: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda *_: (status, {"Content-Type": kind}, b"<html>blocked</html>")) as server:
        assert refused(server.url, monkeypatch).state == state


@pytest.mark.parametrize("endpoint", ["localhost:80", "http://[::1", "http://no port:x", "ftp://x"])
def test_an_endpoint_that_is_no_address_is_told(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubUnreachableError, match="HF_ENDPOINT"):
        hub.preflight(VITS16, None)


def test_what_the_hub_asks_to_wait_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("120", 120), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("9" * 9, None)):
        with answering(lambda *_, v=value: (429, {"Retry-After": v}, b"")) as server:
            assert refused(server.url, monkeypatch).wait_s == expected


def test_a_name_that_is_not_told_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for body in (b"[]", b"{}", b'{"name": 7}', b"no JSON"):
        with answering(lambda *_, b=body: (200, {}, b)) as server:
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            assert client.user_name() is None
    with answering(lambda *_: (200, {}, json.dumps({"name": "ada"}).encode())) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert client.user_name() == "ada"
