"""The service: embed, compare, search, enrol, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

import lightning_pfc
from lightning_pfc.gallery.deciding import decide
from lightning_pfc.service import bodies
from lightning_pfc.service.errors import RequestError, as_request_error
from lightning_pfc.service.gate import Gate
from lightning_pfc.service.identities import router as identities
from lightning_pfc.service.keys import Keys
from lightning_pfc.service.page import router as page
from lightning_pfc.service.reading import Read, content_of, reads
from lightning_pfc.service.state import ServiceState

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorAnswer, "description": text}
    for status, text in (
        (400, "the client went away"),
        (401, "a key is needed"),
        (403, "the key does not allow this, or the service only reads"),
        (404, "there is none"),
        (408, "the request took too long to arrive"),
        (409, "it exists already"),
        (413, "too many bytes, pixels or pictures"),
        (415, "another kind of content"),
        (422, "something is wrong with the request, or no face is in the picture"),
        (429, "too many requests at a time of this client"),
        (503, "too busy; come again"),
        (507, "the disk is full"),
    )
}


def create_app(state: ServiceState, keys: Callable[[], Keys] = Keys) -> FastAPI:
    """The ASGI application.

    Args:
        state: what it works with; closed when the application ends.
        keys: gives the keys of now.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        state.close()

    app = FastAPI(
        title="lightning-pfc",
        version=lightning_pfc.__version__,
        lifespan=lifespan,
        responses=_REFUSALS,
        redoc_url=None,
        docs_url=None,
    )
    app.state.service = state
    _add_errors(app)
    _add_state(app, state)
    _add_pictures(app, state)
    _add_schema(app)
    app.include_router(identities)
    app.include_router(page)
    app.add_middleware(Gate, keys=keys, limits=state.limits, telemetry=state.telemetry)
    return app


def _add_errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        found = as_request_error(error)
        if found is None:
            app.state.service.telemetry.event("failure", error=type(error).__name__)
            found = RequestError(500, "something went wrong here; the log has its kind.")
        headers = {} if found.retry_after is None else {"Retry-After": str(found.retry_after)}
        return JSONResponse({"detail": found.detail}, found.status, headers)

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            taken = ", ".join(_methods_at(app, request.scope))
            return JSONResponse({"detail": f"only {taken} is taken at this path."}, 405, {"Allow": taken})
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}."}, 422)

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RequestError, refused)
    for kind in (ValueError, RuntimeError, OSError):
        app.add_exception_handler(kind, refused)


def _methods_at(app: FastAPI, scope: Scope) -> list[str]:
    """What may be asked of a path, by all of its routes: the framework's own answer has those of the first."""
    taken = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]
    return sorted([*taken, "HEAD"] if "GET" in taken else taken)


def _add_state(app: FastAPI, state: ServiceState) -> None:
    """What may be asked of the service itself."""

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return RedirectResponse("page/")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Whether it answers: the network has run, and the gallery can be read."""
        if state.has_gallery:
            await state.keep(state.gallery.store.position)
        return {"status": "ready", "waiting": state.batcher.pending}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures in Prometheus's format."""
        state.telemetry.queue.set(state.batcher.pending)
        if state.has_gallery:
            found, pictures = await state.keep(state.gallery.store.count)
            state.telemetry.identities.set(found)
            state.telemetry.pictures.set(pictures)
        return Response(state.telemetry.text(), media_type="text/plain; version=0.0.4")

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """What the model is: width, size of its pictures, thresholds by name, and how often which score occurred."""
        recogniser = state.recogniser
        return {
            "model": recogniser.model_id,
            "width": recogniser.width,
            "image": list(recogniser.input_shape),
            "photos": recogniser.cutter is not None,
            "thresholds": recogniser.thresholds.to_dict(),
            "scores": recogniser.description.checks.get("scores"),
            "gallery": state.has_gallery,
            "read_only": state.read_only,
        }


def _add_pictures(app: FastAPI, state: ServiceState) -> None:
    """What may be asked of pictures."""

    @app.post("/embed", openapi_extra=content_of(bodies.EmbedRequest))
    async def embed(
        read: Annotated[Read[bodies.EmbedRequest], Depends(reads(bodies.EmbedRequest, "image", "images"))],
    ) -> bodies.EmbeddingAnswer | bodies.EmbeddingsAnswer:
        """Embeddings of one picture or of several."""
        rows, _ = await state.embed(read.every("image", "images"))
        if read.body.image is not None:
            return bodies.EmbeddingAnswer(embedding=rows[0].tolist())
        return bodies.EmbeddingsAnswer(embeddings=rows.tolist())

    @app.post("/compare", openapi_extra=content_of(bodies.CompareRequest))
    async def compare(
        read: Annotated[Read[bodies.CompareRequest], Depends(reads(bodies.CompareRequest, "a", "b"))],
    ) -> bodies.CompareAnswer:
        """How alike two pictures are, and whether they show one identity."""
        threshold = state.threshold(read.body.threshold)
        rows, _ = await state.embed(read.every("a", "b"), "picture")
        found = state.recogniser.compare(rows[0], rows[1], threshold=None if threshold is None else threshold.name)
        return bodies.CompareAnswer(
            score=found.score,
            same=found.same,
            far=found.far,
            interval=None if threshold is None else threshold.interval,
            threshold=None if threshold is None else threshold.name,
        )

    @app.post("/search", openapi_extra=content_of(bodies.SearchRequest))
    async def search(
        read: Annotated[Read[bodies.SearchRequest], Depends(reads(bodies.SearchRequest, "image"))],
    ) -> bodies.SearchAnswer:
        """The nearest identities of the gallery."""
        gallery, k = state.gallery, read.body.k
        if k > state.limits.k:
            raise RequestError(422, f"k={k}, at most {state.limits.k} identities are answered.")
        state.threshold(read.body.threshold, search=True)  # an unknown one is refused before anything is embedded
        rows, _ = await state.embed(read.every("image"))
        found = await state.keep(lambda: gallery.search(rows[0], k))
        decisions = decide(found, state.recogniser, read.body.threshold)
        first = decisions[0] if decisions else None
        return bodies.SearchAnswer(
            matches=[
                bodies.MatchAnswer(identity=one.identity, score=one.score, same=one.same, picture=one.picture)
                for one in decisions
            ],
            threshold=None if first is None else first.threshold,
            rate=None if first is None else first.rate,
        )


def _add_schema(app: FastAPI) -> None:
    """The description, with bodies that are read by this package and not by FastAPI."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = FastAPI.openapi(app)
            parts = schema.setdefault("components", {}).setdefault("schemas", {})
            for kind in (
                bodies.EmbedRequest,
                bodies.CompareRequest,
                bodies.SearchRequest,
                bodies.EnrolRequest,
                bodies.AddPicturesRequest,
                bodies.ChangeRequest,
            ):
                parts[kind.__name__] = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
