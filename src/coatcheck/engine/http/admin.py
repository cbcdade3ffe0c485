"""GET and PUT /admin/strategy: the default strategy of new requests, for whoever has the token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from coatcheck.engine.http.asgi import ClientGone, read_body
from coatcheck.engine.http.responses import Failure, failure
from coatcheck.engine.http.strategy_choice import StrategyChoice
from coatcheck.engine.strategies.table import known
from coatcheck.errors import BadRequest, CoatcheckError

MAX_BODY_BYTES = 4096
BODY_S = 10.0  # for the body to come

UNAUTHORIZED = Failure(
    401,
    "This route needs the header 'Authorization: Bearer TOKEN' with the server's --admin-token",
    "unauthorized",
    "bad_request",
    headers={"WWW-Authenticate": "Bearer"},
)


class _Wish(msgspec.Struct, forbid_unknown_fields=True):
    strategy: str


def add_admin_routes(app: FastAPI, token: str, choice: StrategyChoice, check_ready: Callable[[], None]) -> None:
    """``check_ready`` raises while no request is taken; before the ranks are ready nobody knows what is available."""

    @app.api_route("/admin/strategy", methods=["GET", "PUT"])
    async def strategy(request: Request) -> Response:
        if not _authorized(request, token):
            return UNAUTHORIZED.response()
        try:
            check_ready()
            if request.method == "PUT":
                choice.switch(await _wish(request))
        except (CoatcheckError, TimeoutError) as error:
            return failure(error).response()
        except ClientGone:
            return Response(status_code=400)  # nobody reads it
        return JSONResponse(choice.state())


def _authorized(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


async def _wish(request: Request) -> str:
    """The strategy that the body names. Raises BadRequest, ClientGone, TimeoutError."""
    async with asyncio.timeout(BODY_S):
        body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    try:
        return msgspec.json.decode(body, type=_Wish).strategy
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f'The body must be {{"strategy": NAME}}: {error}; known names: {known()}'
        raise BadRequest(message, param="strategy") from error
