"""`dinoprobe export --push-to-hub` against a hub on the loopback address."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from tests.checkpoints import save_vit
from tests.fakehub import COMMIT, GOOD_TOKEN, serve
from tests.receiving import Received, Receiver
from typer.testing import CliRunner

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.encoder import Encoder
from dinoprobe.export import pictures
from dinoprobe.heads import LogisticProbe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RENDERED = cache(pictures._rendered)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    encoder = Encoder.from_pretrained(str(save_vit(folder / "e")), device="cpu", pooling="cls")
    X = np.random.default_rng(0).normal(size=(60, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=0.1).fit(X, np.array(["cat", "dog", "猫"] * 20, dtype=object))
    ImageClassifier(encoder, head).save(folder / "c")
    return folder / "c"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub that takes uploads, for a user whose token may write."""
    monkeypatch.setattr(pictures, "_rendered", RENDERED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store is another service
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    close_session()
    with serve({}, kind=Receiver) as running:
        running.received = Received()
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running
    close_session()


def run(saved: Path, out: Path, *arguments: str, code: int = 0) -> Any:
    given = ["export", str(saved), "--out", str(out), "--json", *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("to", ["transformers", "timm", "onnx", "head"])
def test_every_file_arrives_in_one_commit(saved: Path, hub: Any, to: str, tmp_path: Path) -> None:
    document, said = run(saved, tmp_path / "e", "--to", to, "--push-to-hub", "ada/pets")
    received: Received = hub.received
    here = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    assert received.branches == {"ada/pets": {"main": here}}
    assert len(received.messages) == 1
    assert f"as {to}" in received.messages[0]
    assert document["pushed_to"] == {
        "repository": "ada/pets",
        "url": f"{hub.endpoint}/ada/pets",
        "commit": COMMIT,
        "revision": "main",
        "private": True,
    }
    assert ("NOTICE.txt" in here) == ("DINOv3 License" in said) == (to != "head")
    assert b"ada/pets" in here["README.md"] or to == "head"
    assert GOOD_TOKEN not in said


def test_public_and_a_branch_are_asked_for(saved: Path, hub: Any, tmp_path: Path) -> None:
    where = ("--push-to-hub", "ada/pets", "--public", "--revision", "v2")
    document, _ = run(saved, tmp_path / "e", "--to", "head", *where)
    assert hub.received.private == {"ada/pets": False}
    assert hub.received.branches["ada/pets"]["main"] == {}
    assert "head.json" in hub.received.branches["ada/pets"]["v2"]
    assert document["pushed_to"]["revision"] == "v2"
    run(saved, tmp_path / "again", "--to", "head", *where)  # both are there
    assert len(hub.received.messages) == 2


def test_a_public_repository_gets_nothing_without_the_word(
    saved: Path, hub: Any, tmp_path: Path
) -> None:
    hub.received.private["ada/pets"] = False
    hub.received.branches["ada/pets"] = {"main": {}}
    document, _ = run(saved, tmp_path / "e", "--to", "head", "--push-to-hub", "ada/pets", code=2)
    assert "ada/pets is public, expected a private repository. Say --public." in document["message"]
    assert hub.received.messages == []
    assert (tmp_path / "e" / "head.json").exists()


def test_without_the_flag_nothing_is_asked(saved: Path, hub: Any, tmp_path: Path) -> None:
    document, _ = run(saved, tmp_path / "e", "--to", "head")
    assert document["pushed_to"] is None
    assert hub.requests == []
    assert hub.received == Received()


@pytest.mark.parametrize(
    ("end", "status", "code", "expected"),
    [
        ("/repos/create", 403, 3, "may not write there (status 403"),
        ("/commit/main", 403, 3, "of a member of 'ada'"),
        ("/commit/main", 409, 2, "push again"),
        ("/commit/main", 412, 2, "push again"),
        ("/preupload/main", 404, 2, "Check its name and revision"),
        ("/commit/main", 507, 3, "could not answer (status 507"),
    ],
)
def test_a_refusal_keeps_the_export_and_says_what_to_do(
    saved: Path, hub: Any, end: str, status: int, code: int, expected: str, tmp_path: Path
) -> None:
    hub.received.refuses[end] = status
    where = ("--to", "head", "--push-to-hub", "ada/pets")
    document, _ = run(saved, tmp_path / "e", *where, code=code)
    assert expected in document["message"]
    assert f"The export is whole in {tmp_path / 'e'}; nothing was committed." in document["message"]
    assert GOOD_TOKEN not in document["message"]
    assert (tmp_path / "e" / "gate.json").exists()
    assert hub.received.messages == []


def test_without_access_nothing_is_begun(
    saved: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--to", "head", "--push-to-hub", "ada/pets")

    def refused(code: int, expected: str, *given: str) -> None:
        document, _ = run(saved, tmp_path / "e", *(given or where), code=code)
        assert expected in document["message"]
        assert not (tmp_path / "e").exists()

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.repositories = {"a/b": type("R", (), {"scenario": "invalid-token"})()}
    refused(3, "the token in HF_TOKEN is invalid or has expired (status 401")
    monkeypatch.delenv("HF_TOKEN")
    refused(3, "no token was found")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(3, "HF_HUB_OFFLINE keeps the hub out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(3, "can not be reached")
    refused(2, "no owner. Give OWNER/pets", "--to", "head", "--push-to-hub", "pets")
    refused(2, "no name of a repository", "--to", "head", "--push-to-hub", "a/b/c")
    refused(2, "--to openvino is not pushed", "--to", "openvino", "--push-to-hub", "ada/pets")
    refused(2, "--public without --push-to-hub", "--to", "head", "--public")
    refused(2, "--revision without --push-to-hub", "--to", "head", "--revision", "v2")
