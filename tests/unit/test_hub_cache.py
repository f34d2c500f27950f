"""The hub's cache as it is found: complete or not, with links or without, offline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import close_session, constants
from tests.answers import COMMIT, ID, LISTING, WEIGHTS, answering, giving, honest

from dinoprobe.encoder import hub
from dinoprobe.encoder.hub import cache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield
    close_session()


def test_without_links_weights_lie_there_once_and_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        folder, _ = hub.pull(ID, None)
        assert not (folder / "model.safetensors").is_symlink()
        copies = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
        assert sum(path.read_bytes() == WEIGHTS for path in copies) == 1
        server.asked.clear()
        assert hub.pull(ID, None) == (folder, COMMIT)
        assert hub.preflight(ID, None).missing_bytes == 0
    assert not [path for method, path, _ in server.asked if method == "GET" and "resolve" in path]


def test_a_snapshot_of_transformers_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads a model without the preprocessor's file, which holds the statistics."""
    siblings = [*LISTING["siblings"], {"rfilename": "preprocessor_config.json"}]  # type: ignore[misc]

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/"):
            return 200, {}, json.dumps({**LISTING, "siblings": siblings}).encode()
        return giving(honest)(method, path)

    with answering(answer) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        folder, _ = hub.pull(ID, None)
        for revision in (None, COMMIT):
            (folder / "preprocessor_config.json").unlink()
            assert hub.download(ID, revision) == (folder, COMMIT)
            assert (folder / "preprocessor_config.json").is_file()


def test_offline_a_complete_snapshot_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        found = hub.pull(ID, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said: list[str] = []
    assert hub.pull(ID, None, say=said.append) == hub.download(ID, None) == found
    assert said == [f"{ID}: offline; the cache holds it, commit {COMMIT[:12]}."]


@pytest.mark.parametrize("revision", ["../../evil", "a/../../evil", "..\\evil", "/evil", "a//b"])
def test_a_revision_that_leads_elsewhere_is_not_remembered(revision: str, tmp_path: Path) -> None:
    cache.write_ref(ID, revision, COMMIT)
    assert list(tmp_path.rglob("*")) == []


def test_a_ref_that_is_right_is_left_alone(tmp_path: Path) -> None:
    """A cache that several share may be read-only."""
    cache.write_ref(ID, "refs/pr/4", COMMIT)
    path = cache.repository_folder(ID) / "refs" / "refs" / "pr" / "4"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    cache.write_ref(ID, "refs/pr/4", COMMIT)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert path.read_text() == COMMIT
