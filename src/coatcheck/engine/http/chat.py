"""POST /v1/chat/completions: one request from its first byte to its last token."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, nullcontext, suppress

from starlette.types import Receive, Scope, Send

from coatcheck.arena.handle import PixelForm
from coatcheck.engine.http.asgi import ClientGone, Reply, header, read_body, until_client_leaves
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.limits import Capacity, Place
from coatcheck.engine.http.metrics import Metrics
from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.http.responses import Completion, failure
from coatcheck.engine.http.strategy_choice import HEADER, StrategyChoice
from coatcheck.engine.http.text import Piece, Vocabulary, pieces
from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.table import AUTO, NEED_ARENA, carrier_named, is_compact
from coatcheck.errors import BadRequest, CoatcheckError
from coatcheck.intake.placement import Payloads
from coatcheck.intake.pool import WorkerPool
from coatcheck.intake.records import Processed, prompt_tokens
from coatcheck.intake.rooms import Rooms

log = logging.getLogger("coatcheck.frontend")

FAIL_S = 5.0  # for telling a client that its request failed


class Chat:
    """An ASGI application for the one route. Every exchange ends in exactly one outcome of the metrics."""

    def __init__(
        self,
        config: FrontendConfig,
        pool: WorkerPool,
        link: RankLink,
        capacity: Capacity,
        metrics: Metrics,
        choice: StrategyChoice,
        rooms: Rooms | None,
        check_ready: Callable[[], None],
    ) -> None:
        """``rooms``: None if there is no arena.

        ``check_ready`` raises what a new request is to be answered with while none is taken.
        """
        self._config = config
        self._pool = pool
        self._link = link
        self._capacity = capacity
        self._metrics = metrics
        self._choice = choice
        self._rooms = rooms
        self._check_ready = check_ready
        self._vocabulary = Vocabulary(config.model_dir)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        reply = Reply(send)
        outcome = "ok"
        strategy: str | None = None  # until the request has one
        try:
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    with self._capacity.place() as place:
                        self._check_ready()
                        strategy = self._choice.for_request(header(scope, HEADER))
                        if self._config.strategy_header:
                            reply.headers[HEADER] = strategy
                        await self._serve(scope, receive, reply, place, strategy, started)
            except ClientGone:
                outcome = "disconnected"
            except (CoatcheckError, TimeoutError) as error:
                outcome = failure(error).outcome
                await self._fail(reply, error)
            except Exception as error:  # the server goes on
                log.exception("a request failed")
                outcome = failure(error).outcome
                await self._fail(reply, error)
        finally:
            strategy = strategy or self._choice.default
            self._metrics.requests.labels(outcome, strategy).inc()
            if outcome == "ok":
                self._metrics.latency.labels(strategy).observe(time.monotonic() - started)

    async def _fail(self, reply: Reply, error: Exception) -> None:
        """Tells the client; one that does not read is not waited for."""
        with suppress(TimeoutError, ClientGone):
            async with asyncio.timeout(FAIL_S):
                await reply.fail(failure(error))

    async def _serve(
        self, scope: Scope, receive: Receive, reply: Reply, place: Place, strategy: str, started: float
    ) -> None:
        body = await read_body(scope, receive, self._config.max_body_bytes, place)
        request = secrets.token_hex(16)
        async with until_client_leaves(receive):
            with self._rooms.held(request) if self._rooms is not None else nullcontext():
                processed, frames = await self._pool.process(body, self._payloads(request, strategy))
                del body
                place.hold(sum(map(len, frames)))
                stream = self._ask(request, strategy, processed, frames)
                del frames  # the link holds them, until they are sent
                completion = Completion(request, self._config.model_name, prompt_tokens(processed.ids, processed.items))
                async with aclosing(stream):
                    # The status waits for the first token, so that a rejection is an error status in a stream too.
                    first = await anext(stream)
                    place.hold(0)
                    self._metrics.first_token.labels(strategy).observe(time.monotonic() - started)
                    self._metrics.prompt_tokens.inc(prompt_tokens(processed.ids, processed.items))
                    if processed.stream:
                        await self._stream(reply, completion, first, stream, processed.include_usage)
                    else:
                        await self._whole(reply, completion, first, stream)

    def _payloads(self, request: str, strategy: str) -> Payloads:
        """How the request's payloads are made, and where they go."""
        form: PixelForm = self._config.pixels if is_compact(strategy) else "float32"
        if self._rooms is None:
            return Payloads(form)
        if strategy == AUTO and self._link.ranks is not None:
            return Payloads(form, request, self._link.ranks.auto)
        return Payloads(form, request if carrier_named(strategy) in NEED_ARENA else "")

    def _ask(
        self, request: str, strategy: str, processed: Processed, frames: list[memoryview]
    ) -> AsyncGenerator[Piece, None]:
        needed, there = prompt_tokens(processed.ids, processed.items) + processed.sampling.max_tokens, self._link.ranks
        if there is not None and needed > there.kv_tokens:  # the ranks could never admit it
            raise BadRequest(
                f"The prompt and max_tokens need room for {needed} tokens; this server has {there.kv_tokens}",
                param="messages",
                code="context_length_exceeded",
            )
        arrived = Arrived(
            request=request,
            strategy=strategy,
            ids=processed.ids,
            items=processed.items,
            sampling=processed.sampling,
            verify=self._config.verify,
        )
        if self._rooms is not None and there is not None:
            self._rooms.dispatch(arrived, there.ranks)
        answer = self._link.submit(arrived, frames)
        gap = self._metrics.inter_token.labels(strategy).observe
        return pieces(answer, self._vocabulary, processed.stop, gap)

    async def _whole(self, reply: Reply, completion: Completion, piece: Piece, stream: AsyncIterator[Piece]) -> None:
        texts = [piece.text]
        async for piece in stream:
            texts.append(piece.text)
        assert piece.finish is not None
        self._metrics.generated_tokens.inc(piece.tokens)
        await reply.json(200, completion.whole("".join(texts), piece.finish, piece.tokens))

    async def _stream(
        self, reply: Reply, completion: Completion, piece: Piece, stream: AsyncIterator[Piece], include_usage: bool
    ) -> None:
        await reply.event(completion.chunk({"role": "assistant", "content": ""}, None, include_usage))
        await self._delta(reply, completion, piece, include_usage)
        async for piece in stream:
            await self._delta(reply, completion, piece, include_usage)
        self._metrics.generated_tokens.inc(piece.tokens)
        await reply.event(completion.chunk({}, piece.finish, include_usage))
        if include_usage:
            await reply.event(completion.usage_chunk(piece.tokens))
        await reply.event(b"[DONE]")
        await reply.end()

    @staticmethod
    async def _delta(reply: Reply, completion: Completion, piece: Piece, include_usage: bool) -> None:
        if piece.text:
            await reply.event(completion.chunk({"content": piece.text}, None, include_usage))
