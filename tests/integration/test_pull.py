"""`dinoprobe pull`, `doctor` and `models` as a person and a program see them, with a hub on
loopback.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import close_session, constants
from tests.checkpoints import save_vit
from tests.fakehub import COMMIT, GOOD_TOKEN, USER, repository, serve
from tests.layouts import ViT, meta_vit
from typer.testing import CliRunner

from dinoprobe.cli.app import app
from dinoprobe.encoder.hub import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

VITS16 = "facebook/dinov3-vits16-pretrain-lvd1689m"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def at_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a hub with one repository in a scenario, for a user with this token."""
    running = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transfer, "WAIT_S", 0.01)
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))

    def start(folder: Path, scenario: str, token: str | None = None) -> None:
        close_session()
        context = serve({VITS16: repository(folder, scenario)})
        running.append(context)
        monkeypatch.setattr(constants, "ENDPOINT", context.__enter__().endpoint)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    yield start
    for context in running:
        context.__exit__(None, None, None)


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", code=code).stdout)
    return found


# --- pull -----------------------------------------------------------------------------------------


def test_pull_says_what_it_will_take_and_what_to_type_next(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "granted", GOOD_TOKEN)
    output = run("pull", "vits16")
    lines = output.stdout.splitlines()
    assert lines[0].startswith(f"{VITS16} @ {COMMIT[:12]}: ")
    assert "MB in 3 files" in lines[0]
    assert lines[-1] == "Use: --encoder vits16"
    assert "asking the hub for access" in output.stderr
    assert f"{VITS16}: fetching" in output.stderr


def test_pull_tells_a_program_the_same(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "open")
    first, second = (document("pull", "vits16@main") for _ in range(2))
    assert first["schema"] == "dinoprobe.pull/1"
    assert first["commit"] == COMMIT
    assert first["checkpoint"] == "vits16"
    assert first["fetched_bytes"] == first["total_bytes"] > 0
    assert second["fetched_bytes"] == 0
    assert second["folder"] == first["folder"]


def test_the_document_of_pull_is_described(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "open")
    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    section = text.partition("## `dinoprobe.pull/1`")[2].partition("\n## ")[0]
    keys = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|([^|]+)\|", section, re.MULTILINE)))
    for name in ("vits16", "builtin"):
        assert set(document("pull", name)) == {"schema", *keys}


def test_pull_without_a_network_is_content_with_the_cache(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub(checkpoint, "open")
    first = document("pull", "vits16")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    second = document("pull", "vits16")
    assert (second["folder"], second["fetched_bytes"]) == (first["folder"], 0)
    access = checks(document("doctor", "--encoder", "vits16"))["access"]
    assert access == {"name": "access", "state": "note", "text": "HF_HUB_OFFLINE keeps the hub out"}


def test_pull_goes_on_and_says_where(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "cut")
    assert "connection lost at" in run("pull", "vits16").stderr


@pytest.mark.parametrize(
    ("scenario", "token", "code", "says"),
    [
        ("granted", None, 3, "token: not found"),
        ("not-accepted", "hf_hidden", 3, "has not accepted the licence"),
        ("busy", None, 3, "status 503"),
        ("not-found", None, 2, "no such repository"),
        ("wrong-digest", None, 2, "has the digest"),
    ],
)
def test_pull_ends_with_one_message_and_no_traceback(
    scenario: str, token: str | None, code: int, says: str, checkpoint: Path, at_hub: Any
) -> None:
    at_hub(checkpoint, scenario, token)
    result = run("pull", "vits16", code=code)
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert "hf_hidden" not in result.output
    answer = document("pull", "vits16", code=code)
    assert answer["schema"] == "dinoprobe.error/1"
    assert says in answer["message"]


def test_what_is_here_needs_no_pull(checkpoint: Path) -> None:
    for name in ("builtin", str(checkpoint)):
        assert document("pull", name)["fetched_bytes"] == 0


def test_a_file_of_metas_is_imported_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOPROBE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights.pth"
    torch.save(meta_vit(ViT(192, 1, 3, 48)), path)
    answer = document("pull", str(path))
    assert answer["encoder"].startswith("imported:dinov3-vit192x1-")
    assert answer["commit"] is None
    assert "was imported before" in run("pull", str(path)).stdout
    listed = document("models")["imported"]
    assert [entry["name"] for entry in listed] == [answer["encoder"]]
    assert document("doctor", "--encoder", answer["encoder"])["usable"] is True
    assert document("doctor", "--encoder", str(path))["usable"] is True


def test_as_belongs_to_files(checkpoint: Path) -> None:
    message = document("pull", "vits16", "--as", "vits16", code=2)["message"]
    assert "--as says which checkpoint a .pth file is" in message


# --- doctor ---------------------------------------------------------------------------------------


def checks(answer: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in answer["checks"]}


def test_the_doctor_of_weights_that_are_here(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "granted", GOOD_TOKEN)
    before = document("doctor", "--encoder", "vits16")
    assert before["usable"] is True
    assert checks(before)["weights"]["state"] == "unverified"
    assert "dinoprobe pull vits16" in checks(before)["weights"]["text"]
    run("pull", "vits16")
    after = checks(document("doctor", "--encoder", "vits16"))
    assert f"account {USER}" in after["token"]["text"]
    assert after["access"]["text"].startswith("given by the owner")
    assert after["checksum"]["state"] == after["forward"]["state"] == "ok"
    assert after["golden vectors"]["state"] == "unverified"
    assert after["parameters"]["state"] == "note"  # the shape is a toy's


@pytest.mark.parametrize(
    ("scenario", "token", "code", "says"),
    [
        ("granted", None, 3, "token: not found"),
        ("not-accepted", GOOD_TOKEN, 3, f"token found (account {USER}); its account has not"),
        ("pending", GOOD_TOKEN, 3, "waits for the owner's review"),
        ("invalid-token", "hf_hidden", 3, "invalid or has expired"),
        ("token-scope", GOOD_TOKEN, 3, "tick 'Read access"),
        ("html", None, 3, "proxy's page"),
        ("not-found", None, 2, "no such repository"),
    ],
)
def test_the_doctor_says_what_stands_in_the_way(
    scenario: str, token: str | None, code: int, says: str, checkpoint: Path, at_hub: Any
) -> None:
    at_hub(checkpoint, scenario, token)
    result = run("doctor", "--encoder", "vits16", code=code)
    assert "FAILED" in result.stdout
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert "hf_hidden" not in result.output
    answer = document("doctor", "--encoder", "vits16", code=code)
    assert (answer["schema"], answer["exit_code"]) == ("dinoprobe.doctor/1", code)
    assert answer["usable"] is False
    assert says in answer["message"]


def test_weights_in_the_cache_are_usable_though_the_hub_refuses(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub(checkpoint, "open")
    run("pull", "vits16")
    at_hub(checkpoint, "granted")
    answer = document("doctor", "--encoder", "vits16")
    assert answer["usable"] is True
    assert checks(answer)["access"]["state"] == "note"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = document("doctor", "--encoder", "vits16")
    assert offline["usable"] is True


def test_a_flipped_bit_in_the_cache_is_found(checkpoint: Path, at_hub: Any, tmp_path: Path) -> None:
    at_hub(checkpoint, "open")
    run("pull", "vits16")
    blob = max((tmp_path / "hub").rglob("blobs/*"), key=lambda path: path.stat().st_size)
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    answer = document("doctor", "--encoder", "vits16", code=2)
    assert checks(answer)["checksum"]["state"] == "failed"
    assert "differs from what was published" in answer["message"]


def test_what_waits_for_the_weights_is_said(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "open")
    arguments = ("doctor", "--encoder", "vits16", "--dtype", "bfloat16", "--golden")
    answer = checks(document(*arguments, "--images", str(checkpoint.parent)))
    for name in ("golden vectors", "drift"):
        assert answer[name]["state"] == "unverified"


def test_the_doctor_needs_an_encoder_for_some_questions() -> None:
    assert "Add --encoder NAME" in document("doctor", "--golden", code=2)["message"]


def test_without_an_encoder_the_doctor_looks_round() -> None:
    assert set(checks(document("doctor"))) == {
        "versions", "device", "weights cache", "features cache",
    }  # fmt: skip


# --- models ---------------------------------------------------------------------------------------


def test_models_lists_the_twelve_with_what_one_chooses_by(checkpoint: Path, at_hub: Any) -> None:
    at_hub(checkpoint, "open")
    run("pull", "vits16")
    listed = {entry["name"]: entry for entry in document("models")["models"]}
    twelve = [name for name, entry in listed.items() if entry["family"] != "dinov2"]
    assert len(twelve) == 12
    small, seven = listed["vits16"], listed["vit7b16"]
    assert (small["cached"], small["commit"]) == (True, COMMIT)
    assert seven["cached"] is False
    assert small["dimension"] == 768
    assert seven["memory_bytes"]["bfloat16"] == 13_432_070_144
    assert small["gated"] is True
    assert small["timm"][0] == "timm:vit_small_patch16_dinov3_qkvb.lvd1689m"
    assert listed["vitl16-sat493m"]["mean"] == [0.430, 0.411, 0.296]


def test_models_is_a_table_for_people() -> None:
    text = run("models").stdout
    assert "vit7b16-sat493m" in text
    assert "dinov2" not in text
    assert "dinov2-giant-reg" in run("models", "--all").stdout
