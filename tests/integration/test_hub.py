"""The real loading code against a hub on the loopback address, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.checkpoints import save_vit
from tests.fake_hub import COMMIT, GATED, MISSING, Refusal, fake_hub

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, sys
from dinoprobe.encoder import Encoder
from dinoprobe.errors import DinoprobeError
try:
    encoder = Encoder.from_pretrained(sys.argv[1], device="cpu")
    answer = {"name": encoder.name, "fingerprint": encoder.fingerprint, "notes": encoder.notes,
              "mean": encoder.preprocessing.mean}
except DinoprobeError as error:
    answer = {"error": type(error).__name__, "message": str(error), "code": error.exit_code}
print(json.dumps(answer))
"""
VITS16 = "facebook/dinov3-vits16-pretrain-lvd1689m"
SATELLITE = "facebook/dinov3-vitl16-pretrain-sat493m"


def load(name: str, endpoint: str, home: Path, **extra: str) -> dict[str, object]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **extra}
    environment["HF_HUB_OFFLINE"] = extra.get("HF_HUB_OFFLINE", "0")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_vit(tmp_path_factory.mktemp("checkpoint"))
    (folder / "evil.pth").write_bytes(b"never fetched")
    return folder


def test_a_short_name_is_fetched_pinned_and_then_works_offline(
    checkpoint: Path, tmp_path: Path
) -> None:
    with fake_hub({VITS16: checkpoint}) as endpoint:
        online = load("vits16", endpoint, tmp_path)
    offline = load("vits16", endpoint, tmp_path, HF_HUB_OFFLINE="1")
    pinned = load(f"{VITS16}@{COMMIT}", endpoint, tmp_path, HF_HUB_OFFLINE="1")
    assert online["name"] == f"{VITS16}@{COMMIT}"
    assert online == offline == pinned
    assert not list(tmp_path.rglob("evil.pth"))


def test_satellite_weights_get_their_own_statistics(checkpoint: Path, tmp_path: Path) -> None:
    with fake_hub({SATELLITE: checkpoint}) as endpoint:
        found = load("vitl16-sat493m", endpoint, tmp_path)
    assert found["mean"] == [0.430, 0.411, 0.296]
    assert found["notes"] == [f"{SATELLITE}: normalised with the SAT-493M statistics."]


@pytest.mark.parametrize(
    ("refusal", "token", "error", "says"),
    [
        (Refusal(401, GATED), "", "AccessError", "token: not found"),
        (Refusal(403, GATED), "hf_secret", "AccessError", "has not accepted the licence"),
        (Refusal(401, {}), "hf_secret", "AccessError", "invalid or has expired"),
        (Refusal(403, {}), "hf_secret", "AccessError", "lacks 'Read access to contents"),
        (Refusal(401, MISSING), "", "EncoderNotFoundError", "no such repository"),
    ],
)
def test_a_refusal_says_what_to_do(
    refusal: Refusal, token: str, error: str, says: str, tmp_path: Path
) -> None:
    with fake_hub({VITS16: refusal}) as endpoint:
        found = load("vits16", endpoint, tmp_path, **({"HF_TOKEN": token} if token else {}))
    assert found["error"] == error
    assert says in str(found["message"])
    assert VITS16 in str(found["message"])
    assert "hf_secret" not in json.dumps(found)
    if error == "AccessError":
        assert found["code"] == 3
        assert f"https://huggingface.co/{VITS16}" in str(found["message"])
        assert "hf auth login" in str(found["message"])


def test_offline_with_an_empty_cache_says_so(tmp_path: Path) -> None:
    found = load("vits16", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert found["error"] == "EncoderError"
    assert "the cache does not hold it" in str(found["message"])
    assert "HF_HUB_OFFLINE" in str(found["message"])
