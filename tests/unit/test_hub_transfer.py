"""One file to the cache, past servers that send too much, too little, or something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import close_session, constants
from tests.answers import CONFIG, ID, SHA256, WEIGHTS, answering, giving, honest

from dinoprobe.encoder import hub
from dinoprobe.encoder.hub import cache, transfer
from dinoprobe.errors import EncoderError, HubUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.answers import Answer


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transfer, "WAIT_S", 0.001)
    yield
    close_session()


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def parts() -> list[Path]:
    return list(cache.repository_folder(ID).glob("blobs/*.part"))


def test_a_server_that_sends_without_end_is_stopped_at_the_listed_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless = WEIGHTS * 100

    def answer(_: str) -> Answer:
        return 200, {"ETag": f'"{SHA256}"'}, endless

    with answering(giving(answer)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(EncoderError, match=r"more than the 10,240 bytes that it listed"):
            hub.pull(ID, None)
    assert hub.cached(ID) is None
    assert [part.stat().st_size for part in parts()] == [0]


def test_a_mirror_with_digests_of_another_kind_is_no_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(_: str) -> Answer:
        return 200, {"ETag": '"5d41402abc4b2a76b9719d911017c592"'}, WEIGHTS

    with answering(giving(answer)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert weights_of(hub.pull(ID, None)[0]) == WEIGHTS


def test_a_web_page_in_place_of_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: str) -> Answer:
        return 200, {"Content-Type": "text/html"}, b"<html>Please log in</html>"

    said: list[str] = []
    with answering(giving(answer)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(HubUnreachableError, match=r"a web page came in place of model\.safe"):
            hub.pull(ID, None, say=said.append)


def test_what_the_store_behind_the_hub_refuses_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signed address runs out after an hour: its 403 is no word about this account."""
    answers = [(403, {}, b"<Error>Request has expired</Error>"), (200, {}, WEIGHTS)]
    with answering(lambda *_: answers.pop(0)) as store:  # type: ignore[arg-type]

        def answer(_: str) -> Answer:
            return 302, {"X-Linked-Etag": f'"{SHA256}"', "Location": f"{store.url}/signed"}, b""

        said: list[str] = []
        with answering(giving(answer)) as server:
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            folder, _ = hub.pull(ID, None, say=said.append)
    assert weights_of(folder) == WEIGHTS
    assert "status 403 from 127.0.0.1, where the files lie" in said[0]


def test_a_store_that_can_not_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's firewall often lets huggingface.co through and not the host with the files."""

    def answer(_: str) -> Answer:
        return 302, {"X-Linked-Etag": f'"{SHA256}"', "Location": "http://127.0.0.1:9/signed"}, b""

    with answering(giving(answer)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(HubUnreachableError, match=r"127\.0\.0\.1:9, where .* keeps its files"):
            hub.pull(ID, None)


def test_a_hub_that_asks_to_wait_for_long_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str) -> Answer:
        return honest() if method == "HEAD" else (429, {"Retry-After": "3600"}, b"")

    with answering(giving(answer)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(HubUnreachableError, match=r"broke off at .*retry after 3600 s"):
            hub.pull(ID, None)


def test_a_part_that_is_whole_is_checked_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    part = cache.repository_folder(ID) / "blobs" / f"{SHA256}.dinoprobe.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS)
    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        plan = hub.preflight(ID, None)
        assert plan.missing_bytes == len(CONFIG)
        assert weights_of(hub.pull(ID, None)[0]) == WEIGHTS
    gets = [path for method, path, _ in server.asked if method == "GET"]
    assert not [path for path in gets if path.endswith(".safetensors")]


def test_a_part_of_something_else_does_not_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    part = cache.repository_folder(ID) / "blobs" / f"{SHA256}.dinoprobe.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * len(WEIGHTS))
    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(EncoderError, match="what arrived has the digest"):
            hub.pull(ID, None)
        assert parts() == []
        assert weights_of(hub.pull(ID, None)[0]) == WEIGHTS


@pytest.mark.parametrize("content", [b"", b"cut", WEIGHTS + b"x"])
def test_a_blob_of_the_wrong_size_is_fetched_anew(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        blob = (hub.pull(ID, None)[0] / "model.safetensors").resolve()
        blob.write_bytes(content)
        assert weights_of(hub.pull(ID, None)[0]) == WEIGHTS


def test_verify_looks_at_small_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        path = (hub.pull(ID, None)[0] / "config.json").resolve()
        path.write_bytes(CONFIG.replace(b"3", b"2"))
        said: list[str] = []
        folder, _ = hub.pull(ID, None, verify=True, say=said.append)
    assert (folder / "config.json").read_bytes() == CONFIG
    assert said == ["config.json: differs from what was published; fetching it again"]


def test_progress_ends_at_the_total_when_another_process_was_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock is held by someone who finishes the file."""
    counted: list[int] = []

    class Seen(transfer.NoTransfer):
        def advance(self, count: int) -> None:
            counted.append(count)

    locked = transfer._locked
    monkeypatch.setattr(transfer, "_locked", lambda hub_id, digest, say: other(digest, say))

    def other(digest: str, say: Any) -> Any:
        blob = cache.repository_folder(ID) / "blobs" / digest
        blob.write_bytes(WEIGHTS if digest == SHA256 else CONFIG)
        return locked(ID, digest, say)

    with answering(giving(honest)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        hub.pull(ID, None, progress=Seen())
    assert sum(counted) == len(CONFIG) + len(WEIGHTS)
    assert not [1 for method, path, _ in server.asked if method == "GET" and "/resolve/" in path]
