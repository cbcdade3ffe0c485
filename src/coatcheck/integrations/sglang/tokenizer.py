"""The tokenizer's side: what SGLang sends to its schedulers holds a claim in place of a request's inputs.

Around ``TokenizerManager._send_one_request`` and ``_send_batch_request``. Whatever does not travel this way (no room,
no CPU tensors, a class that no pickle of ours may name, not every rank attached yet) takes SGLang's own way, as it
came: what these functions are given is not changed, because parallel sampling sends it n + 1 times.

Around ``abort_request``, too: schedulers do not know what waits here, so its abort is sent again behind it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from blake3 import blake3
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import MultimodalProcessorOutput

from coatcheck.errors import ArenaError, ConfigError
from coatcheck.integrations.sglang.codec import Packed, Packer, Unpackable
from coatcheck.integrations.sglang.front import Front, Refused
from coatcheck.integrations.sglang.metrics import WRITE_S, FrontMetrics, NoFrontMetrics, Way
from coatcheck.integrations.sglang.records import MARK, Claim, Ticket, write_note
from coatcheck.integrations.sglang.support import metrics_wanted

log = logging.getLogger(__name__)

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
_ATTRIBUTE = "_coatcheck"  # of a TokenizerManager


class Settings(Protocol):
    """Those of the plugin's that matter here."""

    @property
    def arena_bytes(self) -> int:
        """Of the arena."""
        ...

    @property
    def share(self) -> float:
        """Of the requests that may travel this way, 0 to 1."""
        ...


class Desk:
    """One TokenizerManager's. Used on its event loop."""

    def __init__(self, manager: Any, settings: Settings) -> None:
        self._manager, self._settings = manager, settings
        self.front: Front | None = None
        self.counts = Counter[Way]()  # requests with inputs, by how they went: carried, or why not
        self._metrics = FrontMetrics() if metrics_wanted() else NoFrontMetrics()
        self._waiting: list[dict[str, bool]] = []  # what is sent together: whether it has been aborted, by request id
        self.opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            ranks = self._manager.server_args.tp_size
            self.front = await asyncio.to_thread(Front, self._settings.arena_bytes, ranks)
        except ConfigError as error:
            log.warning("coatcheck stands aside, and SGLang works as without it: %s", error)
            return
        self._manager._dispatch_to_scheduler(AbortReq(rid=MARK, abort_message=write_note(self.front.hello)))
        if self._metrics.on:
            self._showing = asyncio.get_running_loop().create_task(self._show(self.front))

    async def _show(self, front: Front) -> None:
        while True:
            self._metrics.arena(front.statistics())
            await asyncio.sleep(WRITE_S)

    async def check_in(self, request: Any) -> tuple[Any, Ticket | None]:
        """The request as it is to be sent, and its ticket; the request itself and None if it goes SGLang's own way.

        None, too, if a rank could not prepare its inputs: then every rank is told so in the broadcast.
        """
        inputs = request.mm_inputs
        if not isinstance(inputs, MultimodalProcessorOutput) or not inputs.mm_items:
            return request, None
        if zlib.crc32(request.rid.encode()) >= self._settings.share * (1 << 32):
            return self._aside(request, "not in the share")
        if self.front is None or not self.front.attached:
            return self._aside(request, "not attached")
        session = getattr(request, "session_params", None)
        try:
            ticket = await self.front.check_in(lambda: _pack(inputs), session is not None)
        except ArenaError:
            return self._aside(request, "no room")
        except Unpackable as error:
            log.debug("request %s takes SGLang's own way: %s", request.rid, error)
            return self._aside(request, "not packable")
        except Refused as refusal:
            log.warning("request %s: %s", request.rid, refusal)
            return self._carried(request, Claim("", str(refusal))), None
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
        self._metrics.went(way)

    async def send(self, requests: Sequence[Any], send: Callable[[list[Any]], Awaitable[None]]) -> None:
        """Checks in what can be, all at once, and sends all."""
        if not any(isinstance(request.mm_inputs, MultimodalProcessorOutput) for request in requests):
            await send(list(requests))
            return
        waiting = {request.rid: False for request in requests}
        self._waiting.append(waiting)
        try:
            made, tickets = await self._check_all_in(requests)
            states = [self._manager.rid_to_state.get(request.rid) for request in requests]
            try:
                await send(made)
            except BaseException:
                # Without a state nobody knows whether it went out: then the ranks must keep what it may claim.
                self._withdraw(
                    ticket
                    for ticket, state in zip(tickets, states, strict=True)
                    if state is not None and not state.dispatched
                )
                raise
        finally:
            self._waiting = [one for one in self._waiting if one is not waiting]
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
            if ticket is not None:
                self.front.withdraw(ticket)  # type: ignore[union-attr]

    def aborted(self, rid: str, everything: bool) -> None:
        """Requests that wait here are aborted, as soon as they have been sent."""
        for waiting in self._waiting:
            for one in waiting:
                waiting[one] |= everything or one == rid


def _pack(inputs: Any) -> Packed:
    """On a thread. Raises Unpackable."""
    packer = Packer()
    inputs = copy.copy(inputs)
    inputs.mm_items = [_named(item, packer) for item in inputs.mm_items]
    return packer.pack(inputs, [tensor for item in inputs.mm_items for tensor in _tensors(item.feature)])


def _named(item: Any, packer: Packer) -> Any:
    """The item with our digest as its identity; as it is, if SGLang has named it, or shall by what is no tensor here.

    A name that SGLang gave, a client's among them, is its caches' business: blocks are shared by our digests alone.
    """
    content = [*_leaves(item.feature), *_leaves(item.precomputed_embeddings)]
    if item.hash is not None or item.pad_value is not None or not all(isinstance(c, torch.Tensor) for c in content):
        return item
    digest = blake3(item.modality.name.encode())
    for name, value in [("", content), *sorted(item.model_specific_data.items())]:
        for tensor in _tensors(value):
            digest.update(name.encode()).update(packer.digest(tensor))
    item = copy.copy(item)
    item.set_identity(digest.digest())
    return item


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    elif value is not None:
        yield value


def _tensors(value: object) -> Iterator[torch.Tensor]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor))


_chosen: list[Settings] = []


def configure(settings: Settings) -> None:
    """Before the first request."""
    _chosen[:] = [settings]


def desk(manager: Any) -> Desk:
    """The manager's, made when it is first asked for, on its event loop."""
    if not hasattr(manager, _ATTRIBUTE):
        setattr(manager, _ATTRIBUTE, Desk(manager, *_chosen))
    made: Desk = getattr(manager, _ATTRIBUTE)
    return made


async def send_one(original: Callable[..., Awaitable[None]], manager: Any, tokenized_obj: Any) -> None:
    """Around ``TokenizerManager._send_one_request``."""
    if manager.mm_processor is None:
        return await original(manager, tokenized_obj)
    return await desk(manager).send([tokenized_obj], lambda requests: original(manager, requests[0]))


async def send_batch(original: Callable[..., Awaitable[None]], manager: Any, tokenized_objs: list[Any]) -> None:
    """Around ``TokenizerManager._send_batch_request``."""
    if manager.mm_processor is None:
        return await original(manager, tokenized_objs)
    return await desk(manager).send(tokenized_objs, lambda requests: original(manager, requests))


def abort_request(original: Callable[..., None], manager: Any, rid: str = "", abort_all: bool = False) -> None:
    """Around ``TokenizerManager.abort_request``."""
    original(manager, rid, abort_all)
    if hasattr(manager, _ATTRIBUTE):
        desk(manager).aborted(rid, abort_all)


HOOKS: dict[str, Callable[..., Any]] = {
    f"{_MANAGER}._send_one_request": send_one,
    f"{_MANAGER}._send_batch_request": send_batch,
    f"{_MANAGER}.abort_request": abort_request,
}
