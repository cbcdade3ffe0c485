"""SGLang 0.5.23 with our plugin, and the limit: a text of as many tokens. Runs in the same process as ``sglang``.

So the plugin's hooks are called by name here, and are not applied to SGLang's classes. The plugin sends a request when
every rank has its inputs, so a rank's turn is the one that a text takes, too.
"""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.io_struct import sock_send
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

from coatcheck.bench.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from coatcheck.bench.handoff.peers import sglang
from coatcheck.bench.handoff.peers.gloo import join as join
from coatcheck.bench.handoff.peers.pipe import Watch
from coatcheck.integrations.sglang import ranks, tokenizer
from coatcheck.integrations.sglang.settings import Settings

ARENA_BYTES = 1 << 30
POLL_S = 0.002  # between looks at what nobody measures


class Front(sglang.Front):
    """The tokenizer's process, as far as it sends."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        tokenizer.configure(Settings(enabled=True, arena_bytes=ARENA_BYTES, share=1.0))
        self._manager: Any = SimpleNamespace(
            mm_processor=True,
            server_args=SimpleNamespace(tp_size=place.ranks),
            rid_to_state={},
            _dispatch_to_scheduler=partial(sock_send, self._out.socket),
        )
        self._carried = 0

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`coatcheck.bench.handoff.meter.Front`. The first goes SGLang's own way, and opens ours."""
        request = sglang.image_request(payload)
        desk = tokenizer.desk(self._manager)
        first = desk.front is None
        await desk.opening
        watch = Watch()
        await tokenizer.send_one(self._send, self._manager, request)
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
        super().close()

    async def _send(self, manager: Any, request: Any) -> None:
        self.send(request)


class Rank(sglang.Rank):
    """A scheduler's process."""

    def prepare(self) -> None:
        """See :class:`coatcheck.bench.handoff.meter.RankSide`."""
        super().prepare()
        ranks.side(self.receiver)  # which looks at the settings, when it is made

    def receive(self) -> list[Any]:
        """The note that opens the plugin's way comes alone, and is not the scheduler's business."""
        while not (found := ranks.recv_requests(SchedulerRequestReceiver.recv_requests, self.receiver)):
            self.wait()
        return found


class TextFront(sglang.Front):
    """Sends a text of as many tokens."""

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`coatcheck.bench.handoff.meter.Front`."""
        request = sglang.image_request(payload)
        request.mm_inputs = None
        watch = Watch()
        self.send(request)
        return Written(watch.start, watch.seconds(), None, np.frombuffer(request.input_ids, np.uint8))


class TextRank(sglang.Rank):
    """A scheduler's process."""

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`coatcheck.bench.handoff.meter.RankSide`."""
        with meter.step("receive"):
            (request,) = self.receive()
            self.held = [request]
        return torch.frombuffer(request.input_ids, dtype=torch.uint8)


SIDES = {"sglang-coatcheck": (Front, Rank), "sglang-text": (TextFront, TextRank)}
