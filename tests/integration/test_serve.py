"""The service as a process: signals, slow clients, overload, and the same answers as `predict`."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.checkpoints import save_vit
from tests.predictors import HANGS
from tests.served import PNG, Answer, Process, png, save_builtin
from typer.testing import CliRunner

from dinoprobe.classifier import ImageClassifier
from dinoprobe.cli.app import app
from dinoprobe.encoder import Encoder
from dinoprobe.heads import LogisticProbe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def colours() -> Iterator[Any]:
    made: list[Process] = []

    def make(*arguments: object) -> Process:
        made.append(Process("-m", "tests.predictors", *map(str, arguments)))
        return made[-1]

    yield make
    for process in made:
        process.close()


def open_socket(server: Process, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(data)
    return client


def until_closed(client: socket.socket) -> bytes:
    found = b""
    with client:
        while part := client.recv(65536):
            found += part
    return found


# --- the verb -----------------------------------------------------------------------------------


def test_the_verb_serves_what_predict_says(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(save_vit(tmp_path / "vit")), device="cpu")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, encoder.dimension)).astype(np.float32)
    head = LogisticProbe(C=1.0).fit(X, np.array(["cat", "dog"] * 20, dtype=object))
    ImageClassifier(encoder, head).save(tmp_path / "c")
    images = [png(seed) for seed in range(12)]
    expected = ImageClassifier.load(tmp_path / "c", device="cpu").predict(images)
    server = Process("-m", "dinoprobe", "serve", str(tmp_path / "c"), "--port", "0", "--json")
    try:
        document = json.loads(server.first)
        assert document["schema"] == "dinoprobe.serve/1"
        assert document["url"] == f"http://127.0.0.1:{server.port}"
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(server.post, images))
        for answer, prediction in zip(answers, expected, strict=True):
            (row,) = json.loads(answer.content)["predictions"]
            found = {score["label"]: score["probability"] for score in row["top"]}
            wanted = {score.label: score.probability for score in prediction.top}
            assert found == pytest.approx(wanted, abs=1e-5)  # a head's sums depend on the batch
        (embedding,) = json.loads(server.post(images[0], "/embed").content)["embeddings"]
        assert len(embedding["features"]) == encoder.dimension
        info = json.loads(server.request("GET", "/info").content)
        assert (info["fingerprint"], info["classes"]) == (encoder.fingerprint, ["cat", "dog"])
        server.end()
        lines = [json.loads(line) for line in server.log if line.startswith("{")]
        assert sum(line["event"] == "request" for line in lines) == 14
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "lets other machines in"),
        (["--token", "a", "--token-file", "b"], "expected one of them"),
        (["--token-file", os.devnull], "no token in it"),
        (["--token-file", "no/such/file"], "No such file"),
        (["--name", "a/b"], "model_name is 'a/b'"),
    ],
)
def test_wrong_use_is_said_before_anything_is_loaded(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "nowhere", *arguments])
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_the_token_of_a_file_is_asked_for_and_the_line_to_type_works(tmp_path: Path) -> None:
    save_builtin(tmp_path / "c")
    (tmp_path / "the token").write_text("s3cret\n", encoding="utf-8")
    (tmp_path / "photo.jpg").write_bytes(png())
    command = ["serve", str(tmp_path / "c"), "--port", "0", "--json"]
    server = Process("-m", "dinoprobe", *command, "--token-file", str(tmp_path / "the token"))
    try:
        assert server.post().status == 401
        (line,) = (line.split(maxsplit=2)[2] for line in server.log if "ask it" in line)
        done = subprocess.run(
            ["bash", "-c", line.replace("curl", "curl -sS --fail-with-body")],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr, done.stdout)
        assert json.loads(done.stdout)["predictions"][0]["key"] == "photo.jpg"
        server.end()
    finally:
        server.close()
    assert "s3cret" not in "".join(server.log)


def test_a_line_of_the_log_says_what_was_asked_and_nothing_of_the_image(colours: Any) -> None:
    server = colours()
    head = b'--b\r\ncontent-disposition: form-data; name="f"; filename="private.png"\r\n\r\n'
    body = head + PNG + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b", "x-request-id": "abc-1"}
    assert server.request("POST", "/predict?top_k=1", body, kind).status == 200
    broken = {"image": base64.b64encode(PNG[:60]).decode()}
    kind = {"content-type": "application/json", "x-request-id": "abc-2"}
    assert server.request("POST", "/predict", json.dumps(broken).encode(), kind).status == 422
    server.end()
    server._reader.join(5)
    lines = [json.loads(line) for line in server.log if line.startswith("{")]
    first, second = (line for line in lines if line["event"] == "request")
    assert first.pop("time") > 1e9
    assert 0 < first.pop("ms") < 60_000
    assert first == {
        "level": "info", "event": "request", "request_id": "abc-1", "method": "POST",
        "path": "/predict", "status": 200, "images": 1, "bytes": len(body), "reason": None,
    }  # fmt: skip
    assert (second["request_id"], second["status"], second["reason"]) == ("abc-2", 422, "truncated")
    log = "".join(server.log)
    for secret in ("private", broken["image"][:20], PNG[16:30].hex(), "IHDR"):
        assert secret not in log


def test_a_port_that_is_taken_is_an_error() -> None:
    from tests.predictors import MeanColour

    from dinoprobe.errors import ConfigurationError
    from dinoprobe.server.run import serve
    from dinoprobe.server.settings import ServerSettings

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="can not be listened on"):
            serve(MeanColour(), ServerSettings(port=port))


# --- the end ------------------------------------------------------------------------------------


def test_sigterm_answers_what_was_taken_and_ends_with_0(colours: Any) -> None:
    server = colours("--seconds", 0.2)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.post) for _ in range(8)]
        time.sleep(0.15)  # they are under way
        server.process.send_signal(signal.SIGTERM)
        assert [task.result().status for task in waiting] == [200] * 8
    assert server.process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        server.post()
    server._reader.join(5)
    assert server.log[-1] == "ended\n"


def test_while_it_drains_it_is_not_ready_and_still_answers(colours: Any) -> None:
    server = colours("--drain", 1.0)
    assert server.request("GET", "/readyz").status == 200
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert server.request("GET", "/readyz").status == 503
    assert server.request("GET", "/healthz").status == 200
    assert server.post().status == 200
    assert server.process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(colours: Any) -> None:
    server = colours("--drain", 60)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0


def test_it_ends_itself_where_decoders_hang_if_it_is_to(colours: Any) -> None:
    server = colours("--decode-timeout", 0.1, "--max-stuck", 1, "--exit-when-stuck")
    assert server.post(HANGS).reason == "timeout"
    assert server.request("GET", "/readyz").status == 200
    server.post(HANGS)
    assert server.process.wait(20) == 1
    server._reader.join(5)
    events = [json.loads(line) for line in server.log if line.startswith("{")]
    hangs = [event["stuck"] for event in events if event["event"] == "a decoder hangs"]
    assert hangs == [1, 2]
    assert "it ends, for decoders hang" in [event["event"] for event in events]
    assert "ServiceError" in "".join(server.log)


# --- slow clients -------------------------------------------------------------------------------

HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 9000\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST /pre", HEAD], ids=["nothing", "a word", "half"])
def test_a_head_that_does_not_come_is_cut_off(colours: Any, sent: bytes) -> None:
    server = colours()
    start = time.monotonic()
    clients = [open_socket(server, sent) for _ in range(50)]
    assert server.post().status == 200
    assert [until_closed(client) for client in clients] == [b""] * 50
    assert time.monotonic() - start < 6


def test_a_head_that_drips_is_cut_off(colours: Any) -> None:
    server = colours()
    start = time.monotonic()
    with open_socket(server, HEAD) as client:
        try:
            while time.monotonic() - start < 10:
                client.sendall(b"a: b\r\n")
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - start < 5


def test_a_second_head_that_drips_is_cut_off(colours: Any) -> None:
    server = colours()
    with open_socket(server, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /hea") as client:
        start = time.monotonic()
        try:
            while time.monotonic() - start < 10:
                client.sendall(b"l")
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_does_not_come_is_told_so(colours: Any, drips: bool) -> None:
    server = colours()
    client = open_socket(server, HEAD + b"\r\n" + b"x" * 100)
    for _ in range(5 * drips):
        client.sendall(b"x")
        time.sleep(0.1)
    with ThreadPoolExecutor(20) as pool:  # and meanwhile others are served
        assert {answer.status for answer in pool.map(lambda _: server.post(), range(20))} <= {200}
    found = until_closed(client)
    assert found.startswith(b"HTTP/1.1 408")
    assert b"slow-body" in found


def test_a_body_that_is_too_long_is_refused_before_it_comes(colours: Any) -> None:
    server = colours()
    long = HEAD.replace(b"9000", b"99999999999")
    client = open_socket(server, long + b"expect: 100-continue\r\n\r\n")
    assert client.recv(1000).startswith(b"HTTP/1.1 413")
    client.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["huge head", "TLS", "zero", "negative", "two lengths", "no chunk"],
)
def test_what_is_no_http_is_400_or_cut_off(colours: Any, data: bytes) -> None:
    server = colours()
    found = until_closed(open_socket(server, data))
    assert found == b"" or found.startswith(b"HTTP/1.1 4"), found
    if found:
        document = json.loads(found.partition(b"\r\n\r\n")[2])
        assert document["schema"] == "dinoprobe.http-error/1"
    assert server.post().status == 200


@pytest.mark.parametrize("most", [1, 20])
def test_a_connection_too_many_is_told_so_in_the_same_form(colours: Any, most: int) -> None:
    server = colours("--connections", most, "--timeout", 30)
    with ExitStack() as closing:
        idle = [closing.enter_context(open_socket(server, b"")) for _ in range(most)]
        refused = server.post()
        document = json.loads(refused.content)
        assert (refused.status, document["reason"]) == (503, "too-many-connections")
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        assert document["request_id"] == refused.headers["x-request-id"]
        assert server.request("GET", "/healthz").status == 200
        more = [closing.enter_context(open_socket(server, b"")) for _ in range(most)]
        assert until_closed(open_socket(server, b"")) == b""  # twice as many: no word any more
        assert [until_closed(client) for client in more] == [b""] * most  # within a second
        for client in idle:
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")  # those that were there go on
    while server.post().status == 503:  # until it has seen them close
        time.sleep(0.01)
    text = server.request("GET", "/metrics").content.decode()
    assert 'dinoprobe_failures_total{reason="too-many-connections"}' in text


# --- load ---------------------------------------------------------------------------------------


def test_overload_is_refused_fast_and_what_is_admitted_stays_fast(colours: Any) -> None:
    seconds = 0.05  # of a batch: 160 images/s of 2 lanes with 4 images each
    server = colours("--seconds", seconds)
    answers: list[Answer] = []
    end = time.monotonic() + 3

    def ask() -> None:
        while time.monotonic() < end:
            answers.append(server.post())
            time.sleep(0.02)

    with ThreadPoolExecutor(80) as pool:
        for _ in range(80):
            pool.submit(ask)
    admitted = sorted(answer.seconds for answer in answers if answer.status == 200)
    refused = [answer for answer in answers if answer.status == 503]
    assert len(admitted) + len(refused) == len(answers)
    assert len(admitted) > 3 * 160 * 0.5
    assert len(refused) > len(admitted)
    assert {answer.reason for answer in refused} == {"overloaded"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert admitted[len(admitted) // 2] < 1.0  # three batches are 0.15 s; other work is beside it
    start = time.monotonic()
    assert server.post().status == 200
    assert time.monotonic() - start < 2
