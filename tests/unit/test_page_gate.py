"""Who may ask the page: this machine's browser with the token, by the page's own name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient
from tests.workspaces import PORT, TOKEN, make_workspace, served

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = f"127.0.0.1:{PORT}"
WITH_TOKEN = {"x-dinoprobe-token": TOKEN}
PATHS = ("/", "/app.js", "/api/info", "/api/rows", "/api/image?key=x", "/api/labels", "/nothing")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    gate, service = served(make_workspace(tmp_path_factory.mktemp("gate")))
    yield gate
    service.batcher.close()


@pytest.fixture
def client(gate: Any) -> Iterator[TestClient]:
    client = TestClient(gate, base_url=f"http://{OWN}", follow_redirects=False)
    yield client
    client.close()


@pytest.mark.parametrize("path", PATHS)
def test_nothing_without_the_token(client: TestClient, path: str) -> None:
    for given in ({}, {"x-dinoprobe-token": "another"}, {"cookie": f"dinoprobe-{PORT}=another"}):
        answer = client.get(path, headers=given)
        assert (answer.status_code, answer.json()["reason"]) == (403, "token")


def test_the_first_load_gives_a_cookie_and_takes_the_token_out_of_the_address(
    client: TestClient,
) -> None:
    answer = client.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"dinoprobe-{PORT}={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.get("/").status_code == 200


def test_a_wrong_token_in_the_address_gives_no_cookie(client: TestClient) -> None:
    answer = client.get("/?token=another")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", f"127.0.0.1:{PORT + 1}", ""]
)
def test_another_host_is_refused_though_the_token_is_right(client: TestClient, host: str) -> None:
    answer = client.get("/api/info", headers={**WITH_TOKEN, "host": host})
    assert (answer.status_code, answer.json()["reason"]) == (403, "host")


def test_localhost_is_a_name_of_this_machine(client: TestClient) -> None:
    headers = {**WITH_TOKEN, "host": f"localhost:{PORT}"}
    assert client.get("/api/info", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"http://127.0.0.1:{PORT + 1}"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_origin_is_refused(client: TestClient, method: str, origin: str) -> None:
    answer = client.request(method, "/api/labels", headers={**WITH_TOKEN, "origin": origin})
    assert (answer.status_code, answer.json()["reason"]) == (403, "origin")


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403)])
def test_what_another_site_shows_is_refused(client: TestClient, site: str, status: int) -> None:
    answer = client.get("/api/info", headers={**WITH_TOKEN, "sec-fetch-site": site})
    assert (answer.status_code, answer.json()["reason"]) == (status, "site")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_says_what_the_page_may_do(client: TestClient, path: str) -> None:
    for headers in ({}, WITH_TOKEN):
        found = client.get(path, headers=headers).headers
        policy = found["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy
        assert found["x-content-type-options"] == "nosniff"
        assert found["cross-origin-resource-policy"] == "same-origin"
        assert found["x-frame-options"] == "DENY"


def test_a_body_beyond_the_limit_is_refused(client: TestClient) -> None:
    answer = client.post("/api/predict", content=b"x" * (33 << 20), headers=WITH_TOKEN)
    assert answer.status_code == 413


def test_no_path_is_read_from_the_disk(client: TestClient) -> None:
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/app.py"):
        assert client.get(path, headers=WITH_TOKEN).status_code == 404
