"""The guards in conftest.py guard."""

from __future__ import annotations

import os
import socket

import pytest

ELSEWHERE = "192.0.2.1"  # TEST-NET-1, RFC 5737: nobody is there


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_a_connection_that_leaves_the_machine_is_refused(call):
    with socket.socket() as client, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        getattr(client, call)((ELSEWHERE, 9))


def test_a_name_is_not_looked_up():
    with pytest.raises(RuntimeError, match=r"example\.invalid"):
        socket.create_connection(("example.invalid", 80), timeout=1)


def test_loopback_connects():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_the_caches_are_the_sessions_own():
    assert "dinoprobe-tests-" in os.environ["DINOPROBE_CACHE"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
