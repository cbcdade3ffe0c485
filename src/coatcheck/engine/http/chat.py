"""POST /v1/chat/completions: one request from its first byte to its last token."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

from starlette.types import Receive, Scope, Send

from coatcheck.arena import Arena
from coatcheck.arena.handle import Handle
from coatcheck.engine.http.asgi import ClientGone, Reply, header, read_body, until_client_leaves
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.limits import Capacity, InFlight
from coatcheck.engine.http.metrics import Metrics
from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.http.responses import Completion, failure
from coatcheck.engine.http.strategy_choice import HEADER, StrategyChoice, payload_policy
from coatcheck.engine.http.text import Piece, Vocabulary, pieces
from coatcheck.engine.records import Arrived, Processed
from coatcheck.errors import BadRequest, CoatcheckError
from coatcheck.intake.placement import Policy
from coatcheck.intake.pool import WorkerPool
from coatcheck.intake.records import Item, prompt_tokens
from coatcheck.wire import Decoder

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
        arena: Arena | None,
        check_ready: Callable[[], None],
    ) -> None:
        """``check_ready`` raises what a new request is to be answered with while none is taken."""
        self._config = config
        self._pool = pool
        self._link = link
        self._capacity = capacity
        self._metrics = metrics
        self._choice = choice
        self._arena = arena
        self._decode = Decoder[Processed](Processed)
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
                    with self._capacity.request() as in_flight:
                        self._check_ready()
                        strategy = self._choice.for_request(header(scope, HEADER))
                        if self._config.strategy_header:
                            reply.headers[HEADER] = strategy
                        await self._serve(scope, receive, reply, in_flight, strategy, started)
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
        self, scope: Scope, receive: Receive, reply: Reply, in_flight: InFlight, strategy: str, started: float
    ) -> None:
        body = await read_body(scope, receive, self._config.max_body_bytes, in_flight)
        request = secrets.token_hex(16)
        async with until_client_leaves(receive):
            with self._leases(request):
                done, frames = await self._pool.process(body, policy=self._policy(request, strategy))
                del body
                processed = self._decode(done.result)
                tokens = prompt_tokens(processed.ids, done.items)
                in_flight.hold(sum(map(len, frames)))
                stream = self._ask(request, strategy, processed, done.items, frames)
                del done, frames  # the link holds them, until they are sent
                completion = Completion(request, self._config.model_name, tokens)
                async with aclosing(stream):
                    # The status waits for the first token, so that a rejection is an error status in a stream too.
                    first = await anext(stream)
                    in_flight.hold(0)
                    self._metrics.first_token.labels(strategy).observe(time.monotonic() - started)
                    self._metrics.prompt_tokens.inc(tokens)
                    if processed.stream:
                        await self._stream(reply, completion, first, stream, processed.include_usage)
                    else:
                        await self._whole(reply, completion, first, stream)

    @contextmanager
    def _leases(self, request: str) -> Iterator[None]:
        """What the request leases inside is let go afterwards, once every rank has given it back."""
        try:
            yield
        finally:
            if self._arena is not None:
                self._arena.end(request)

    def _policy(self, request: str, strategy: str) -> Policy:
        rule = self._link.ranks.auto if self._link.ranks is not None else None
        policy = payload_policy(strategy, request, rule, self._config.pixels)
        return policy if self._arena is not None else Policy(policy.form)

    def _ask(
        self, request: str, strategy: str, processed: Processed, items: tuple[Item, ...], frames: list[memoryview]
    ) -> AsyncGenerator[Piece, None]:
        needed, there = prompt_tokens(processed.ids, items) + processed.sampling.max_tokens, self._link.ranks
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
            items=items,
            sampling=processed.sampling,
            verify=self._config.verify,
        )
        if self._arena is not None and there is not None and any(isinstance(item.pixels, Handle) for item in items):
            self._arena.dispatch(request, range(there.ranks))  # each rank gives its blocks back once
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
