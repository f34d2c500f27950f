"""What a server lists is held to what a hub lists, before any of it becomes a path."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import close_session, constants
from tests.answers import COMMIT, CONFIG, GIT, ID, SHA256, WEIGHTS, answering

from dinoprobe.encoder import hub
from dinoprobe.encoder.hub.listing import digest_of
from dinoprobe.errors import HubUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def config(**more: Any) -> dict[str, Any]:
    return {"rfilename": "config.json", "size": len(CONFIG), "blobId": GIT, **more}


def weights(sha256: str = SHA256, name: str = "model.safetensors") -> dict[str, Any]:
    return {
        "rfilename": name,
        "size": len(WEIGHTS),
        "blobId": "cd" * 20,
        "lfs": {"sha256": sha256, "size": len(WEIGHTS)},
    }


def answers(sha: object, siblings: object, **more: Any) -> Callable[[str, str], Any]:
    """A hub with two files, that lists what it is told to."""
    value = {"sha": sha, "gated": False, "siblings": siblings, **more}

    def answer(_: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/"):
            return 200, {}, json.dumps(value).encode()
        if path.endswith(".safetensors"):
            return 200, {"ETag": f'"{SHA256}"', "X-Linked-Size": str(len(WEIGHTS))}, WEIGHTS
        return 200, {"ETag": f'W/"{GIT}"'}, CONFIG

    return answer


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "deep" / "cache"))
    yield
    close_session()


def everything(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "sha", ["../../../../evil", "main", None, 7, COMMIT.upper(), COMMIT + "\n"]
)
def test_a_commit_that_is_none_makes_no_folder(
    sha: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(answers(sha, [config(), weights()])) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(HubUnreachableError, match="gave no commit"):
            hub.pull(ID, None)
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("digest", ["../../../../evil", "evil", "*" * 64, "", "A" * 64])
def test_a_digest_that_is_none_names_no_file(
    digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for instead: to an account without access the hub lists asterisks."""
    with answering(answers(COMMIT, [config(blobId=digest), weights(digest)])) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        folder, _ = hub.pull(ID, None)
    assert (folder / "model.safetensors").resolve().name == SHA256
    assert (folder / "config.json").resolve().name == GIT
    assert "evil" not in everything(tmp_path)


def test_a_mirror_that_lists_names_only_is_asked_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]
    with answering(answers(COMMIT, bare)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        plan = hub.preflight(ID, None)
        assert plan.total_bytes == plan.missing_bytes == len(CONFIG) + len(WEIGHTS)
        assert {file.digest for file in plan.files} == {SHA256, GIT}
        folder, _ = hub.pull(ID, None)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_digest_that_is_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str) -> Any:
        found = answers(COMMIT, [{"rfilename": "model.safetensors"}])(method, path)
        return found if path.startswith("/api/") else (200, {"ETag": '"../../evil"'}, b"x")

    with answering(answer) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(HubUnreachableError, match=r"no size or digest of model\.safetensors"):
            hub.preflight(ID, None)


@pytest.mark.parametrize("odd", ["text", None, 7, [], {"rfilename": 3}, {"lfs": "x"}])
def test_entries_that_are_none_are_passed_over(
    odd: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(answers(COMMIT, [odd, config(lfs=None), weights()])) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert len(hub.preflight(ID, None).files) == 2


def test_access_is_tried_on_weights_for_the_licence_is_given_to_everyone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    licence = {"rfilename": "LICENSE.md", "size": 10**9, "blobId": "ef" * 20}
    with answering(answers(COMMIT, [licence, weights()], gated="manual")) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        hub.preflight(ID, None)
    heads = [path for method, path, _ in server.asked if method == "HEAD"]
    assert heads[0].endswith("/model.safetensors")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"etag": '"abcdef0123"'}, "abcdef0123"),
        ({"etag": 'W/"abcdef0123"'}, "abcdef0123"),
        ({"x-linked-etag": '"abcdef0123"', "etag": '"other-one"'}, "abcdef0123"),
        ({"etag": '"../../etc/x"'}, None),
        ({"etag": '"a.b/c"'}, None),
        ({"etag": '"' + "a" * 500 + '"'}, None),
        ({}, None),
    ],
)
def test_the_digest_of_an_answer(headers: dict[str, str], expected: str | None) -> None:
    assert digest_of(headers) == expected
