"""The service in this process, over a predictor without an encoder."""

from __future__ import annotations

import io
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tests.in_process import GREEN, RED, encoded, image, wait_for
from tests.predictors import CLASSES, HANGS, MeanColour

from dinoprobe.errors import ConfigurationError
from dinoprobe.heads import Abstention, PredictionSets
from dinoprobe.prediction import Rules
from dinoprobe.server import batcher, memory
from dinoprobe.server.problems import ProblemError
from dinoprobe.server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.in_process import Served

DESCRIBED = {"schema"} | set(
    re.findall(r"`([a-z_]+)`", (Path(__file__).parents[2] / "docs" / "json.md").read_text("utf-8"))
)


# --- answers ------------------------------------------------------------------------------------


def test_an_image_is_classified_however_it_is_sent(served: Served) -> None:
    answers = [
        served.post(RED),
        served.post(RED, kind="application/octet-stream"),
        served.client.post("/predict", files={"file": ("r.png", RED, "image/png")}),
        served.json({"image": encoded(RED)}),
        served.json({"images": [encoded(RED)]}),
    ]
    rows = [answer.json()["predictions"][0] for answer in answers]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [row.pop("key") for row in rows] == ["0", "0", "r.png", "0", "0"]
    assert all(row == rows[0] for row in rows)
    assert (rows[0]["label"], rows[0]["probability"]) == ("red", pytest.approx(0.8))


def test_every_key_of_an_answer_is_described(served: Served) -> None:
    predicted = served.post(RED).json()
    embedded = served.post(RED, "/embed").json()
    refused = served.post(b"").json()
    info = served.client.get("/info").json()
    keys = {*predicted, *predicted["predictions"][0], *embedded, *embedded["embeddings"][0]}
    assert keys | set(refused) | set(info) | set(info["limits"]) <= DESCRIBED


def test_top_k_is_how_many_classes_are_told(served: Served) -> None:
    (row,) = served.post(RED, "/predict?top_k=2").json()["predictions"]
    assert [score["label"] for score in row["top"]] == ["red", "green"]


def test_sets_flags_and_abstention_are_told(serve: Any) -> None:
    rules = Rules(
        CLASSES,
        sets=PredictionSets("lac", 0.9, (0.95,), 50),
        abstention=Abstention("probability", 0.85, 0.9, 0.5, 0.95, 50),
        novelty_threshold=0.7,
    )
    served = serve(MeanColour(rules=rules))
    (row,) = served.post(RED).json()["predictions"]
    assert (row["label"], row["abstained"], row["labels"]) == (None, True, ["red", "green", "blue"])
    assert (row["novelty"], row["novel"]) == (pytest.approx(200 / 255), True)
    (row,) = served.post(RED, "/predict?abstain_below=0").json()["predictions"]
    assert (row["label"], row["abstained"]) == ("red", False)
    assert served.metric('dinoprobe_flags_total{flag="abstained"}') == 1
    assert served.metric('dinoprobe_flags_total{flag="novel"}') == 2
    assert served.metric('dinoprobe_predictions_total{label="red"}') == 1


def test_features_are_given(served: Served) -> None:
    answer = served.post(RED, "/embed").json()
    assert answer["embeddings"] == [{"key": "0", "features": [200.0, 30.0, 20.0]}]
    assert (answer["fingerprint"], answer["failed"]) == ("ab" * 16, 0)


def test_of_several_images_a_broken_one_is_a_row(served: Served) -> None:
    files = [("file", ("a.png", RED)), ("file", ("b.png", RED[:50])), ("file", ("c.png", GREEN))]
    answer = served.client.post("/predict", files=files)
    rows = answer.json()["predictions"]
    assert (answer.status_code, answer.json()["failed"]) == (200, 1)
    assert [row["label"] for row in rows] == ["red", None, "green"]
    assert rows[1]["failure"]["kind"] == "truncated"
    assert served.metric('dinoprobe_failures_total{reason="truncated"}') == 1


def test_a_file_name_is_a_name_and_opens_nothing(served: Served) -> None:
    files = {"file": ("../../etc/passwd\n\x1b[31m", RED, "image/png")}
    (row,) = served.client.post("/predict", files=files).json()["predictions"]
    assert (row["label"], "\n" in row["key"], "\x1b" in row["key"]) == ("red", False, False)


# --- refusals -----------------------------------------------------------------------------------


def bomb() -> bytes:
    file = io.BytesIO()
    Image.new("L", (9000, 9000)).save(file, "PNG")
    return file.getvalue()


PART = b'--x\r\ncontent-disposition: form-data; name="f"; filename="a"\r\n\r\n' + b"0\r\n"
FORM = PART + b"--x--\r\n"


@pytest.mark.parametrize(
    ("data", "kind", "status", "reason"),
    [
        (b"", "image/png", 422, "empty"),
        (RED[:50], "image/png", 422, "truncated"),
        (b"<html></html>", "image/png", 415, "not-an-image"),
        (bomb(), "image/png", 413, "too-large"),
        (RED, "text/plain", 415, "content-type"),
        (RED, "", 415, "content-type"),
        (b"x" * 3_000_000, "image/png", 413, "body-too-large"),
        (b"{", "application/json", 422, "json"),
        (b"[" * 9000, "application/json", 422, "json"),
        (b"[" * 20_000, "application/json", 413, "json-too-large"),
        (b'{"image": "http://127.0.0.1/a.png"}', "application/json", 422, "base64"),
        (b'{"image": "/etc/passwd"}', "application/json", 422, "base64"),
        (b'{"image": 7}', "application/json", 422, "base64"),
        (b'{"images": "aa"}', "application/json", 422, "json"),
        (b'{"images": []}', "application/json", 422, "no-image"),
        (b'{"url": "file:///etc/passwd"}', "application/json", 422, "json"),
        (b'{"images": ["", "", "", "", ""]}', "application/json", 413, "too-many-images"),
        (b"--x", "multipart/form-data", 422, "form"),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 422, "form"),
        (b"", "multipart/form-data; boundary=x", 422, "form"),
        (FORM[:-10], "multipart/form-data; boundary=x", 422, "form"),
        (FORM.replace(b"filename", b"other"), "multipart/form-data; boundary=x", 422, "no-image"),
        (PART * 1001 + b"--x--", "multipart/form-data; boundary=x", 422, "form"),
    ],
)
def test_what_can_not_be_used_is_refused_with_a_reason(
    serve: Any, data: bytes, kind: str, status: int, reason: str
) -> None:
    served = serve(max_body_bytes=2_000_000, max_images=4)
    for path in ("/predict", "/embed"):
        answer = served.post(data, path, kind)
        assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
        assert answer.json()["error"].endswith(".")
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert served.metric(f'dinoprobe_failures_total{{reason="{reason}"}}') == 2
    assert served.post(RED).status_code == 200
    assert served.metric("dinoprobe_queue_depth") == 0
    assert served.metric("dinoprobe_buffered_bytes") == 0


@pytest.mark.parametrize("query", ["top_k=0", "top_k=x", "top_k=9999999", "abstain_below=2"])
def test_a_parameter_out_of_its_range_is_named(served: Served, query: str) -> None:
    answer = served.post(RED, f"/predict?{query}")
    assert (answer.status_code, answer.json()["reason"]) == (422, "parameter")
    assert query.partition("=")[0] in answer.json()["error"]


def test_another_path_or_method_is_told_in_the_same_form(served: Served) -> None:
    missing, method = served.client.get("/nothing"), served.client.get("/predict")
    assert (missing.status_code, missing.json()["reason"]) == (404, "path")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


def test_a_compressed_body_is_refused(served: Served) -> None:
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    answer = served.client.post("/predict", content=RED, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (415, "content-encoding")
    headers["content-encoding"] = "identity"
    assert served.client.post("/predict", content=RED, headers=headers).status_code == 200


def test_a_body_without_a_length_is_counted_as_it_comes(serve: Any) -> None:
    served = serve(max_body_bytes=1000)

    def parts() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 300

    answer = served.client.post("/predict", content=parts(), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["reason"]) == (413, "body-too-large")


def test_the_token_opens_all_but_the_probes(serve: Any) -> None:
    served = serve(token="s3cret")
    assert served.client.get("/healthz").status_code == 200
    for given in (None, "Bearer wrong", "Basic s3cret", "Bearer", "Bearer s3cret2", "bearer é"):
        headers = {"authorization": given.encode()} if given else {}
        for path in ("/info", "/metrics", "/docs", "/openapi.json", "/v2"):
            answer = served.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert served.client.post("/predict", content=RED, headers=headers).status_code == 401
    headers = {"authorization": "Bearer s3cret", "content-type": "image/png"}
    assert served.client.post("/predict", content=RED, headers=headers).status_code == 200
    assert "s3cret" not in repr(served.service.settings)


# --- load ---------------------------------------------------------------------------------------


def test_a_full_line_is_refused_at_once_with_a_time_to_come_again(serve: Any) -> None:
    served = serve(max_pending=5)
    served.predictor.go.clear()
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(served.post, RED) for _ in range(5)]
        wait_for(lambda: served.service.batcher.pending == 5)
        start = time.monotonic()
        refused = served.post(GREEN)
        took = time.monotonic() - start
        several = served.json({"images": [encoded(RED)] * 2})
        served.predictor.go.set()
        answers = [task.result() for task in waiting]
    for answer in (refused, several):
        assert (answer.status_code, answer.json()["reason"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert took < 1
    assert [answer.status_code for answer in answers] == [200] * 5
    assert served.service.batcher.pending == 0
    assert served.metric('dinoprobe_failures_total{reason="overloaded"}') == 2


def test_more_images_than_the_line_holds_are_taken_where_nothing_waits(serve: Any) -> None:
    served = serve(max_pending=3)
    answer = served.json({"images": [encoded(RED)] * 9})
    assert (answer.status_code, len(answer.json()["predictions"])) == (200, 9)


def test_what_waits_is_encoded_in_batches_and_what_is_alone_over_all_cores(serve: Any) -> None:
    predictor = MeanColour(lanes=2, batch_size=4)
    served = serve(predictor)
    predictor.batches.clear()
    served.post(RED)
    assert predictor.batches == [(1, True)]
    predictor.batches.clear()
    predictor.go.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(served.post, RED)
        wait_for(lambda: served.service.batcher._busy == 1)
        rest = [pool.submit(served.post, RED) for _ in range(8)]
        wait_for(lambda: len(served.service.batcher._ready) == 8)
        predictor.go.set()
        assert {task.result().status_code for task in (first, *rest)} == {200}
    assert predictor.batches[0] == (1, True)
    assert sorted(predictor.batches[1:]) == [(4, False), (4, False)]
    assert served.metric("dinoprobe_batch_images_sum") == 10


def test_no_image_is_left_behind_whatever_the_order(serve: Any) -> None:
    served = serve(MeanColour(lanes=3, batch_size=2), max_pending=100)
    bodies = [RED, GREEN, RED[:50], b"", RED, GREEN] * 20
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(served.post, bodies))
    expected = ["red", "green", None, None, "red", "green"] * 20
    found = [
        answer.json()["predictions"][0]["label"] if answer.status_code == 200 else None
        for answer in answers
    ]
    assert found == expected
    assert served.service.batcher.pending == 0


def test_what_is_late_is_told_so_and_frees_its_place(serve: Any) -> None:
    served = serve(deadline_s=0.05)
    served.predictor.go.clear()
    answer = served.post(RED)
    assert (answer.status_code, answer.json()["reason"]) == (503, "deadline")
    assert answer.headers["retry-after"] == "1"
    served.predictor.go.set()
    wait_for(lambda: served.service.batcher.pending == 0)
    assert served.post(RED).status_code == 200


def test_a_failing_encoder_is_503_and_the_lane_goes_on(serve: Any) -> None:
    served = serve()
    served.predictor.fails = RuntimeError("out of memory")
    answer = served.post(RED)
    assert (answer.status_code, answer.json()["reason"]) == (503, "encoder")
    served.predictor.fails = None
    assert served.post(RED).status_code == 200


def test_what_is_not_finite_is_a_failure_of_its_image(serve: Any) -> None:
    black = image((0, 0, 0))  # the mean colour divides by its sum
    served = serve()
    answer = served.json({"images": [encoded(black), encoded(RED)]})
    rows = answer.json()["predictions"]
    assert [row.get("failure", {}).get("kind") for row in rows] == ["non-finite", None]


def test_the_bytes_of_all_requests_together_are_bounded(serve: Any) -> None:
    served = serve(max_body_bytes=1000, max_buffered_bytes=1500)
    served.predictor.go.clear()
    padded = RED + b"\0" * (900 - len(RED))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.post, padded)
        wait_for(lambda: served.service.batcher.pending == 1)
        refused = served.post(padded)
        served.predictor.go.set()
        assert waiting.result().status_code == 200
    assert (refused.status_code, refused.json()["reason"]) == (503, "too-many-bytes")
    assert served.post(padded).status_code == 200


def test_memory_is_given_back_once_after_each_time_of_work(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(batcher, "_REST_S", 0.05)
    monkeypatch.setattr(batcher, "give_back", lambda: given.append(1))
    served = serve()
    time.sleep(0.2)
    assert given == []
    for times in (1, 2):
        assert served.post(RED).status_code == 200
        wait_for(lambda: len(given) >= times)  # noqa: B023
        time.sleep(0.2)
        assert len(given) == times


def test_giving_memory_back_harms_nothing() -> None:
    memory.give_back()


def test_a_service_that_ends_answers_what_waits(serve: Any) -> None:
    served = serve()
    served.predictor.go.clear()
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(served.post, RED) for _ in range(12)]
        wait_for(lambda: served.service.batcher.pending == 12)
        ending = threading.Thread(target=served.service.batcher.close)
        ending.start()
        wait_for(lambda: served.service.batcher._closed)
        served.predictor.go.set()
        codes = [task.result().status_code for task in waiting]
        ending.join()
    assert set(codes) == {200, 503}
    assert served.post(RED).json()["reason"] == "overloaded"


# --- decoders that hang -------------------------------------------------------------------------


def test_a_decoder_that_hangs_is_replaced_and_its_image_fails(serve: Any) -> None:
    served = serve(MeanColour(lanes=1), decode_timeout_s=0.05)
    for stuck in (1, 2):
        answer = served.post(HANGS)
        assert (answer.status_code, answer.json()["reason"]) == (422, "timeout")
        assert served.metric("dinoprobe_stuck_decoders") == stuck
        assert served.post(RED).status_code == 200
    assert served.service.batcher.pending == 0
    served.predictor.freed.set()
    wait_for(lambda: served.metric("dinoprobe_stuck_decoders") == 0)
    assert served.metric("dinoprobe_lost_decoders_total") == 2
    assert served.post(RED).status_code == 200


def test_where_too_many_hang_it_is_not_ready_until_they_end(serve: Any) -> None:
    served = serve(MeanColour(lanes=1), decode_timeout_s=0.05, max_stuck=1)
    assert served.post(HANGS).status_code == 422
    assert served.client.get("/readyz").status_code == 200
    assert served.post(HANGS).status_code == 422
    for answer in (served.client.get("/readyz"), served.post(RED)):
        assert (answer.status_code, answer.json()["reason"]) == (503, "stuck")
        assert answer.headers["retry-after"] == "1"
    assert served.client.get("/healthz").status_code == 200
    served.predictor.freed.set()
    wait_for(lambda: served.client.get("/readyz").status_code == 200)
    assert [served.post(RED).status_code for _ in range(5)] == [200] * 5
    decoding = [t for t in threading.enumerate() if t.name == "dinoprobe-decode" and t.is_alive()]
    workers = {worker.thread for worker in served.service.batcher._decoders._workers}
    assert len(workers) == 1
    assert workers <= set(decoding)


def test_what_hangs_longer_than_the_deadline_is_answered_by_then(serve: Any) -> None:
    served = serve(decode_timeout_s=60, deadline_s=0.05)
    answer = served.post(HANGS)
    assert (answer.status_code, answer.json()["reason"]) == (503, "deadline")


# --- about the service --------------------------------------------------------------------------


def test_it_says_that_it_is_not_ready_once_it_is_to_end(served: Served) -> None:
    paths = ("/readyz", "/v2/health/ready", "/v2/models/classifier/ready")
    assert [served.client.get(path).status_code for path in paths] == [200] * 3
    served.service.draining = True
    assert [served.client.get(path).status_code for path in paths] == [503] * 3
    assert served.client.get("/healthz").status_code == 200


def test_the_page_needs_no_network_and_no_script(served: Served) -> None:
    answer = served.client.get("/docs")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in served.client.get("/openapi.json").json()["paths"]:
        assert path in answer.text
    shown = answer.text.replace("http://testserver/", "")  # in lines to type, of its own address
    assert not re.search(r"<script|https?://|@import|<link|src=", shown)
    assert "curl -F file=@photo.jpg http://testserver/predict" in answer.text
    assert "red, green, blue" in answer.text


def test_the_page_shows_names_as_text(serve: Any) -> None:
    served = serve(MeanColour(rules=Rules(("<script>", "b&b", "'\""))))
    served.predictor.info = lambda: {"encoder": "<b>", "classes": ["<script>", "b&b", "'\""]}
    shown = served.client.get("/docs", headers={"host": 'a"><script>'}).text
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;, b&amp;b" in shown


def test_the_openapi_document_names_every_status(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    for path in ("/predict", "/embed", "/v2/models/{model}/infer"):
        answers = document["paths"][path]["post"]["responses"]
        assert {"200", "401", "408", "413", "415", "422", "503"} <= set(answers)
    (parameter,) = document["paths"]["/v2/models/{model}"]["get"]["parameters"]
    assert parameter["schema"]["enum"] == ["classifier"]
    assert set(document["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "image/*", "application/octet-stream", "multipart/form-data", "application/json",
    }  # fmt: skip


@pytest.mark.parametrize("given", ["abc-1.2_3", None, "a b", "x" * 65, "a\tb"])
def test_requests_have_ids(served: Served, given: str | None) -> None:
    headers = {"x-request-id": given} if given else {}
    found = served.client.get("/healthz", headers=headers).headers["x-request-id"]
    if given == "abc-1.2_3":
        assert found == given
    else:
        assert re.fullmatch(r"[0-9a-f]{16}", found)


def test_the_log_has_a_line_for_each_request_and_nothing_of_the_image(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="dinoprobe.server"):
        served.client.post("/predict", files={"file": ("secret.png", RED)})
        served.client.get("/healthz")
    (record,) = caplog.records
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["path"], fields["status"], fields["images"]) == ("/predict", 200, 1)
    assert fields["bytes"] > len(RED)
    assert "secret" not in str(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 70000},
        {"max_images": 0},
        {"deadline_s": 0},
        {"token": ""},
        {"model_name": "a/b"},
        {"max_buffered_bytes": 5},
        {"drain_s": -1},
    ],
)
def test_settings_that_can_not_work_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigurationError, match=f"{name} is .*; expected .*Change it."):
        ServerSettings(**changes)


def test_problems_pickle() -> None:
    problem = ProblemError(503, "late", "too late.", retry_after_s=2)
    copy = pickle.loads(pickle.dumps(problem))
    assert copy.document("i") == problem.document("i")
