"""A server on the loopback address that answers each path as a test says, however odd."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Answer = tuple[int, Mapping[str, str], bytes]


@dataclass
class Server:
    """A running server; `asked` holds method, path and headers of every request."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def answering(answer: Callable[[str, str], Answer]) -> Iterator[Server]:
    """Serve what `answer(method, path with query)` gives. A Content-Length of its own is kept."""
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.asked.append((self.command, self.path, headers))
            status, own, body = answer(self.command, self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **own}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that goes away is no news."""

    server = Quiet(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- a hub with two files -------------------------------------------------------------------------

ID = "someone/vit"
COMMIT = "ab" * 20
CONFIG, WEIGHTS = b'{"model_type": "dinov3_vit"}', bytes(range(256)) * 40
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
GIT = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
LISTING = {
    "sha": COMMIT,
    "gated": False,
    "siblings": [
        {"rfilename": "config.json", "size": len(CONFIG), "blobId": GIT},
        {"rfilename": "model.safetensors", "lfs": {"sha256": SHA256, "size": len(WEIGHTS)}},
    ],
}


def giving(weights: Callable[[str], Answer]) -> Callable[[str, str], Answer]:
    """An honest hub, but for what `weights(method)` answers to those who want them."""

    def answer(method: str, path: str) -> Answer:
        if path.startswith("/api/"):
            return 200, {}, json.dumps(LISTING).encode()
        if path.endswith(".safetensors"):
            return weights(method)
        return 200, {"ETag": f'"{GIT}"'}, CONFIG

    return answer


def honest(_: str = "GET") -> Answer:
    return 200, {"ETag": f'"{SHA256}"'}, WEIGHTS
