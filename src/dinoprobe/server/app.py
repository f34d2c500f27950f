"""The application: paths, their parameters, and the OpenAPI document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from dinoprobe import __version__
from dinoprobe.errors import ImageError
from dinoprobe.server.bodies import Upload, read_uploads
from dinoprobe.server.gate import Gate
from dinoprobe.server.page import CONTENT_POLICY, page
from dinoprobe.server.problems import ProblemError
from dinoprobe.server.protocol import add_inference_protocol, name_the_model, named_path
from dinoprobe.server.schema import PROBLEMS, UPLOAD, EmbedBody, PredictBody, StateBody, as_json
from dinoprobe.server.service import Service, features_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dinoprobe.server.jobs import Row

SCHEMA_PREDICT, SCHEMA_EMBED = "dinoprobe.http-predict/1", "dinoprobe.http-embed/1"
MAX_TOP_K = 1000
TopK = Annotated[int, Query(ge=1, le=MAX_TOP_K, description="Classes of each image.")]
AbstainBelow = Annotated[
    float | None,
    Query(ge=0, le=1, description="No label below this probability (default: the rule in it)."),
]


def create_app(service: Service) -> Gate:
    """The ASGI application for a service, behind its gate."""
    api = FastAPI(
        title="dinoprobe",
        version=__version__,
        description="Classifies images.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
    )
    _add_images(api, service)
    add_inference_protocol(api, service)
    _add_state(api, service)
    _add_errors(api)
    name_the_model(api, service.settings.model_name)
    paths = frozenset(api.openapi()["paths"]) | {"/docs", "/openapi.json"}
    named = frozenset(named_path(path, service.settings.model_name) for path in paths)
    return Gate(api, service.settings, service.metrics, service.batcher.check_room, named)


def _add_images(api: FastAPI, service: Service) -> None:
    limit = service.settings.max_images

    @api.post("/predict", openapi_extra=UPLOAD, responses={200: {"model": PredictBody}})
    async def predict(
        request: Request, top_k: TopK = 5, abstain_below: AbstainBelow = None
    ) -> Response:
        """Classes and probabilities of one image or several."""
        uploads, rows = await _answered(service, request, limit)
        found = service.predictions(uploads, rows, top_k, abstain_below)
        return as_json(
            {
                "schema": SCHEMA_PREDICT,
                "model": service.settings.model_name,
                "predictions": [prediction.to_dict() for prediction in found],
                "failed": sum(prediction.failure is not None for prediction in found),
            }
        )

    @api.post("/embed", openapi_extra=UPLOAD, responses={200: {"model": EmbedBody}})
    async def embed(request: Request) -> Response:
        """The encoder's features of one image or several."""
        uploads, rows = await _answered(service, request, limit)
        embeddings = [
            _embedding(upload, row, features)
            for upload, row, features in zip(uploads, rows, features_of(rows), strict=True)
        ]
        return as_json(
            {
                "schema": SCHEMA_EMBED,
                "model": service.settings.model_name,
                "fingerprint": service.predictor.info()["fingerprint"],
                "embeddings": embeddings,
                "failed": sum("failure" in values for values in embeddings),
            }
        )


async def _answered(
    service: Service, request: Request, limit: int
) -> tuple[list[Upload], Sequence[Row | ImageError]]:
    uploads = await read_uploads(request, limit)
    request.scope["facts"].images = len(uploads)
    return uploads, await service.rows(uploads)


def _embedding(
    upload: Upload, row: Row | ImageError, features: list[float] | None
) -> dict[str, Any]:
    values: dict[str, Any] = {"key": upload.key, "features": features}
    if isinstance(row, ImageError):
        values["failure"] = {"kind": row.kind, "reason": str(row)}
    return values


def _add_state(api: FastAPI, service: Service) -> None:
    @api.get("/healthz", responses={200: {"model": StateBody}})
    async def healthz() -> Response:
        """Whether the process answers."""
        return as_json({"status": "ok"})

    @api.get("/readyz", responses={200: {"model": StateBody}})
    async def readyz() -> Response:
        """Whether requests are welcome: no more from when it is told to end, or decoders hang."""
        service.check_ready()
        return as_json({"status": "ready"})

    @api.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(), media_type=kind)

    @api.get("/info", responses={200: {"content": {"application/json": {}}}})
    async def info() -> Response:
        """What is served: classes, encoder, preprocessing, rules and limits."""
        return as_json({"schema": "dinoprobe.http-info/1", **service.info()})

    @api.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)

    @api.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        shown = page(api.openapi(), service.info(), str(request.base_url))
        policy = {"content-security-policy": CONTENT_POLICY}
        return Response(shown, media_type="text/html", headers=policy)


def _add_errors(api: FastAPI) -> None:
    """Every error has one shape, and is counted under its reason."""

    def told(request: Request, problem: ProblemError) -> Response:
        facts = request.scope["facts"]
        facts.reason = problem.reason
        content = json.dumps(problem.document(facts.request_id))
        return Response(content, problem.status, problem.headers(), "application/json")

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101 - what it is registered for
        return told(request, error)

    async def of_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        found = f"{request.method} {request.url.path[:200]}: {error.detail}"
        message = f"{found}; expected one of the paths at /docs. Ask there."
        response = told(request, ProblemError(error.status_code, "path", message))
        response.headers.update(error.headers or {})
        return response

    async def of_parameter(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: {first['msg']}; expected what /docs says. Change it."
        return told(request, ProblemError(422, "parameter", message))

    async def unknown(request: Request, error: Exception) -> Response:
        del error  # the gate logs it
        message = "this service failed; the log says more. Report it with the request's id."
        return told(request, ProblemError(500, "bug", message))

    api.add_exception_handler(ProblemError, known)
    api.add_exception_handler(HTTPException, of_path)
    api.add_exception_handler(RequestValidationError, of_parameter)
    api.add_exception_handler(Exception, unknown)
