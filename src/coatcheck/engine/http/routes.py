"""The routes: OpenAI's, /health and /metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from coatcheck.arena import Arena
from coatcheck.arena.queue import ArenaQueue
from coatcheck.engine.http.admin import add_admin_routes
from coatcheck.engine.http.chat import Chat
from coatcheck.engine.http.collectors import ArenaMetrics, CpuSeconds, RankSnapshots
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.limits import Capacity
from coatcheck.engine.http.metrics import CONTENT_TYPE, Metrics
from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.http.responses import failure, http_failure, model_card
from coatcheck.engine.http.strategy_choice import StrategyChoice
from coatcheck.errors import BadRequest, CoatcheckError, Overloaded, RankLost
from coatcheck.intake.pool import WorkerPool


class NotReady(Overloaded):
    """No request is taken at present: the server starts or drains."""


def create_app(
    config: FrontendConfig,
    pool: WorkerPool,
    link: RankLink,
    admin_token: str | None = None,
    arena: Arena | None = None,
    queue: ArenaQueue | None = None,
) -> FastAPI:
    """The ASGI application. Without ``admin_token`` it has no /admin routes, without arena and queue no handles.

    ``app.state.draining = True`` turns new requests away; ``app.state.capacity`` counts those inside. Raises
    ConfigError if the model directory has no tokenizer that can be served, or the strategy is unknown.
    """
    # No interactive documentation: its pages would load scripts from elsewhere, and the one body is parsed by a worker.
    app = FastAPI(title="coatcheck", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.draining = False
    app.state.capacity = capacity = Capacity(config.max_waiting, config.max_held_bytes)
    app.state.metrics = metrics = Metrics(capacity, pool.statistics, link.statistics)
    metrics.registry.register(RankSnapshots(link.snapshots))
    metrics.registry.register(CpuSeconds(lambda: _pids(pool, link)))
    if arena is not None and queue is not None:
        metrics.registry.register(ArenaMetrics(arena, queue))
    choice = StrategyChoice(config.strategy, config.strategy_header, lambda: link.ranks, metrics.fallbacks)
    started = int(time.time())

    def check_ready() -> None:
        if link.loss is not None:
            raise RankLost(link.loss)
        if app.state.draining:
            raise NotReady("The server is shutting down")
        if link.ranks is None or not pool.is_ready:
            raise NotReady("The server is starting")

    chat = Chat(config, pool, link, capacity, metrics, choice, arena, check_ready)
    app.router.routes.append(Route("/v1/chat/completions", chat, methods=["POST"]))
    _add_status_routes(app, metrics, check_ready)
    if admin_token is not None:
        add_admin_routes(app, admin_token, choice, check_ready)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_card(config.model_name, started)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name == config.model_name:
            return JSONResponse(model_card(name, started))
        message = f"The model {name[:100]!r} does not exist; this server has {config.model_name!r}"
        return failure(BadRequest(message, param="model", code="model_not_found")).response()

    return app


def _add_status_routes(app: FastAPI, metrics: Metrics, check_ready: Callable[[], None]) -> None:
    @app.get("/health")
    async def health() -> Response:
        try:
            check_ready()
        except CoatcheckError as error:
            return failure(error).response()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return http_failure(error.status_code, detail, dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> Response:
        return failure(error).response()


def _pids(pool: WorkerPool, link: RankLink) -> dict[str, int]:
    """Every process of the server by name."""
    ranks = link.ranks.pids if link.ranks is not None else ()
    return {
        "front-end": os.getpid(),
        **{f"worker{place}": pid for place, pid in enumerate(pool.pids())},
        **{f"rank{rank}": pid for rank, pid in enumerate(ranks)},
    }
