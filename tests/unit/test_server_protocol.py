"""The Open Inference Protocol, in this process, over a predictor without an encoder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.in_process import GREEN, RED, encoded

if TYPE_CHECKING:
    from tests.in_process import Served


# --- the Open Inference Protocol ----------------------------------------------------------------


def infer(images: list[str], **changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": images}
    return {"id": "7", "inputs": [{**tensor, **changes}]}


PATH = "/v2/models/classifier/infer"


def test_the_protocol_gives_probabilities_and_labels(served: Served) -> None:
    answer = served.json(infer([encoded(RED), encoded(GREEN)]), PATH).json()
    assert (answer["model_name"], answer["id"]) == ("classifier", "7")
    probabilities, labels = answer["outputs"]
    described = served.client.get("/v2/models/classifier").json()["outputs"]
    assert [output["name"] for output in described] == ["probabilities", "label"]
    assert (probabilities["shape"], probabilities["datatype"]) == ([2, 3], "FP64")
    assert probabilities["data"][:3] == pytest.approx([0.8, 0.12, 0.08])
    assert labels["data"] == ["red", "green"]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ({}, 422),
        ([], 422),
        ({"inputs": []}, 422),
        ({"inputs": ["x"]}, 422),
        (infer([encoded(RED)], name="x"), 422),
        (infer([encoded(RED)], datatype="FP32"), 422),
        (infer([encoded(RED)], shape=[2]), 422),
        (infer([encoded(RED)], data={}), 422),
        (infer([]), 422),
        (infer(["*"]), 422),
        (infer([encoded(RED), encoded(b"text")]), 415),
    ],
)
def test_the_protocol_refuses_with_a_sentence(served: Served, value: object, status: int) -> None:
    answer = served.json(value, PATH)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_the_protocol_knows_one_model(served: Served) -> None:
    for path in ("/v2/models/x", "/v2/models/x/ready"):
        assert served.client.get(path).json()["reason"] == "model"
    assert served.json(infer([encoded(RED)]), "/v2/models/x/infer").status_code == 404
    assert served.client.get("/v2").json()["name"] == "dinoprobe"


# --- pixels -------------------------------------------------------------------------------------

REDDISH, GREENISH = (200, 30, 20), (20, 210, 20)


def colours(*values: tuple[int, int, int], size: tuple[int, int] = (6, 8)) -> Any:
    """`(n, height, width, 3)`, each image of one colour."""
    return np.stack([np.full((*size, 3), value, np.uint8) for value in values])


def pixels(array: Any, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(array.shape)}
    return {"inputs": [{**tensor, "data": array.tolist(), **changes}]}


def labels(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][1]["data"]


def test_pixels_are_classified_flat_and_nested_one_and_several(served: Served) -> None:
    both = colours(REDDISH, GREENISH)
    assert labels(served.json(pixels(both), PATH)) == ["red", "green"]
    assert labels(served.json(pixels(both, data=both.ravel().tolist()), PATH)) == ["red", "green"]
    assert labels(served.json(pixels(both[1]), PATH)) == ["green"]
    assert labels(served.json(pixels(both[1], shape=[6.0, 8, 3]), PATH)) == ["green"]


def test_a_file_and_its_pixels_have_the_same_probabilities(served: Served) -> None:
    as_file = served.json(infer([encoded(RED)]), PATH).json()["outputs"]
    as_pixels = served.json(pixels(colours(REDDISH)), PATH).json()["outputs"]
    assert as_file == as_pixels


ONE = colours(REDDISH)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, 6, 8, 4]},
        {"shape": [1, 6, 9, 3]},
        {"shape": [6, 8]},
        {"shape": [1, 1, 6, 8, 3]},
        {"shape": [1, 0, 8, 3]},
        {"shape": [1, 6, 8, True]},
        {"shape": [1, 6, 8, -3]},
        {"shape": [1, 6.5, 8, 3]},
        {"shape": [1, float("inf"), 8, 3]},
        {"shape": "1683"},
        {"shape": [1, 10**30, 8, 3]},
        {"datatype": "FP32"},
        {"data": None},
        {"data": {}},
        {"data": [256] * 144},
        {"data": [-1] * 144},
        {"data": [0.5] * 144},
        {"data": ["1"] * 144},
        {"data": [10**400] * 144},
        {"data": [[[[1, 2, 3]] * 8] * 5 + [[[1, 2]] * 8]]},
        {"data": [[[[1, 2, 3]] * 8] * 5 + [7]]},
        {"data": [[[[1, 2, [3]]] * 8] * 6]},
        {"data": []},
        {"parameters": {"binary_data_size": 144}},
    ],
    ids=str,
)
def test_pixels_of_another_form_are_refused(served: Served, changes: dict[str, Any]) -> None:
    answer = served.json(pixels(ONE, **changes), PATH)
    assert (answer.status_code, answer.json()["reason"]) == (422, "tensor"), answer.text
    assert answer.json()["error"].endswith("Send that.")


def test_limits_hold_for_pixels(serve: Any) -> None:
    served = serve(max_images=2, max_pixels=40)
    answer = served.json(pixels(ONE), PATH)
    assert (answer.status_code, answer.json()["reason"]) == (413, "too-large")
    answer = served.json(pixels(colours(REDDISH, REDDISH, REDDISH, size=(2, 2))), PATH)
    assert (answer.status_code, answer.json()["reason"]) == (413, "too-many-images")
    answer = served.json(pixels(colours(REDDISH, size=(2, 2)), shape=[0, 2, 2, 3]), PATH)
    assert (answer.status_code, answer.json()["reason"]) == (422, "no-image")
    answer = served.post(b"[" + b"0," * 300_001 + b"0]", PATH, "application/json")
    assert (answer.status_code, answer.json()["reason"]) == (413, "json-too-large")


# --- binary data --------------------------------------------------------------------------------


def elements(*contents: bytes) -> bytes:
    return b"".join(len(content).to_bytes(4, "little") + content for content in contents)


def binary(
    served: Served, value: dict[str, Any], blob: bytes, *, size: Any = None, end: Any = None
) -> Any:
    """A request whose one tensor stands behind the JSON."""
    tensor = {key: item for key, item in value["inputs"][0].items() if key != "data"}
    tensor["parameters"] = {"binary_data_size": len(blob) if size is None else size}
    head = json.dumps({**value, "inputs": [tensor]}).encode()
    length = len(head) if end is None else end
    headers = {"Inference-Header-Content-Length": str(length)}
    return served.client.post(PATH, content=head + blob, headers=headers)


def test_files_and_pixels_behind_the_json_are_classified(served: Served) -> None:
    files = binary(served, infer(["", ""]), elements(RED, GREEN))
    assert labels(files) == ["red", "green"]
    array = colours(GREENISH, REDDISH)
    assert labels(binary(served, pixels(array), array.tobytes())) == ["green", "red"]
    assert files.json()["outputs"][0]["shape"] == [2, 3]


@pytest.mark.parametrize(
    ("blob", "size"),
    [
        (elements(RED)[:-1], None),
        (elements(RED) + b"x", None),
        (elements(RED), 5),
        (elements(RED), 10**9),
        (elements(RED), "many"),
        (b"\xff\xff\xff\xff", None),
        (b"\x01", None),
        (b"", None),
    ],
)
def test_binary_files_that_do_not_fit_are_refused(served: Served, blob: bytes, size: Any) -> None:
    answer = binary(served, infer([""]), blob, size=size)
    assert (answer.status_code, answer.json()["reason"]) == (422, "tensor"), answer.text


@pytest.mark.parametrize("end", [10**6, 10**400, -1, "x", "", "²"])
def test_a_length_of_the_json_that_can_not_be_is_refused(served: Served, end: Any) -> None:
    headers = {"Inference-Header-Content-Length": str(end).encode()}
    content = json.dumps(infer([encoded(RED)])).encode()
    answer = served.client.post(PATH, content=content, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (422, "tensor"), answer.text


def test_binary_pixels_that_do_not_fit_are_refused(served: Served) -> None:
    for blob in (ONE.tobytes()[:-1], ONE.tobytes() + b"x", b""):
        answer = binary(served, pixels(ONE), blob)
        assert (answer.status_code, answer.json()["reason"]) == (422, "tensor"), answer.text


def test_limits_hold_for_binary_data(serve: Any) -> None:
    served = serve(max_images=2, max_pixels=40, max_body_bytes=2000)
    found = [
        binary(served, pixels(ONE), ONE.tobytes()),
        binary(served, infer(["", "", ""]), elements(b"", b"", b"")),
        binary(served, infer([""], shape=[10**9]), elements(RED)),
        binary(served, infer([""]), elements(b"x" * 3000)),
    ]
    reasons = ["too-large", "too-many-images", "too-many-images", "body-too-large"]
    assert [answer.json()["reason"] for answer in found] == reasons
    assert {answer.status_code for answer in found} == {413}


# --- outputs ------------------------------------------------------------------------------------


def test_outputs_are_those_that_are_asked_for(served: Served) -> None:
    request = infer([encoded(RED)])
    request["outputs"] = [{"name": "label"}]
    answer = served.json(request, PATH).json()
    assert answer["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["red"]}
    ]
    assert (answer["model_version"], answer["id"]) == ("1", "7")


def test_a_classification_is_the_best_classes_as_texts(served: Served) -> None:
    request = infer([encoded(RED), encoded(GREEN)])
    request["outputs"] = [{"name": "probabilities", "parameters": {"classification": 2}}]
    (output,) = served.json(request, PATH).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [text.split(":")[1:] for text in output["data"]] == [
        ["0", "red"], ["1", "green"], ["1", "green"], ["0", "red"],
    ]  # fmt: skip
    assert float(output["data"][0].split(":")[0]) == pytest.approx(0.8)
    request["outputs"][0]["parameters"]["classification"] = 99
    (output,) = served.json(request, PATH).json()["outputs"]
    assert (output["shape"], len(output["data"])) == ([2, 3], 6)


@pytest.mark.parametrize("whole", [True, False])
def test_outputs_come_as_bytes_where_that_is_asked(served: Served, whole: bool) -> None:
    request = infer([encoded(RED), encoded(GREEN)])
    if whole:
        request["parameters"] = {"binary_data_output": True}
    else:
        asked = {"binary_data": True}
        request["outputs"] = [
            {"name": name, "parameters": asked} for name in ("probabilities", "label")
        ]
    answer = served.json(request, PATH)
    length = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    document, blob = json.loads(answer.content[:length]), answer.content[length:]
    first, second = document["outputs"]
    size = first["parameters"]["binary_data_size"]
    assert size + second["parameters"]["binary_data_size"] == len(blob)
    found = np.frombuffer(blob[:size], "<f8").reshape(first["shape"])
    assert found[0] == pytest.approx([0.8, 0.12, 0.08])
    assert blob[size:] == elements(b"red", b"green")
    assert "data" not in first


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": {}},
        {"outputs": ["label"]},
        {"outputs": [{"name": "x"}]},
        {"outputs": [{"name": ["label"]}]},
        {"outputs": [{}]},
        {"outputs": [{"name": "label"}] * 3},
        {"outputs": [{"name": "label", "parameters": 7}]},
        {"outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        {"outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]},
        {"outputs": [{"name": "probabilities", "parameters": {"classification": True}}]},
        {"parameters": []},
    ],
    ids=str,
)
def test_outputs_that_there_are_not_are_refused(served: Served, changes: dict[str, Any]) -> None:
    answer = served.json({**infer([encoded(RED)]), **changes}, PATH)
    assert (answer.status_code, answer.json()["reason"]) == (422, "output"), answer.text


# --- paths --------------------------------------------------------------------------------------


def test_paths_with_the_version_are_the_same(served: Served) -> None:
    model, versioned = "/v2/models/classifier", "/v2/models/classifier/versions/1"
    for path in ("", "/ready"):
        one, other = served.client.get(model + path), served.client.get(versioned + path)
        assert (one.status_code, one.json()) == (200, other.json())
    assert served.client.get(model).json()["versions"] == ["1"]
    assert labels(served.json(infer([encoded(RED)]), f"{versioned}/infer")) == ["red"]
    wrong = served.client.get("/v2/models/classifier/versions/2")
    assert (wrong.status_code, wrong.json()["reason"]) == (404, "model")
    assert served.json(infer([]), "/v2/models/classifier/versions/2/infer").status_code == 404
    count = 'dinoprobe_responses_total{path="%s",status="200"}'
    assert served.metric(count % f"{versioned}/infer") == 1
