"""The tokenizer's side: what SGLang sends to its schedulers holds a claim in place of a request's inputs.

Around ``TokenizerManager._send_one_request`` and ``_send_batch_request``. Whatever does not travel this way (no room,
no CPU tensors, a class that no pickle of ours may name, trouble of ours) takes SGLang's own way, as it came. What has
been sent is let go: the request that these functions are given holds no pixels afterwards, as after SGLang's own.
(Parallel sampling sends a request n + 1 times, and gives these functions a copy each time.)

Around ``abort_request``, too: schedulers do not know what waits here, so its abort is sent again behind it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import zmq
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import MultimodalProcessorOutput

from coatcheck.errors import ArenaError, ConfigError
from coatcheck.integrations.sglang.arena_owner import ArenaOwner, Refused, Trouble
from coatcheck.integrations.sglang.codec import Remembered, Unpackable, large, leaves, pack
from coatcheck.integrations.sglang.compact import Stored, stored
from coatcheck.integrations.sglang.metrics import LAG_S, WRITE_S, FrontMetrics, NoFrontMetrics, Taken, Way
from coatcheck.integrations.sglang.opening import Opening
from coatcheck.integrations.sglang.records import Claim, Ticket, in_share
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.settings import Settings
from coatcheck.integrations.sglang.support import metrics_wanted
from coatcheck.integrations.sglang.whole import Whole

log = logging.getLogger(__name__)

OPENED_S = 0.1  # between looks whether the arena is open
SAY_S = 60.0  # between lines in the log about the same thing

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
_ATTRIBUTE = "_coatcheck"  # of a TokenizerManager: its TokenizerSide, or None if there is none for it


class Parcel:
    """A request's inputs, as :class:`coatcheck.integrations.sglang.arena_owner.ArenaOwner` checks them in."""

    def __init__(self, inputs: Any, hashes: Remembered[int]) -> None:
        """``hashes``: SGLang's, of features. Looks at no pixel. Raises Unpackable for what cannot travel."""
        self._inputs, self._hashes = inputs, hashes
        fields = [getattr(inputs, name) for name in type(inputs).__struct_fields__ if name != "mm_items"]
        self._features = [tensor for item in inputs.mm_items for tensor in leaves(item.feature)]
        others = [
            tensor
            for item in inputs.mm_items
            for tensor in leaves([item.precomputed_embeddings, item.model_specific_data])
        ]
        self.blocks: Sequence[torch.Tensor] = large([*self._features, *others, *leaves(fields)])

    @property
    def unhashed(self) -> int:
        """Bytes that every rank would hash, by SGLang's own way."""
        if envs.SGLANG_MM_SKIP_COMPUTE_HASH.get():
            return 0
        items = (item for item in self._inputs.mm_items if item.pad_value is None and item.hash is None)
        return sum(tensor.nbytes for item in items for tensor in leaves(item.feature))

    def check(self) -> None:
        """On a thread. Raises Unpackable."""
        shape = tuple((item.modality, *sorted(item.model_specific_data)) for item in self._inputs.mm_items[:1])
        if shape not in _packable:
            pack(self._inputs, self.blocks, self._features)
            _packable.add(shape)

    def body(self) -> bytes:
        """On a thread. Raises Unpackable."""
        inputs = copy.copy(self._inputs)
        if not envs.SGLANG_MM_SKIP_COMPUTE_HASH.get():  # then the user wants no identities by content
            inputs.mm_items = [_named(item, self._hashes) for item in inputs.mm_items]
        return pack(inputs, self.blocks, self._features)


_packable = set[tuple[object, ...]]()  # kinds of inputs, few, of which one was packed: others like it are not tried


def _named(item: Any, hashes: Remembered[int]) -> Any:
    """The item as SGLang's own way would name it, by the same hash; as it is, if it has a name already.

    So SGLang's caches know a picture again that went the other way before. It is computed here, on a thread, as by
    SGLANG_MM_PRECOMPUTE_HASH, and not on every rank. Blocks are shared by our digests alone.
    """
    content = item.feature if item.feature is not None else item.precomputed_embeddings
    if item.hash is not None or item.pad_value is not None or not all(map(_is_tensor, _parts(content))):
        return item
    item = copy.copy(item)
    known = hashes.known(content) if _is_tensor(content) else None
    if known is not None:
        item.set_hash(known)
        return item
    item.set_pad_value()
    if _is_tensor(content):
        hashes.keep(content, item.hash)
    return item


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _parts(one)
    elif value is not None:
        yield value


class TokenizerSide:
    """One TokenizerManager's. Used on its event loop."""

    def __init__(self, manager: Any, opening: Opening) -> None:
        self._manager, self._opening, self._share = manager, opening, opening.settings.share
        self._begun = not opening.whole  # the workers' start, or there are none
        self.processed = Counter[Taken]()  # requests with media in mode whole
        self.counts = Counter[Way]()  # requests with inputs, by how they went: carried, or why not
        self._metrics = FrontMetrics() if metrics_wanted() else NoFrontMetrics()
        self._waiting: list[dict[str, bool]] = []  # what is sent together: whether it has been aborted, by request id
        self._hashes = Remembered[int]()
        self._said: dict[str, float] = {}  # when, by what the line is about
        if self._metrics.on:
            loop = asyncio.get_running_loop()
            self._showing = [loop.create_task(_logged(task)) for task in (self._show(), self._lag())]

    @property
    def owner(self) -> ArenaOwner | None:
        """What carries requests now."""
        return self._opening.ready

    def begin_whole(self) -> None:
        """Once the arena is there, workers process what they can of this manager's media. May be called again.

        SGLang's own first request, with which it warms up, comes before the arena is open.
        """
        if not self._begun:
            self._begun = True
            self._beginning = asyncio.create_task(self._begin_whole())

    async def _begin_whole(self) -> None:
        while not self._opening.done.is_set():  # noqa: ASYNC110 - a thread's event; it is set whatever happens
            await asyncio.sleep(OPENED_S)
        owner = self.owner
        if owner is None:
            return
        processor, workers = self._manager.mm_processor, self._opening.settings.workers
        try:
            whole = await asyncio.to_thread(Whole, processor, owner, self._opening.ranks, workers, self._share)
            whole.wrap(self._processed)  # the processor keeps it
        except ConfigError as error:
            log.info("coatcheck carries what SGLang's processor makes (mode carry): %s", error)
        except Exception:  # ours, whatever it is
            log.exception("coatcheck carries what SGLang's processor makes (mode carry)")

    def _processed(self, how: Taken) -> None:
        self.processed[how] += 1
        self._write(self._metrics.taken, how)

    async def check_in(self, request: Any) -> tuple[Any, Ticket | None]:
        """The request as it is to be sent, and its ticket; the request itself and None if it goes SGLang's own way.

        None, too, if SGLang could not take its inputs on some rank: then every rank is told so in the broadcast.
        """
        inputs, owner = request.mm_inputs, self.owner
        if not isinstance(inputs, MultimodalProcessorOutput) or not inputs.mm_items:
            return request, None
        images = stored(inputs)
        if not images and not in_share(request.rid, self._share):  # else that was decided before
            return self._aside(request, "not in the share")
        if owner is None:
            return self._aside(request, "not attached")
        if not owner.carries:
            return self._aside(request, "breaker open")
        if getattr(request, "session_params", None) is not None:  # its features outlive it, and would be copied
            return self._aside(request, "session")
        try:
            if images:
                ticket = await owner.check_in_stored(images, partial(pack, inputs, images))
            else:
                ticket = await owner.check_in(Parcel(inputs, self._hashes))
        except ArenaError:
            self._say_no_room(owner)
            return self._aside(request, "no room")
        except Unpackable as error:
            text = "coatcheck leaves requests to SGLang's own way that hold what it cannot carry: %s"
            self._say("not packable", logging.WARNING, text, error)
            return self._aside(request, "not packable")
        except Refused as refusal:
            log.warning("request %s: %s", request.rid, refusal)
            return self._carried(request, Claim("", str(refusal))), None
        except Trouble as trouble:
            log.debug("request %s takes SGLang's own way: %s", request.rid, trouble)
            return self._aside(request, "trouble")
        return self._carried(request, Claim(ticket.request)), ticket

    def _carried(self, request: Any, claim: Claim) -> Any:
        self._went("carried")
        request = copy.copy(request)
        request.mm_inputs = claim
        return request

    def _aside(self, request: Any, why: Way) -> tuple[Any, None]:
        self._went(why)
        return request, None

    def _went(self, way: Way) -> None:
        self.counts[way] += 1
        self._write(self._metrics.went, way)

    def _write(self, metric: Callable[[Any], None], value: Any) -> None:
        """What is counted is on its way: who fails here loses its ticket, or its images."""
        try:
            metric(value)
        except Exception:
            self._say("metrics", logging.ERROR, "coatcheck's metrics could not be written", exc_info=True)

    async def send(self, requests: Sequence[Any], send: Callable[[list[Any]], Awaitable[None]]) -> None:
        """Checks in what can be, all at once, and sends all."""
        waiting = {request.rid: False for request in requests}
        self._waiting.append(waiting)
        try:
            try:
                made, tickets = await self._check_all_in(requests)
            except Exception:  # ours, whatever it is: the requests are as they came
                self._say("exception", logging.ERROR, "coatcheck failed, and SGLang goes its own way", exc_info=True)
                made, tickets = [*requests], [None] * len(requests)
                for _ in filter(None, (request.mm_inputs for request in requests)):
                    self._went("trouble")
            states = [self._manager.rid_to_state.get(request.rid) for request in requests]
            own = _feature_bytes(requests) if made[0] is requests[0] and len(made) == 1 else 0
            start = time.monotonic()
            try:
                made = [await _sendable(one) for one in made]
                await send(made)
            except BaseException:
                # Without a state nobody knows whether it went out: then the ranks must keep what it may claim.
                self._withdraw(
                    ticket
                    for ticket, state in zip(tickets, states, strict=True)
                    if state is not None and not state.dispatched
                )
                raise
            if own and self.owner is not None:
                self.owner.pace.own(own, time.monotonic() - start)
        finally:
            self._waiting = [one for one in self._waiting if one is not waiting]
        for given, sent in zip(requests, made, strict=True):
            if sent is not given:  # who sent it keeps it until it is answered: without the pixels
                given.mm_inputs = None
        for rid, aborted in waiting.items():
            if aborted:
                self._manager._dispatch_to_scheduler(AbortReq(rid=rid))

    async def _check_all_in(self, requests: Sequence[Any]) -> tuple[list[Any], list[Ticket | None]]:
        """See ``check_in``. If one fails or is cancelled, so are all."""
        tickets: list[Ticket | None] = [None] * len(requests)

        async def one(index: int) -> Any:
            made, tickets[index] = await self.check_in(requests[index])
            return made

        checking = [asyncio.ensure_future(one(index)) for index in range(len(requests))]
        try:
            return list(await asyncio.gather(*checking)), tickets
        except BaseException:
            for task in checking:
                task.cancel()
            try:
                await asyncio.wait(checking)
            finally:
                self._withdraw(tickets)
            raise

    def _withdraw(self, tickets: Iterable[Ticket | None]) -> None:
        for ticket in tickets:
            if ticket is not None and self.owner is not None:
                self.owner.withdraw(ticket)

    def aborted(self, rid: str, everything: bool) -> None:
        """Requests that wait here are aborted, as soon as they have been sent."""
        for waiting in self._waiting:
            for one in waiting:
                waiting[one] |= everything or one == rid

    # ------------------------------------------------------------------ what is told of it

    def _say(self, about: str, level: int, text: str, *details: object, exc_info: bool = False) -> None:
        """At most once in ``SAY_S``."""
        now = time.monotonic()
        if now - self._said.get(about, float("-inf")) >= SAY_S:
            self._said[about] = now
            log.log(level, text, *details, exc_info=exc_info)

    def _say_no_room(self, owner: ArenaOwner) -> None:
        text = "coatcheck's arena of %d MiB is full: %d requests took SGLang's own way so far, %d were carried"
        counts = self.counts["no room"] + 1, self.counts["carried"]
        self._say("no room", logging.WARNING, text, owner.capacity >> 20, *counts)

    async def _show(self) -> None:
        while True:
            owner = self.owner
            if owner is not None:
                self._metrics.arena(owner.statistics(), owner.waiting, owner.standing_aside)
                while owner.waits:
                    self._metrics.waited(owner.waits.popleft())
            await asyncio.sleep(WRITE_S)

    async def _lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_S
            await asyncio.sleep(LAG_S)
            self._metrics.lag(max(0.0, loop.time() - due))


async def _logged(task: Coroutine[Any, Any, None]) -> None:
    """What it measures is not worth more than a line if it fails."""
    try:
        await task
    except Exception:
        log.exception("some of coatcheck's metrics stand still from now on")


async def _sendable(request: Any) -> Any:
    """The request as SGLang sends it: of images that only we have, the features that its processor would have made.

    Raises Trouble if the arena is closed, which it is when the server ends.
    """
    inputs = request.mm_inputs
    if not isinstance(inputs, MultimodalProcessorOutput) or not stored(inputs):
        return request
    request = copy.copy(request)
    request.mm_inputs = await asyncio.to_thread(_widened, inputs)
    return request


def _widened(inputs: Any) -> Any:
    inputs = copy.copy(inputs)
    inputs.mm_items = [copy.copy(item) for item in inputs.mm_items]
    for item in inputs.mm_items:
        if isinstance(item.feature, Stored):
            item.feature = item.feature.wide()
    return inputs


def _feature_bytes(requests: Sequence[Any]) -> int:
    return sum(
        tensor.nbytes for request in requests for item in request.mm_inputs.mm_items for tensor in leaves(item.feature)
    )


_openings: dict[str, Opening] = {}  # by what tells a server of this process from another


def open_arena(settings: Settings, ranks: Sequence[Facts]) -> None:
    """A server of this process has started. On a thread."""
    for gone in [server for server, one in _openings.items() if one.done.is_set() and one.ready is None]:
        del _openings[gone]
    _openings[next(rank.server for rank in ranks if rank.server)] = Opening(settings, ranks)


def opening(manager: Any) -> Opening | None:
    """The manager's server's; None: it has none of ours."""
    return _openings.get(manager.send_to_scheduler.getsockopt(zmq.LAST_ENDPOINT).decode())


def side(manager: Any) -> TokenizerSide | None:
    """The manager's, made when it is first asked for, on its event loop. None: it has no server of ours."""
    if not hasattr(manager, _ATTRIBUTE):
        made = None
        try:
            server = opening(manager)
            if server is None:
                return None
            made = TokenizerSide(manager, server)
        except Exception:  # ours, whatever it is
            log.exception("coatcheck stands aside, and SGLang works as without it")
        setattr(manager, _ATTRIBUTE, made)
    found: TokenizerSide | None = getattr(manager, _ATTRIBUTE)
    return found


async def send_one(original: Callable[..., Awaitable[None]], manager: Any, tokenized_obj: Any) -> None:
    """Around ``TokenizerManager._send_one_request``."""
    if isinstance(tokenized_obj.mm_inputs, MultimodalProcessorOutput):
        found = side(manager)
        if found is not None:
            return await found.send([tokenized_obj], lambda requests: original(manager, requests[0]))
    return await original(manager, tokenized_obj)


async def send_batch(original: Callable[..., Awaitable[None]], manager: Any, tokenized_objs: list[Any]) -> None:
    """Around ``TokenizerManager._send_batch_request``."""
    if any(isinstance(one.mm_inputs, MultimodalProcessorOutput) for one in tokenized_objs):
        found = side(manager)
        if found is not None:
            return await found.send(tokenized_objs, lambda requests: original(manager, requests))
    return await original(manager, tokenized_objs)


async def tokenize_one(original: Callable[..., Awaitable[Any]], manager: Any, obj: Any) -> Any:
    """Around ``TokenizerManager._tokenize_one_request``, where a manager is met first."""
    try:
        found = side(manager)
        if found is not None:
            found.begin_whole()
    except Exception:  # ours, whatever it is
        log.exception("coatcheck could not begin to process images; SGLang does")
    return await original(manager, obj)


def abort_request(original: Callable[..., None], manager: Any, rid: str = "", abort_all: bool = False) -> None:
    """Around ``TokenizerManager.abort_request``."""
    original(manager, rid, abort_all)
    found = getattr(manager, _ATTRIBUTE, None)
    if found is not None:
        found.aborted(rid, abort_all)


HOOKS: dict[str, Callable[..., Any]] = {
    f"{_MANAGER}._tokenize_one_request": tokenize_one,
    f"{_MANAGER}._send_one_request": send_one,
    f"{_MANAGER}._send_batch_request": send_batch,
    f"{_MANAGER}.abort_request": abort_request,
}
