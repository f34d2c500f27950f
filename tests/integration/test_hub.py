"""The loading code against a hub on the loopback address: given, refused, broken off, resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import close_session, constants, snapshot_download
from tests.checkpoints import save_dinov2, save_vit
from tests.fakehub import (
    COMMIT,
    GOOD_TOKEN,
    FakeHub,
    Repository,
    repository,
    serve,
)

from dinoprobe.encoder import Encoder, hub
from dinoprobe.encoder.hub import cache, client, transfer
from dinoprobe.errors import (
    AccessError,
    DinoprobeError,
    EncoderError,
    EncoderNotFoundError,
    HubUnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VITS16 = "facebook/dinov3-vits16-pretrain-lvd1689m"
SATELLITE = "facebook/dinov3-vitl16-pretrain-sat493m"
SECRET = "hf_secretsecretsecret"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights, with files beside them that must never be fetched."""
    folder = save_vit(tmp_path_factory.mktemp("checkpoint"), width=256)
    for name in ("evil.pth", "pytorch_model.bin", "modeling.py", "README.md"):
        (folder / name).write_bytes(b"never fetched")
    (folder / "LICENSE.md").write_text("the licence")
    assert (folder / "model.safetensors").stat().st_size > 1 << 20
    return folder


@pytest.fixture
def at_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a hub and points huggingface_hub, which reads its environment once, at it."""
    running = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "WAIT_S", 0.01)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def start(repositories: dict[str, Repository], token: str | None = None) -> FakeHub:
        close_session()  # a port of an earlier hub may come again, with its dead connections
        context = serve(repositories)
        running.append(context)
        fake = context.__enter__()
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        return fake

    yield start
    for context in running:
        context.__exit__(None, None, None)


# --- given ----------------------------------------------------------------------------------------


def test_a_snapshot_is_what_huggingface_hub_and_transformers_expect(
    checkpoint: Path, at_hub: Any
) -> None:
    from transformers.models.dinov3_vit import DINOv3ViTModel

    at_hub({VITS16: Repository(checkpoint, "granted")}, token=GOOD_TOKEN)
    folder, commit = hub.pull(VITS16, None)
    assert commit == COMMIT
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors", "LICENSE.md"}
    assert (folder / "model.safetensors").is_symlink()
    root = constants.HF_HUB_CACHE
    found = snapshot_download(VITS16, local_files_only=True, cache_dir=root)
    assert folder.samefile(found)
    model = DINOv3ViTModel.from_pretrained(VITS16, local_files_only=True, cache_dir=root)
    assert model.config.hidden_size == 256


def test_what_is_there_is_not_fetched_again(checkpoint: Path, at_hub: Any) -> None:
    fake = at_hub({VITS16: Repository(checkpoint)})
    first = hub.pull(VITS16, None)
    count = len(fake.of("model.safetensors"))
    assert hub.pull(VITS16, None) == hub.download(VITS16, None) == first
    assert hub.pull(VITS16, "v1.0") == hub.cached(VITS16, "v1.0") == first
    assert len(fake.of("model.safetensors")) == count == 1


def test_a_short_name_is_fetched_pinned_and_then_works_offline(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    online = Encoder.from_pretrained("vits16", device="cpu")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = Encoder.from_pretrained("vits16", device="cpu")
    pinned = Encoder.from_pretrained(f"{VITS16}@{COMMIT}", device="cpu")
    short = Encoder.from_pretrained(f"vits16@{COMMIT[:9]}", device="cpu")
    assert online.name == offline.name == pinned.name == short.name == f"{VITS16}@{COMMIT}"
    assert online.fingerprint == offline.fingerprint == pinned.fingerprint


def test_a_pinned_commit_in_the_cache_asks_nobody(checkpoint: Path, at_hub: Any) -> None:
    fake = at_hub({VITS16: Repository(checkpoint)})
    hub.pull(VITS16, None)
    fake.requests.clear()
    hub.download(VITS16, COMMIT)
    assert fake.requests == []


def test_a_branch_asks_once_and_takes_no_file(checkpoint: Path, at_hub: Any) -> None:
    fake = at_hub({VITS16: Repository(checkpoint)})
    hub.pull(VITS16, None)
    fake.requests.clear()
    hub.download(VITS16, None)
    assert [request.method for request in fake.requests] == ["GET"]


def test_sharded_weights_come_whole(tmp_path: Path, at_hub: Any) -> None:
    from transformers.models.dinov3_vit import DINOv3ViTModel

    one = save_vit(tmp_path / "one")
    many = tmp_path / "many"
    DINOv3ViTModel.from_pretrained(one).save_pretrained(many, max_shard_size="20KB")
    (many / "preprocessor_config.json").write_text((one / "preprocessor_config.json").read_text())
    at_hub({VITS16: Repository(many)})
    loaded = Encoder.from_pretrained("vits16", device="cpu")
    assert loaded.weights_digest == Encoder.from_pretrained(str(one), device="cpu").weights_digest
    (loaded.reference.folder / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    shards = sorted(loaded.reference.folder.glob("model-*"))
    shards[1].unlink()
    assert hub.cached(VITS16) is None


def test_satellite_weights_get_their_own_statistics(checkpoint: Path, at_hub: Any) -> None:
    at_hub({SATELLITE: Repository(checkpoint)})
    found = Encoder.from_pretrained("vitl16-sat493m", device="cpu")
    assert found.preprocessing.mean == (0.430, 0.411, 0.296)
    (note,) = found.notes
    assert note.startswith(f"{SATELLITE}: normalised with the SAT-493M statistics")


def test_another_encoder_by_its_short_name(tmp_path: Path, at_hub: Any) -> None:
    at_hub({"facebook/dinov2-small": Repository(save_dinov2(tmp_path / "dinov2"))})
    assert Encoder.from_pretrained("dinov2-small", device="cpu").model_type == "dinov2"


def test_timms_copy_is_loaded_by_its_names_and_by_ours(tmp_path: Path, at_hub: Any) -> None:
    """Tensors in timm's layout, settings in timm's config.json: neither names a model_type."""
    from safetensors.torch import save_file
    from tests.layouts import ViT, timm_vit

    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(timm_vit(ViT(384, 1, 6, 64)), folder / "model.safetensors")
    cfg = {"architecture": "vit_small_patch16_dinov3_qkvb", "pretrained_cfg": {"mean": [0, 0, 0]}}
    (folder / "config.json").write_text(json.dumps(cfg))
    name = "vit_small_patch16_dinov3_qkvb.lvd1689m"
    at_hub({f"timm/{name}": Repository(folder)})
    ours = Encoder.from_pretrained("timm:vits16", device="cpu")
    theirs = Encoder.from_pretrained(f"timm:{name}", device="cpu")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.name == f"timm/{name}@{COMMIT}"
    assert ours.preprocessing.size == (224, 224)
    assert ours.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "as DINOv3's own processor does" in ours.notes[0]


# --- refused --------------------------------------------------------------------------------------


REFUSALS = [
    ("granted", None, AccessError, "token: not found"),
    ("not-accepted", SECRET, AccessError, "has not accepted the licence"),
    ("pending", SECRET, AccessError, "waits for the owner's review"),
    ("rejected", SECRET, AccessError, "has rejected the request"),
    ("invalid-token", SECRET, AccessError, "invalid or has expired"),
    ("token-scope", SECRET, AccessError, "tick 'Read access to contents of all public gated"),
    ("not-found", None, EncoderNotFoundError, "no such repository on the hub"),
    ("not-found", SECRET, EncoderNotFoundError, "no such repository on the hub"),
    ("busy", None, HubUnreachableError, "status 503"),
    ("rate-limit", None, HubUnreachableError, "retry after 30 s"),
    ("html", None, HubUnreachableError, "perhaps a proxy's page"),
]


@pytest.mark.parametrize(("scenario", "token", "error", "says"), REFUSALS)
@pytest.mark.parametrize("call", [hub.pull, hub.download, hub.preflight])
def test_each_refusal_has_its_own_message(
    scenario: str,
    token: str | None,
    error: type[EncoderError],
    says: str,
    call: Any,
    checkpoint: Path,
    at_hub: Any,
) -> None:
    at_hub({VITS16: repository(checkpoint, scenario)}, token=token)
    with pytest.raises(error) as caught:
        call(VITS16, None)
    message = str(caught.value)
    assert type(caught.value) is error
    assert says in message
    assert VITS16 in message
    assert SECRET not in message
    assert not list(cache.repository_folder(VITS16).glob("blobs/*"))


def test_the_first_word_comes_before_the_first_request(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: repository(checkpoint, "busy")})
    said: list[str] = []
    with pytest.raises(HubUnreachableError):
        hub.download(VITS16, None, say=said.append)
    assert said == [f"{VITS16}: asking the hub for access"]


def test_the_messages_are_all_different(checkpoint: Path, at_hub: Any) -> None:
    found = []
    for scenario, token, _, _ in REFUSALS:
        at_hub({VITS16: repository(checkpoint, scenario)}, token=token or "")
        with pytest.raises(DinoprobeError) as caught:
            hub.preflight(VITS16, None)
        found.append(str(caught.value).split("http://")[0] + str(caught.value)[-150:])
    assert len(set(found)) == len(found) - 1  # a name that is not there, with and without a token


def test_the_screen_of_a_refusal_says_what_to_do(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: repository(checkpoint, "granted")})
    with pytest.raises(AccessError) as caught:
        hub.pull(VITS16, None)
    lines = str(caught.value).splitlines()
    assert caught.value.exit_code == 3
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 118
    assert f"https://huggingface.co/{VITS16}" in lines[2]
    assert "hf auth login" in lines[3]
    text = "\n".join(lines)
    for way in ("builtin", "timm:vits16", "dinov2-small", "/path/to/folder", "pull FILE.pth"):
        assert way in text
    assert "the DINOv3 licence" in text


def test_a_gated_repository_of_others_gets_the_general_words(checkpoint: Path, at_hub: Any) -> None:
    at_hub({"someone/vit": repository(checkpoint, "granted")})
    with pytest.raises(AccessError) as caught:
        hub.pull("someone/vit", None)
    assert "someone/vit: these weights are gated by its owner" in str(caught.value)
    assert "gated by Meta" not in str(caught.value)
    assert "timm:" not in str(caught.value)


def test_a_revision_that_is_not_there_is_named(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    with pytest.raises(EncoderNotFoundError, match="has no revision 'v9'"):
        hub.pull(VITS16, "v9")


def test_a_name_that_is_nearly_right_gets_the_nearest(at_hub: Any) -> None:
    at_hub({})
    with pytest.raises(EncoderNotFoundError, match="look like it: vits16"):
        hub.pull("facebook/dinov3-vits-16", None)


def test_a_repository_without_safetensors_is_refused(tmp_path: Path, at_hub: Any) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"x")
    at_hub({VITS16: Repository(tmp_path / "repo")})
    with pytest.raises(EncoderError, match=r"holds no \.safetensors file"):
        hub.pull(VITS16, None)


def test_offline_with_an_empty_cache_says_so(at_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = at_hub({})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for call in (hub.pull, hub.download):
        with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE keeps the hub out"):
            call(VITS16, None)
    assert fake.requests == []


@pytest.mark.parametrize("address", ["refused", "silent"])
def test_a_hub_that_is_not_there_is_told_within_five_seconds(
    address: str, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    listener = socket.socket()
    fillers: list[socket.socket] = []
    listener.bind(("127.0.0.1", 0))
    if address == "silent":  # a queue that is full: the connection is never answered
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
    at_hub({})
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    start = time.perf_counter()
    with pytest.raises(HubUnreachableError, match="could not be reached") as caught:
        hub.download(VITS16, None)
    assert time.perf_counter() - start < 5
    assert "HF_ENDPOINT" in str(caught.value)
    for opened in (listener, *fillers):
        opened.close()


# --- the cache answers where the hub does not -----------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "says"),
    [("busy", "could not answer"), ("granted", "gated by Meta"), ("html", "proxy's page")],
)
def test_weights_in_the_cache_are_used_and_that_is_said(
    scenario: str, says: str, checkpoint: Path, at_hub: Any
) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    first = hub.pull(VITS16, None)
    (first[0] / "model.safetensors").resolve()
    fake = at_hub({VITS16: repository(checkpoint, scenario)})
    if scenario == "granted":  # another commit on the hub, which is refused
        folder = first[0].with_name("f" * 40)
        first[0].rename(folder)
        (cache.repository_folder(VITS16) / "refs" / "main").write_text("f" * 40)
        first = (folder, "f" * 40)
    said: list[str] = []
    assert hub.download(VITS16, None, say=said.append) == first
    assert says in said[0]
    assert "Using the copy in the cache" in said[0]
    assert fake.requests


# --- broken off -----------------------------------------------------------------------------------


class Recorder:
    """A transfer that remembers."""

    def __init__(self) -> None:
        self.started: tuple[int, int, str] | None = None
        self.bytes = 0
        self.finished = False

    def start(self, total_bytes: int, already_bytes: int, name: str) -> None:
        self.started, self.bytes = (total_bytes, already_bytes, name), already_bytes

    def advance(self, count: int) -> None:
        self.bytes += count

    def finish(self) -> None:
        self.finished = True


def test_progress_counts_every_byte_once(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: repository(checkpoint, "cut")})
    seen = Recorder()
    folder, _ = hub.pull(VITS16, None, progress=seen)
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert seen.started == (total, 0, VITS16)
    assert (seen.bytes, seen.finished) == (total, True)


def test_a_cut_goes_on_where_it_was(checkpoint: Path, at_hub: Any) -> None:
    fake = at_hub({VITS16: repository(checkpoint, "cut")})
    said: list[str] = []
    folder, _ = hub.pull(VITS16, None, say=said.append)
    assert (folder / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()
    starts = [request.range for request in fake.of("model.safetensors")]
    assert len(starts) == 3
    assert starts[0] is None
    assert all(start and int(start[6:-1]) > 0 for start in starts[1:])
    assert len([text for text in said if "connection lost at" in text]) == 2


def test_a_server_without_ranges_begins_again(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: repository(checkpoint, "no-range")})
    seen = Recorder()
    folder, _ = hub.pull(VITS16, None, progress=seen)
    whole = (checkpoint / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == whole
    assert seen.started is not None
    assert seen.bytes == seen.started[0]


def test_a_server_that_always_breaks_off_ends_with_what_is_kept(
    checkpoint: Path, at_hub: Any
) -> None:
    size = (checkpoint / "model.safetensors").stat().st_size
    fake = at_hub({VITS16: Repository(checkpoint, cuts=1, cut_after=size // 2)})
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        fake.repositories[VITS16].cuts, fake.repositories[VITS16].cut_after = 99, 0

    with pytest.raises(HubUnreachableError, match=r"broke off at \d.*What has arrived is kept"):
        hub.pull(VITS16, None, say=say)
    assert len(said) == transfer.TRIES_WITHOUT_PROGRESS
    fake.repositories[VITS16].cuts = 0
    kept = next(cache.repository_folder(VITS16).glob("blobs/*.part")).stat().st_size
    fake.requests.clear()
    hub.pull(VITS16, None)
    (request,) = fake.of("model.safetensors")
    assert request.range == f"bytes={kept}-"
    assert kept >= size // 2


def test_a_connection_that_never_lasts_still_gets_there(checkpoint: Path, at_hub: Any) -> None:
    """Each answer brings 64 kB: whoever counts tries must not count those."""
    fake = at_hub({VITS16: Repository(checkpoint, cuts=9, cut_after=1)})
    folder, _ = hub.pull(VITS16, None)
    whole = (checkpoint / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == whole
    assert len(fake.of("model.safetensors")) == 10


def test_a_file_that_changed_under_its_name_is_not_glued_together(
    checkpoint: Path, at_hub: Any
) -> None:
    at_hub({VITS16: repository(checkpoint, "changed")})
    with pytest.raises(EncoderError, match="has changed on the server since it was listed"):
        hub.pull(VITS16, None)
    assert hub.cached(VITS16) is None


def test_a_wrong_digest_is_refused_and_removed(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: repository(checkpoint, "wrong-digest")})
    with pytest.raises(EncoderError, match=r"has the digest \w{12}, expected \w{12}"):
        hub.pull(VITS16, None)
    assert hub.cached(VITS16) is None
    assert not list(cache.repository_folder(VITS16).glob("blobs/*.part"))


def test_a_part_that_is_too_long_is_dropped(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    listing = hub.preflight(VITS16, None)
    weights = next(file for file in listing.files if file.name == "model.safetensors")
    part = cache.part_of(cache.repository_folder(VITS16) / "blobs" / weights.digest)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (weights.size_bytes + 1))
    folder, _ = hub.pull(VITS16, None)
    assert (folder / "model.safetensors").stat().st_size == weights.size_bytes


def test_verify_finds_a_flipped_bit_and_fetches_anew(checkpoint: Path, at_hub: Any) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    folder, _ = hub.pull(VITS16, None)
    blob = (folder / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    hub.pull(VITS16, None)
    assert blob.read_bytes() != content
    said: list[str] = []
    hub.pull(VITS16, None, verify=True, say=said.append)
    assert blob.read_bytes() == content
    assert "differs from what was published" in said[0]


def test_the_token_stays_with_the_hub(checkpoint: Path, at_hub: Any) -> None:
    fake = at_hub({VITS16: repository(checkpoint, "cdn")}, token=GOOD_TOKEN)
    folder, _ = hub.pull(VITS16, None)
    assert (folder / "model.safetensors").exists()
    elsewhere = [request for request in fake.requests if request.served_by == "cdn"]
    assert elsewhere
    assert not any(request.has_token for request in elsewhere)
    assert any(request.has_token for request in fake.requests if request.served_by == "hub")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1/x", True),
        ("http://127.0.0.1:2/x", False),
        ("https://127.0.0.1:1/x", False),
        ("http://127.0.0.1.evil.example:1/x", False),
        ("http://evil.example/127.0.0.1:1", False),
    ],
)
def test_only_the_same_origin_is_the_hub(
    url: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert client.is_hub(url) is expected


def test_names_that_lead_out_of_the_folder_are_not_listed(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    honest = client.get_json

    def hostile(path: str) -> Any:
        value = honest(path)
        for name in ("../evil.safetensors", "/evil.safetensors", "onnx/model.safetensors", ".x"):
            value["siblings"].append({"rfilename": name, "size": 1, "blobId": "0" * 40})
        return value

    monkeypatch.setattr(client, "get_json", hostile)
    names = {file.name for file in hub.preflight(VITS16, None).files}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors", "LICENSE.md"}


def test_a_full_disk_is_said_before_the_transfer(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = at_hub({VITS16: Repository(checkpoint)})
    monkeypatch.setattr(cache, "free_bytes", lambda _: 1000)
    with pytest.raises(EncoderError, match=r"are to be fetched and .* free\. Free some space"):
        hub.pull(VITS16, None)
    assert fake.of("model.safetensors") == []


def test_a_proxy_that_can_not_be_used_is_a_refusal(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub({VITS16: Repository(checkpoint)})
    close_session()
    monkeypatch.setenv("HTTP_PROXY", "foo://user:secret@127.0.0.1:1")
    with pytest.raises(HubUnreachableError, match="check the proxy and SSL variables") as caught:
        hub.pull(VITS16, None)
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("HTTP_PROXY")
    close_session()


def test_a_cache_for_reading_alone_is_good_enough(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    at_hub({VITS16: Repository(checkpoint)})
    first = hub.pull(VITS16, None)
    monkeypatch.setattr(cache, "write_ref", refuse)
    assert hub.download(VITS16, None) == first


def test_without_symbolic_links_files_are_copied(
    checkpoint: Path, at_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path as RealPath

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    at_hub({VITS16: Repository(checkpoint)})
    monkeypatch.setattr(RealPath, "symlink_to", refuse)
    folder, _ = hub.pull(VITS16, None)
    assert not (folder / "model.safetensors").is_symlink()
    assert hub.cached(VITS16) is not None


# --- several processes ----------------------------------------------------------------------------

PULL = """
import sys
from dinoprobe.encoder import hub
print(hub.pull(sys.argv[1], None, say=lambda text: print(text, file=sys.stderr, flush=True))[0])
assert "torch" not in sys.modules
"""


def start_pull(endpoint: str, home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    environment["HF_HUB_OFFLINE"] = "0"
    return subprocess.Popen(
        [sys.executable, "-c", PULL, VITS16],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited 30 s in vain")


def test_a_killed_download_goes_on_in_the_next_process(checkpoint: Path, tmp_path: Path) -> None:
    size = (checkpoint / "model.safetensors").stat().st_size
    served = Repository(checkpoint, delay_s=0.1)
    with serve({VITS16: served}) as fake:
        process = start_pull(fake.endpoint, tmp_path)
        wait_for(lambda: any(r.sent > size // 4 for r in fake.of("model.safetensors")))
        process.kill()
        process.communicate()
        kept = next(tmp_path.rglob("*.part")).stat().st_size
        assert 0 < kept < size
        served.delay_s = 0.0
        fake.requests.clear()
        output, problems = start_pull(fake.endpoint, tmp_path).communicate(timeout=60)
        (request,) = fake.of("model.safetensors")
    assert request.range == f"bytes={kept}-"
    assert request.sent == size - kept
    from pathlib import Path as RealPath

    weights = RealPath(output.strip()) / "model.safetensors"
    assert weights.read_bytes() == (checkpoint / "model.safetensors").read_bytes(), problems


def test_two_processes_fetch_one_file_once(checkpoint: Path, tmp_path: Path) -> None:
    served = Repository(checkpoint, delay_s=0.05)
    with serve({VITS16: served}) as fake:
        first, second = (start_pull(fake.endpoint, tmp_path) for _ in range(2))
        ends = [process.communicate(timeout=60) for process in (first, second)]
        count = len(fake.of("model.safetensors"))
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    assert count == 1
    assert any("another process is fetching" in problems for _, problems in ends)
