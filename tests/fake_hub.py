"""A hub on the loopback address: enough of the Hugging Face protocol to download and to refuse."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
MISSING = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


class Refusal:
    """A status and headers that answer every request for a repository."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Mapping[str, Path | Refusal]
    seen: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.seen.append(path)
        plain = path.removeprefix("api/models/")
        name = "/".join(plain.split("/")[:2])
        found = self.repositories.get(name, Refusal(401, MISSING))
        if isinstance(found, Refusal):
            self._send(found.status, b"{}", found.headers, body=body)
        elif path.startswith("api/models/"):
            self._send(200, self._listing(found, plain), {}, body=body)
        else:
            self._send_file(found, plain.split("/", 4)[-1], body=body)

    def _listing(self, folder: Path, plain: str) -> bytes:
        names = sorted(p.name for p in folder.iterdir() if p.is_file())
        if "/tree/" in plain:
            rows = [
                {
                    "type": "file",
                    "path": n,
                    "size": (folder / n).stat().st_size,
                    "oid": _etag(folder / n),
                }
                for n in names
            ]
            return json.dumps(rows).encode()
        siblings = [{"rfilename": name} for name in names]
        return json.dumps({"id": "x/y", "sha": COMMIT, "siblings": siblings}).encode()

    def _send_file(self, folder: Path, name: str, *, body: bool) -> None:
        path = folder / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
        self._send(200, path.read_bytes(), headers, body=body)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body:
            self.wfile.write(data)


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def fake_hub(repositories: Mapping[str, Path | Refusal]) -> Iterator[str]:
    """Serve folders and refusals by repository id; gives the endpoint's URL."""
    handler = type("Handler", (_Handler,), {"repositories": repositories, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
