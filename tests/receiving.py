"""The hub of `fakehub`, that also takes repositories, branches, large files and commits."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.fakehub import COMMIT, GOOD_TOKEN, USER, Handler


@dataclass
class Received:
    """What came: files by name for each repository and branch, and how many commits.

    `refuses` maps the end of a path to the status that its POST is answered with.
    """

    private: dict[str, bool] = field(default_factory=dict)
    branches: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)


class Receiver(Handler):
    """As huggingface_hub's client asks it: _commit_api.py, lfs.py and hf_api.py."""

    @property
    def _received(self) -> Received:
        received: Received = self.hub.received
        return received

    def do_GET(self) -> None:  # noqa: N802
        name = self.path.removeprefix("/api/models/")
        if name in self._received.private:
            self._json(200, {"id": name, "sha": COMMIT, "private": self._received.private[name]})
        else:
            super().do_GET()

    def do_PUT(self) -> None:  # noqa: N802
        content = self._body()
        digest = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != digest:
            self._json(400, {"error": "another digest"})
            return
        self._received.objects[digest] = content
        self._json(200, {})

    def do_POST(self) -> None:  # noqa: N802
        content, path = self._body(), self.path.partition("?")[0]
        refused = next((n for end, n in self._received.refuses.items() if path.endswith(end)), None)
        if self.headers.get("authorization") != f"Bearer {GOOD_TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        elif refused is not None:
            self._json(refused, {"error": "You don't have the rights to create a model here."})
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(content))
        else:
            _, _, _, owner, name, what, branch = path.split("/")
            getattr(self, f"_{what}")(f"{owner}/{name}", branch, content)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        known = name in self._received.private
        if not known:
            self._received.private[name] = asked.get("visibility") == "private"
            self._received.branches[name] = {"main": {}}
        self._json(409 if known else 200, {"url": f"{self.hub.endpoint}/{name}"})

    def _batch(self, asked: dict[str, Any]) -> None:
        actions = [
            {**item, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}}
            for item in asked["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": actions})

    def _branch(self, name: str, branch: str, _: bytes) -> None:
        branches = self._received.branches[name]
        known = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        self._json(409 if known else 200, {})

    def _preupload(self, _: str, __: str, content: bytes) -> None:
        large = (".safetensors", ".onnx")
        found = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(content)["files"]
        ]
        self._json(200, {"files": found})

    def _commit(self, name: str, branch: str, content: bytes) -> None:
        files = self._received.branches[name][branch]
        for line in content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self._received.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self._received.objects[value["oid"]]
        url = f"{self.hub.endpoint}/{name}/commit/{COMMIT}"
        self._json(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _json(self, status: int, value: dict[str, Any]) -> None:
        headers = {"X-Error-Message": str(value["error"])} if "error" in value else {}
        self._headers(status, len(data := json.dumps(value).encode()), headers)
        self.wfile.write(data)
