"""The Open Inference Protocol, version 2, which KServe, Triton and others speak: its paths.

Source: the protocol's `required_api.md`, at github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response

from dinoprobe import __version__
from dinoprobe.errors import ImageError
from dinoprobe.server.inferred import LABELS, PROBABILITIES, inferred, wanted_outputs
from dinoprobe.server.problems import ProblemError, of_image
from dinoprobe.server.schema import INFER, as_json
from dinoprobe.server.tensors import INPUT, read_inference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dinoprobe.server.jobs import Row
    from dinoprobe.server.service import Service

VERSION = "1"  # of the one model: a service has one classifier all its life
_MODEL, _VERSIONED = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
_JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}}}}
_BOTH: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "application/octet-stream": {}}}
}


def add_inference_protocol(api: FastAPI, service: Service) -> None:
    """The paths under /v2."""

    @api.get("/v2", responses=_JSON)
    async def server() -> Response:
        """The server's name and version."""
        extensions = ["binary_tensor_data", "classification"]
        return as_json({"name": "dinoprobe", "version": __version__, "extensions": extensions})

    @api.get("/v2/health/live", responses=_JSON)
    async def live() -> Response:
        """Whether the process answers."""
        return as_json({"live": True})

    @api.get("/v2/health/ready", responses=_JSON)
    async def ready() -> Response:
        """Whether requests are welcome."""
        service.check_ready()
        return as_json({"ready": True})

    _add_model(api, service)


def _add_model(api: FastAPI, service: Service) -> None:
    """Each path with a version in it and without."""
    name = service.settings.model_name

    async def of_model(model: str) -> None:
        if model != name:
            message = f"model '{model[:100]}'; expected '{name}', the only one here. Ask for it."
            raise ProblemError(404, "model", message)

    async def of_version(model: str, version: str) -> None:
        await of_model(model)
        if version != VERSION:
            message = f"version '{version[:100]}'; expected '{VERSION}', the only one. Ask for it."
            raise ProblemError(404, "model", message)

    async def metadata() -> Response:
        """Names, types and shapes of inputs and outputs."""
        return as_json(_metadata(service))

    async def model_ready() -> Response:
        """Whether requests are welcome."""
        service.check_ready()
        return as_json({"name": name, "ready": True})

    async def infer(request: Request) -> Response:
        """Probabilities and labels of one image or several."""
        return await _infer(service, request)

    for path, check in ((_MODEL, of_model), (_VERSIONED, of_version)):
        first = [Depends(check)]
        api.get(path, dependencies=first, responses=_JSON)(metadata)
        api.get(f"{path}/ready", dependencies=first, responses=_JSON)(model_ready)
        api.post(f"{path}/infer", dependencies=first, responses=_BOTH, openapi_extra=INFER)(infer)


def named_path(path: str, model: str) -> str:
    """A path of the OpenAPI document as it is asked for."""
    return path.replace("{model}", model).replace("{version}", VERSION)


def name_the_model(api: FastAPI, name: str) -> None:
    """Say in the OpenAPI document that there is one model, in one version."""
    only = {"model": [name], "version": [VERSION]}
    for path, operations in api.openapi()["paths"].items():
        for operation in operations.values() if "{model}" in path else ():
            for parameter in operation["parameters"]:
                parameter["schema"]["enum"] = only[parameter["name"]]


def _metadata(service: Service) -> dict[str, Any]:
    count = len(service.predictor.rules.classes)
    return {
        "name": service.settings.model_name,
        "versions": [VERSION],
        "platform": "dinoprobe",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP64", "shape": [-1, count]},
            {"name": LABELS, "datatype": "BYTES", "shape": [-1]},
        ],
    }


async def _infer(service: Service, request: Request) -> Response:
    value, uploads = await read_inference(request, service.settings.max_images)
    wanted = wanted_outputs(value)
    request.scope["facts"].images = len(uploads)
    found = _all_rows(await service.rows(uploads))
    predictions = service.predictions(uploads, found, 1, None)
    head = {"model_name": service.settings.model_name, "model_version": VERSION}
    if isinstance(value.get("id"), str):
        head["id"] = value["id"]
    return inferred(
        head,
        wanted,
        np.stack([row.probabilities for row in found]),
        [prediction.label or "" for prediction in predictions],
        service.predictor.rules.classes,
    )


def _all_rows(rows: Sequence[Row | ImageError]) -> list[Row]:
    """The protocol has no word for one image that fails, so all fail with it: ProblemError."""
    found = []
    for row in rows:
        if isinstance(row, ImageError):
            raise of_image(row)
        found.append(row)
    return found
