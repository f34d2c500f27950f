"""A hub on the loopback address: enough of the Hugging Face protocol to give, refuse and break off.

By hand, with real randomly initialised weights of the smallest official shape:

    python -m tests.fakehub --list
    python -m tests.fakehub --scenario not-accepted      # prints what to export and to try

The refusals are those of huggingface.co as transformers' and huggingface_hub's sources and threads
quote them: a gated repository lists its files for everyone, and refuses to give them.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1.0", COMMIT)
GOOD_TOKEN = "hf_good"
USER = "ada"

SCENARIOS = {
    "no-token": "gated, for a user without a token",
    "open": "files for everyone",
    "granted": "gated, and the token hf_good may read it",
    "not-accepted": "gated, and the account has not accepted the licence",
    "pending": "gated, and the request waits for review",
    "rejected": "gated, and the request was rejected",
    "invalid-token": "every token is invalid or expired",
    "token-scope": "a fine-grained token without access to gated repositories",
    "not-found": "no such repository",
    "cut": "the connection breaks in the middle of the weights, twice",
    "slow": "the weights come slowly",
    "no-range": "the server knows no ranges, and breaks off once",
    "changed": "the file is another one than the listing said",
    "wrong-digest": "one bit of the weights is flipped on the way",
    "cdn": "files are on another host, which must not see the token",
    "busy": "the hub answers 503",
    "rate-limit": "the hub answers 429 and says when to come again",
    "html": "a proxy answers with a web page",
}
_REASONS = {
    "not-accepted": "Access to model {id} is restricted and you are not in the authorized list. "
    "Visit https://huggingface.co/{id} to ask for access.",
    "pending": "Your request to access model {id} is awaiting a review from the repo authors.",
    "rejected": "Your request to access model {id} has been rejected by the repo's authors.",
    "no-token": "Access to model {id} is restricted. You must have access to it and be "
    "authenticated to access it. Please log in.",
    "token-scope": "Please enable access to public gated repositories in your fine-grained token "
    "settings to view this repository.",
}


@dataclass
class Repository:
    """A folder that is served, and how. `cuts` is how often a transfer still breaks off, after
    `cut_after` bytes; `delay_s` is the pause after each 64 kB.
    """

    folder: Path
    scenario: str = "open"
    cuts: int = 0
    cut_after: int = 0
    delay_s: float = 0.0


@dataclass
class Request:
    """What a client asked, and how many bytes of the body it got."""

    method: str
    path: str
    range: str | None
    has_token: bool
    sent: int = 0
    served_by: str = "hub"


@dataclass
class FakeHub:
    """A running server: `requests` are in their order."""

    repositories: Mapping[str, Repository]
    endpoint: str = ""
    cdn: str = ""
    requests: list[Request] = field(default_factory=list)
    received: Any = None

    def of(self, ending: str, method: str = "GET") -> list[Request]:
        """The requests of this method whose path ends so."""
        return [r for r in self.requests if r.method == method and r.path.endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    role = "hub"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        token = self.headers.get("authorization")
        self.record = Request(
            "GET" if body else "HEAD", path, self.headers.get("range"), token is not None
        )
        self.record.served_by = self.role
        self.hub.requests.append(self.record)
        if path == "api/whoami-v2":
            self._whoami(token, body=body)
            return
        plain = path.removeprefix("api/models/").removeprefix("cdn/")
        name = "/".join(plain.split("/")[:2])
        repository = self.hub.repositories.get(name)
        if repository is None or repository.scenario == "not-found":
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found", body=body)
        elif not self._refused(repository, name, path, token, body=body):
            self._give(repository, name, path, body=body)

    def _whoami(self, token: str | None, *, body: bool) -> None:
        scenarios = {repository.scenario for repository in self.hub.repositories.values()}
        if token is None or "invalid-token" in scenarios:
            self._refuse(401, None, "Invalid credentials in Authorization header", body=body)
        else:
            self._send(200, json.dumps({"name": USER, "type": "user"}).encode(), {}, body=body)

    def _refused(
        self, repository: Repository, name: str, path: str, token: str | None, *, body: bool
    ) -> bool:
        """Answers, and says so, where the scenario refuses this request."""
        scenario = repository.scenario
        if scenario == "invalid-token" and token:
            self._refuse(401, None, "Invalid credentials in Authorization header", body=body)
        elif scenario == "busy":
            self._refuse(503, None, "Service Unavailable", body=body)
        elif scenario == "rate-limit":
            self._send(429, b"{}", {"Retry-After": "30"}, body=body)
        elif scenario == "html":
            page = (
                b"<!doctype html><html><body>Please log in to the company's network</body></html>"
            )
            self._send(200, page, {"Content-Type": "text/html"}, body=body)
        elif path.startswith("api/") or self.role == "cdn":
            return False
        elif scenario in {"granted", "not-accepted", "pending", "rejected", "token-scope"}:
            return self._gated(scenario, name, token, body=body)
        else:
            return False
        return True

    def _gated(self, scenario: str, name: str, token: str | None, *, body: bool) -> bool:
        if token is None:
            reason = _REASONS["no-token"].format(id=name)
            self._refuse(401, "GatedRepo", reason, body=body)
        elif scenario == "token-scope":
            self._refuse(403, None, _REASONS["token-scope"], body=body)
        elif scenario == "granted" and token == f"Bearer {GOOD_TOKEN}":
            return False
        else:
            key = "not-accepted" if scenario == "granted" else scenario
            self._refuse(403, "GatedRepo", _REASONS[key].format(id=name), body=body)
        return True

    def _refuse(self, status: int, code: str | None, message: str, *, body: bool) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers, body=body)

    def _give(self, repository: Repository, name: str, path: str, *, body: bool) -> None:
        if path.startswith("api/models/"):
            rest = path.removeprefix(f"api/models/{name}").strip("/").split("/")
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in REVISIONS:
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}", body=body)
            elif rest[0] == "tree":
                self._send(200, json.dumps(_tree(repository.folder)).encode(), {}, body=body)
            else:
                value = _information(name, repository)
                self._send(200, json.dumps(value).encode(), {}, body=body)
            return
        file = repository.folder / path.rpartition("/")[2]
        if not file.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", body=body)
        elif repository.scenario == "cdn" and self.role == "hub" and _is_large(file):
            headers = {**_file_headers(file), "Location": f"{self.hub.cdn}/cdn/{name}/{file.name}"}
            self._send(302, b"", headers, body=body)
        else:
            self._send_file(repository, file, body=body)

    def _send_file(self, repository: Repository, file: Path, *, body: bool) -> None:
        content, headers = file.read_bytes(), _file_headers(file)
        large = _is_large(file)
        if large and repository.scenario == "changed":
            content = content[::-1]
            headers["ETag"] = headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if large and repository.scenario == "wrong-digest":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        wanted = self.headers.get("range")
        if wanted and repository.scenario != "no-range":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if start and start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body=body)
            return
        status = 206 if "Content-Range" in headers else 200
        self._stream(status, content[start:], headers, repository, body=body, breakable=large)

    def _stream(
        self,
        status: int,
        data: bytes,
        headers: Mapping[str, str],
        repository: Repository,
        *,
        body: bool,
        breakable: bool,
    ) -> None:
        self._headers(status, len(data), headers)
        if not body:
            return
        cut = repository.cut_after if breakable and repository.cuts > 0 else None
        for start in range(0, len(data), 1 << 16):
            if cut is not None and start >= cut:
                repository.cuts -= 1
                self.close_connection = True
                self.connection.close()
                return
            chunk = data[start : start + (1 << 16)]
            try:
                self.wfile.write(chunk)
            except OSError:  # the client has gone
                self.close_connection = True
                return
            self.record.sent += len(chunk)
            if repository.delay_s and breakable:
                time.sleep(repository.delay_s)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool) -> None:
        self._headers(status, len(data), headers)
        if body:
            self.wfile.write(data)
            self.record.sent = len(data)

    def _headers(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _is_large(file: Path) -> bool:
    """Whether the hub keeps it apart from git, as it does with weights."""
    return file.suffix == ".safetensors"


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if _is_large(file):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _file_headers(file: Path) -> dict[str, str]:
    etag = f'"{_digest(file)}"'
    headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    if _is_large(file):
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file.stat().st_size)}
    return headers


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _information(name: str, repository: Repository) -> dict[str, Any]:
    siblings = []
    for file in _files(repository.folder):
        entry: dict[str, Any] = {"rfilename": file.name, "size": file.stat().st_size}
        if _is_large(file):
            entry["lfs"] = {"sha256": _digest(file), "size": entry["size"], "pointerSize": 134}
        else:
            entry["blobId"] = _digest(file)
        siblings.append(entry)
    gated = repository.scenario in {"granted", *_REASONS}
    return {
        "id": name,
        "sha": COMMIT,
        "private": False,
        "gated": "manual" if gated else False,
        "siblings": siblings,
    }


def _tree(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in _files(folder):
        entry: dict[str, Any] = {"type": "file", "path": file.name, "size": file.stat().st_size}
        entry["oid"] = _digest(file)
        if _is_large(file):
            entry["lfs"] = {"oid": _digest(file), "size": entry["size"], "pointerSize": 134}
        found.append(entry)
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that goes away is not news."""


@contextmanager
def serve(
    repositories: Mapping[str, Repository], port: int = 0, kind: type[Handler] | None = None
) -> Iterator[FakeHub]:
    """Serve folders by repository id, and a second host for the scenario `cdn`."""
    hub = FakeHub(repositories)
    servers = []
    for role, number in (("hub", port), ("cdn", 0)):
        handler = type("Served", (kind or Handler,), {"hub": hub, "role": role})
        servers.append(_Server(("127.0.0.1", number), handler))
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=s.serve_forever, args=(0.05,), daemon=True) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def repository(folder: Path, scenario: str) -> Repository:
    """A repository of this scenario, with the breaks that belong to it."""
    scenario = "granted" if scenario == "no-token" else scenario
    size = max(path.stat().st_size for path in _files(folder))
    options: dict[str, dict[str, Any]] = {
        "cut": {"cuts": 2, "cut_after": size // 4},
        "no-range": {"cuts": 1, "cut_after": size // 2},
        "slow": {"delay_s": 0.02},
    }
    return Repository(folder, scenario, **options.get(scenario, {}))


def main() -> None:
    """Serve until Ctrl-C."""
    import argparse
    import tempfile
    from pathlib import Path

    from tests.checkpoints import save_official
    from transformers.utils import logging

    from dinoprobe.catalog import CHECKPOINTS

    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--scenario", default="no-token", choices=list(SCENARIOS))
    parser.add_argument("--encoder", default="vits16", choices=list(CHECKPOINTS))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="list the scenarios and stop")
    options = parser.parse_args()
    if options.list:
        for name, text in SCENARIOS.items():
            print(f"{name:<14} {text}")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = save_official(Path(place), options.encoder)
        served = repository(folder, options.scenario)
        with serve({CHECKPOINTS[options.encoder].hub_id: served}, options.port) as hub:
            token = "" if options.scenario in {"no-token", "open"} else f" HF_TOKEN={GOOD_TOKEN}"
            print(f"export HF_ENDPOINT={hub.endpoint} HF_HOME={place}/home{token}")
            print(f"dinoprobe doctor --encoder {options.encoder}")
            print(f"dinoprobe pull {options.encoder}", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("stopped")


if __name__ == "__main__":
    main()
