"""The Open Inference Protocol, version 2, which KServe, Triton and others speak.

An image is one element of a BYTES tensor, a file's content in base64. Source: the protocol's
`required_api.md`, at github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response  # noqa: TC002 - FastAPI reads annotations

from dinoprobe import __version__
from dinoprobe.errors import ImageError
from dinoprobe.server.bodies import Upload, checked_count, from_base64, read_json
from dinoprobe.server.problems import ProblemError, of_image
from dinoprobe.server.schema import as_json

if TYPE_CHECKING:
    from dinoprobe.server.batcher import Row
    from dinoprobe.server.service import Service

INPUT, PROBABILITIES, LABELS = "image", "probabilities", "label"
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"const": INPUT},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"const": "BYTES"},
        "data": {"type": "array", "items": {"type": "string", "format": "byte"}},
    },
}
_INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR},
                    },
                }
            }
        },
    }
}


def add_inference_protocol(api: FastAPI, service: Service) -> None:
    """The paths under /v2."""
    name = service.settings.model_name

    def check(model: str) -> None:
        if model != name:
            message = f"model '{model[:100]}'; expected '{name}', the only one here. Ask for it."
            raise ProblemError(404, "model", message)

    answers: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}}}}

    @api.get("/v2", responses=answers)
    async def server() -> Response:
        """The server's name and version."""
        return as_json({"name": "dinoprobe", "version": __version__, "extensions": []})

    @api.get("/v2/health/live", responses=answers)
    async def live() -> Response:
        """Whether the process answers."""
        return as_json({"live": True})

    @api.get("/v2/health/ready", responses=answers)
    async def ready() -> Response:
        """Whether requests are welcome."""
        return _ready(service)

    @api.get("/v2/models/{model}", responses=answers)
    async def metadata(model: str) -> Response:
        """Names, types and shapes of inputs and outputs."""
        check(model)
        return as_json(_metadata(service))

    @api.get("/v2/models/{model}/ready", responses=answers)
    async def model_ready(model: str) -> Response:
        """Whether requests are welcome."""
        check(model)
        return _ready(service)

    @api.post("/v2/models/{model}/infer", openapi_extra=_INFER, responses=answers)
    async def infer(request: Request, model: str) -> Response:
        """Probabilities and labels of one image or several."""
        check(model)
        value = await read_json(request)
        uploads = checked_count(_uploads(value), service.settings.max_images)
        request.scope["facts"].images = len(uploads)
        rows = await service.rows(uploads)
        return as_json(_outputs(service, value, uploads, rows))


def name_the_model(api: FastAPI, name: str) -> None:
    """Say in the OpenAPI document that there is one model."""
    for path, operations in api.openapi()["paths"].items():
        if "{model}" in path:
            for operation in operations.values():
                (parameter,) = (p for p in operation["parameters"] if p["name"] == "model")
                parameter["schema"]["enum"] = [name]


def _ready(service: Service) -> Response:
    if not service.is_ready:
        raise ProblemError(503, "ends", "the service ends; ask another.", retry_after_s=1)
    return as_json({"ready": True})


def _metadata(service: Service) -> dict[str, Any]:
    count = len(service.predictor.rules.classes)
    return {
        "name": service.settings.model_name,
        "versions": [],
        "platform": "dinoprobe",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP64", "shape": [-1, count]},
            {"name": LABELS, "datatype": "BYTES", "shape": [-1]},
        ],
    }


def _uploads(value: Any) -> list[Upload]:
    """The images of an inference request. Raises ProblemError."""
    inputs = value.get("inputs") if isinstance(value, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _wrong("no list 'inputs' with one tensor")
    tensor = inputs[0]
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        found = f"{tensor.get('name')!r} of type {tensor.get('datatype')!r}"
        raise _wrong(f"a tensor {found[:200]}")
    data = tensor.get("data")
    if not isinstance(data, list) or tensor.get("shape") not in ([len(data)], [len(data), 1]):
        raise _wrong("'data' that is no list, or has not the length that 'shape' says")
    return [Upload(str(i), from_base64(text, i)) for i, text in enumerate(data)]


def _wrong(found: str) -> ProblemError:
    message = (
        f"{found}; expected one tensor '{INPUT}' of datatype BYTES and shape [n], its data the n "
        "files in base64. Send that."
    )
    return ProblemError(422, "tensor", message)


def _outputs(
    service: Service, value: Any, uploads: list[Upload], rows: list[Row | ImageError]
) -> dict[str, Any]:
    """The answer; the protocol has no word for one image that fails, so all fail with it."""
    for row in rows:
        if isinstance(row, ImageError):
            raise of_image(row)
    predictions = service.predictions(uploads, rows, 1, None)
    flat = [float(p) for row in rows if not isinstance(row, ImageError) for p in row.probabilities]
    count = len(rows)
    answer = {
        "model_name": service.settings.model_name,
        "outputs": [
            {
                "name": PROBABILITIES,
                "datatype": "FP64",
                "shape": [count, len(flat) // count],
                "data": flat,
            },
            {
                "name": LABELS,
                "datatype": "BYTES",
                "shape": [count],
                "data": [prediction.label or "" for prediction in predictions],
            },
        ],
    }
    given = value.get("id")
    return {**answer, "id": given} if isinstance(given, str) else answer
