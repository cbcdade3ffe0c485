"""SGLang 0.5.23 with our plugin, and the limit: a text of as many tokens. Runs in the same process as ``sglang``.

So the plugin's hooks are called by name here, and are not applied to SGLang's classes. A rank turns to its receiver as
an idle scheduler does that sleeps until there is something to do (--sleep-on-idle); of a scheduler's other turns, which
find nothing, SGLang itself pays the same. An image with a ticket takes two turns: one that parks it, one that admits
it. In a burst that is also the one that parks the next.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import zmq
from sglang.srt.managers.io_struct import sock_send
from sglang.srt.managers.mm_utils import wrap_shm_features
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

from coatcheck.bench.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from coatcheck.bench.handoff.peers import sglang
from coatcheck.bench.handoff.peers.gloo import join as join
from coatcheck.bench.handoff.peers.pipe import Outbox, Watch
from coatcheck.integrations.sglang import ranks, tokenizer
from coatcheck.integrations.sglang.settings import Settings

ARENA_BYTES = 1 << 30
POLL_S = 0.002  # between looks at what nobody measures


class Front:
    """The tokenizer's process, as far as it sends."""

    def __init__(self, place: Place) -> None:
        sglang.configure(place)
        tokenizer.configure(Settings(enabled=True, arena_bytes=ARENA_BYTES, share=1.0))
        self._out = Outbox(place.path("requests"))
        self._manager: Any = SimpleNamespace(
            mm_processor=True,
            server_args=SimpleNamespace(tp_size=place.ranks),
            rid_to_state={},
            _dispatch_to_scheduler=self._dispatch,
        )
        self._carried = 0

    def _dispatch(self, one: Any) -> None:
        sock_send(self._out.socket, one)

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`coatcheck.bench.handoff.meter.Front`. The first goes SGLang's own way, and opens ours."""
        request = sglang.image_request(payload)
        desk = tokenizer.desk(self._manager)
        first = desk.front is None
        await desk.opening
        watch = Watch()
        await tokenizer.send_one(_send, self._manager, request)
        written = Written(watch.start, watch.seconds(), None, payload.wide)
        self._carried += not first
        if desk.counts["carried"] != self._carried:
            raise RuntimeError(f"the plugin did not carry it: {dict(desk.counts)}")
        return written

    def settle(self) -> None:
        """Every rank gives the block back. Raises TimeoutError."""
        front = tokenizer.desk(self._manager).front
        assert front is not None
        deadline = time.monotonic() + WAIT_S
        while not front.attached or front.statistics().in_use or front.statistics().quarantined:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all was given back: {front.statistics()}")
            time.sleep(POLL_S)

    def close(self) -> None:
        """See :class:`coatcheck.bench.handoff.meter.Front`."""
        front = tokenizer.desk(self._manager).front
        if front is not None:
            front.close()
        self._out.close()


async def _send(manager: Any, request: Any) -> None:
    """What ``_send_one_request`` does for a request without pixels on a GPU."""
    request = wrap_shm_features(request)
    request.wrap_pickle_fields()
    manager._dispatch_to_scheduler(request)


class Rank(sglang.Rank):
    """A scheduler's process."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._poller = zmq.Poller()

    def prepare(self) -> None:
        """See :class:`coatcheck.bench.handoff.meter.RankSide`."""
        super().prepare()
        self._side = ranks.side(self.receiver)  # which looks at the settings, when it is made

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`coatcheck.bench.handoff.meter.RankSide`."""
        found: list[Any] = []
        turn = 0
        while not found:
            turn += 1
            self._rest(meter, turn)
            with meter.step(f"receive {turn}"):
                found = ranks.recv_requests(SchedulerRequestReceiver.recv_requests, self.receiver)
                if found:
                    (request,) = found
                    inputs = Scheduler._get_multimodal_inputs(self.scheduler, request.mm_inputs)
                    self.held = [request, inputs]
        feature = inputs.mm_items[0].feature
        assert isinstance(feature, torch.Tensor)
        return feature

    def _rest(self, meter: Meter, turn: int) -> None:
        """The entry rank: until there is something to tell the others, or, while nothing is parked, a request."""
        looked = 0
        while self.requests is not None:
            looked += 1
            with meter.step(f"report {turn}.{looked}"):
                idle = self._side.may_sleep(self._poller)
            if not idle:
                return
            self.wait()
            if not self._side.parked:
                return

    def wait(self) -> None:
        """The entry rank: for a report, or, while nothing is parked, for a request. Raises TimeoutError."""
        if self.requests is not None:
            awaited = self._poller if self._side.parked else self.requests.socket
            if not awaited.poll(round(WAIT_S * 1e3)):
                raise TimeoutError(f"nothing came within {WAIT_S:g} s")


class TextFront:
    """Sends a text of as many tokens."""

    def __init__(self, place: Place) -> None:
        sglang.configure(place)
        self._out = Outbox(place.path("requests"))

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`coatcheck.bench.handoff.meter.Front`."""
        request = sglang.image_request(payload)
        request.mm_inputs = None
        watch = Watch()
        request.wrap_pickle_fields()
        sock_send(self._out.socket, request)
        return Written(watch.start, watch.seconds(), None, np.frombuffer(request.input_ids, np.uint8))

    def settle(self) -> None:
        """Nothing is lent."""

    def close(self) -> None:
        """See :class:`coatcheck.bench.handoff.meter.Front`."""
        self._out.close()


class TextRank(sglang.Rank):
    """A scheduler's process."""

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`coatcheck.bench.handoff.meter.RankSide`."""
        with meter.step("receive"):
            (request,) = self.receiver.recv_requests()
            self.held = [request]
        return torch.frombuffer(request.input_ids, dtype=torch.uint8)


SIDES = {"sglang-coatcheck": (Front, Rank), "sglang-text": (TextFront, TextRank)}
