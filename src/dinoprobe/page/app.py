"""The page's paths: static files, JSON about rows, pictures by key, and what a person does."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from dinoprobe.compare import compare_runs
from dinoprobe.datasets.corrections import State
from dinoprobe.errors import ConfigurationError, DinoprobeError, ImageError
from dinoprobe.page import documents
from dinoprobe.page.fitting import refit
from dinoprobe.page.log import ConflictError
from dinoprobe.page.picks import next_picks
from dinoprobe.page.pictures import SIZES_PX, Pictures
from dinoprobe.page.predicting import answer
from dinoprobe.page.projection import KINDS, Projections
from dinoprobe.page.queue import review_queue
from dinoprobe.page.saving import Saver, save_command
from dinoprobe.server.bodies import read_uploads
from dinoprobe.server.problems import ProblemError, of_image
from dinoprobe.server.schema import as_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from dinoprobe.page.workspace import Workspace
    from dinoprobe.server.service import Service

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
MOST_CHANGES = 100_000
PREDICT_PATH = "/api/predict"


class ChangeBody(BaseModel):
    """One image: what it was when the person saw it, and what it is to be."""

    key: str
    old: str | None = None
    old_dropped: bool = False
    new: str | None = Field(default=None, max_length=200)
    dropped: bool = False


class ChangesBody(BaseModel):
    """One action: all of it is written, or nothing."""

    changes: list[ChangeBody] = Field(min_length=1, max_length=MOST_CHANGES)


class UndoBody(BaseModel):
    """The action to take back, the last one by default."""

    action: int | None = None


def create_page(work: Workspace, service: Service, say: Callable[[str], None]) -> FastAPI:
    """The application, without the gates that stand before it."""
    api = FastAPI(title="dinoprobe", docs_url=None, redoc_url=None, openapi_url=None)
    _add_files(api)
    _add_state(api, work)
    _add_pictures(api, work)
    _add_labels(api, work)
    _add_model(api, work, Saver(work, say))
    _add_predict(api, work, service)
    _add_runs(api, work)
    _add_errors(api)
    return api


def _add_files(api: FastAPI) -> None:
    """The files of the page as they were when it was opened; a name that is none of them is 404."""
    files = {
        f"/{path.name}": (path.read_bytes(), TYPES[path.suffix])
        for path in sorted(STATIC.iterdir())
        if path.suffix in TYPES
    }
    files["/"] = files["/index.html"]
    for path, (content, kind) in files.items():
        api.add_api_route(path, _fixed(content, kind), methods=["GET"])


def _fixed(content: bytes, kind: str) -> Callable[[], Any]:
    async def send() -> Response:
        return Response(content, media_type=kind)

    return send


def _add_state(api: FastAPI, work: Workspace) -> None:
    projections = Projections(work.features.X)

    @api.get("/api/info")
    def info() -> Response:
        return as_json(documents.info(work))

    @api.get("/api/rows")
    def rows() -> Response:
        return as_json(documents.rows(work))

    @api.get("/api/model")
    def model() -> Response:
        return as_json(documents.model(work))

    @api.get("/api/figures")
    def figures(model: str = "now") -> Response:
        return as_json(documents.figures(work, model, work.standing()))

    @api.get("/api/queue")
    def queue(*, again: bool = False) -> Response:
        return as_json({"items": review_queue(work, work.standing(), again=again)})

    @api.get("/api/map")
    def points(kind: str = "pca") -> Response:
        if kind not in KINDS:
            raise ConfigurationError(f"a map {kind[:20]!r}; expected one of {', '.join(KINDS)}.")
        found = projections.get(kind)
        if found is None:
            told = {"state": "failed" if projections.failed else "runs", "text": projections.failed}
            return as_json(told)
        return Response(found.astype("<f4").tobytes(), media_type="application/octet-stream")

    @api.get("/api/picks")
    def picks(count: Annotated[int, Query(ge=1, le=200)] = 20) -> Response:
        how, found = next_picks(work, work.standing(), count)
        return as_json({"how": how, "keys": [work.features.keys[row] for row in found]})


def _add_pictures(api: FastAPI, work: Workspace) -> None:
    pictures = Pictures(work.samples, work.encoder.preprocessing.bands)

    @api.get("/api/image")
    def image(key: str, size: int = SIZES_PX[0]) -> Response:
        if key not in work.samples or size not in SIZES_PX:
            raise ProblemError(404, "image", "no image with this key and size. Reload the page.")
        try:
            content = pictures.get(key, size)
        except ImageError as error:
            raise of_image(error) from error
        cached = {"cache-control": "private, max-age=600"}
        return Response(content, media_type="image/jpeg", headers=cached)


def _add_labels(api: FastAPI, work: Workspace) -> None:
    @api.get("/api/labels")
    def labels(since: int = 0) -> Response:
        return as_json(documents.changes_since(work, since))

    @api.post("/api/labels")
    def change(body: ChangesBody) -> Response:
        wanted = [
            work.wanted(
                each.key,
                State(each.old, each.old_dropped),
                State(_clean(each.new), each.dropped),
            )
            for each in body.changes
        ]
        if len({each.key for each in wanted}) < len(wanted):
            raise ConfigurationError("an image is there twice; expected each once. Reload.")
        return as_json({"action": work.log.append(wanted)})

    @api.post("/api/undo")
    def undo(body: UndoBody) -> Response:
        return as_json({"action": work.log.undo(body.action)})


def _clean(label: str | None) -> str | None:
    """A label without spaces around it; an empty one is none."""
    return (label or "").strip() or None


def _add_model(api: FastAPI, work: Workspace, saver: Saver) -> None:
    @api.post("/api/refit")
    def fit() -> Response:
        with work.busy:
            return as_json(refit(work, work.standing()))

    @api.post("/api/save")
    def save() -> Response:
        return as_json(_saving(work, saver.start()))

    @api.get("/api/save")
    def saving() -> Response:
        return as_json(_saving(work, saver.now))


def _saving(work: Workspace, found: Any) -> dict[str, Any]:
    return {
        "state": found.state,
        "text": found.text,
        "run": found.run,
        "accuracy": found.accuracy,
        "interval": found.interval,
        "command": save_command(work, found.version),
    }


def _add_predict(api: FastAPI, work: Workspace, service: Service) -> None:
    @api.post(PREDICT_PATH)
    async def predict(request: Request) -> Response:
        uploads = await read_uploads(request, 1)
        request.scope["facts"].images = 1
        (row,) = await service.rows(uploads)
        if isinstance(row, ImageError) or row.features is None:
            raise ProblemError(422, "image", "an image that can not be used. Give another.")
        return as_json(answer(work, row.features, work.standing()))


def _add_runs(api: FastAPI, work: Workspace) -> None:
    """Runs beside this one, by the names of their directories alone."""

    @api.get("/api/runs")
    def runs() -> Response:
        return as_json({"runs": sorted(_siblings(work))})

    @api.get("/api/compare")
    def compare(other: str) -> Response:
        found = _siblings(work)
        if other not in found or work.origin.run is None:
            raise ConfigurationError(f"{other[:100]!r}: no run beside this one. Reload the page.")
        sides = (str(found[other]), str(work.origin.run))
        command = shlex.join(["dinoprobe", "compare", *sides])
        return as_json({**compare_runs(*sides).summary, "command": command})


def _siblings(work: Workspace) -> dict[str, Path]:
    run = work.origin.run
    if run is None:
        return {}
    return {
        path.name: path
        for path in run.parent.iterdir()
        if path != run and (path / "predictions.csv").is_file()
    }


def _add_errors(api: FastAPI) -> None:
    def told(status: int, reason: str, message: str) -> Response:
        response = as_json({"error": message, "reason": reason})
        response.status_code = status
        return response

    async def known(_: Request, error: Exception) -> Response:
        if isinstance(error, ProblemError):
            return told(error.status, error.reason, str(error))
        if isinstance(error, ConflictError):
            return told(409, "conflict", str(error))
        return told(422, type(error).__name__, str(error))

    async def of_path(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        return told(error.status_code, "path", f"{error.detail}: nothing is here. Reload the page.")

    async def of_body(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return told(422, "parameter", f"{place}: {first['msg']}. Reload the page.")

    api.add_exception_handler(DinoprobeError, known)
    api.add_exception_handler(HTTPException, of_path)
    api.add_exception_handler(RequestValidationError, of_body)
