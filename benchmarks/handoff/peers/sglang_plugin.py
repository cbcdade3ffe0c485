"""SGLang 0.5.23 with our plugin, and the limit: a text of as many tokens. Runs in the same process as ``sglang``.

So the plugin's hooks are called by name here, and are not applied to SGLang's classes; ranks tell the front end where
they take tickets by a file each, where SGLang has a pipe. The plugin sends a request when every rank has its inputs, so
a rank's turn is the one that a text takes, too.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import zmq
from sglang.srt.managers.io_struct import sock_send
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

from benchmarks.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from benchmarks.handoff.peers import sglang
from benchmarks.handoff.peers.gloo import join as join
from benchmarks.handoff.peers.pipe import Watch
from coatcheck.integrations.sglang import arena_owner, ranks, tokenizer
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.settings import Settings

ARENA_BYTES = 1 << 30
POLL_S = 0.002  # between looks at what nobody measures

_MODEL = type("Qwen2_5_VLForConditionalGeneration", (), {"__module__": "sglang.srt.models.qwen2_5_vl"})


def _facts(place: Place, rank: int) -> Path:
    return Path(place.path(f"facts-{rank}"))


class Front(sglang.Front):
    """The tokenizer's process, as far as it sends."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._place = place
        self._manager: Any = SimpleNamespace(
            send_to_scheduler=self._out.socket,
            rid_to_state={},
            _dispatch_to_scheduler=partial(sock_send, self._out.socket),
        )
        self._carried = 0
        self._opened: arena_owner.ArenaOwner | None = None

    def _open(self) -> arena_owner.ArenaOwner:
        """The roll call. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_S
        files = [_facts(self._place, rank) for rank in range(self._place.ranks)]
        _until(lambda: all(file.exists() for file in files), deadline, "not every rank has joined")
        server = str(self._out.socket.getsockopt_string(zmq.LAST_ENDPOINT))
        facts = [Facts(**{**json.loads(file.read_text()), "server": server}) for file in files]
        tokenizer.open_arena(
            Settings(enabled=True, arena_bytes=ARENA_BYTES, share=1.0, whole=False, workers=None), facts
        )
        opening = tokenizer.opening(self._manager)
        assert opening is not None
        _until(opening.done.is_set, deadline, "the arena is not open")
        assert opening.ready is not None
        return opening.ready

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._opened = self._opened or self._open()
        request = sglang.image_request(payload)
        watch = Watch()
        await tokenizer.send_one(self._send, self._manager, request)
        written = Written(watch.start, watch.seconds(), None, payload.wide)
        self._carried += 1
        side = tokenizer.side(self._manager)
        if side is None or side.counts["carried"] != self._carried:
            raise RuntimeError("the plugin did not carry it")
        return written

    def settle(self) -> None:
        """Every rank gives the block back. Raises TimeoutError."""
        opened = self._opened
        assert opened is not None

        def returned() -> bool:
            statistics = opened.statistics()
            return not (statistics.in_use or statistics.quarantined)

        _until(returned, time.monotonic() + WAIT_S, "not all was given back")

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        if self._opened is not None:
            self._opened.close()
        super().close()

    async def _send(self, manager: Any, request: Any) -> None:
        self.send(request)


def _until(done: Any, deadline: float, why: str) -> None:
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(why)
        time.sleep(POLL_S)


class Rank(sglang.Rank):
    """A scheduler's process."""

    def prepare(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`. The first time, the rank joins."""
        super().prepare()
        file = _facts(self._place, self._place.rank)
        if file.exists():
            return
        scheduler = SimpleNamespace(
            device="cpu",
            tp_worker=SimpleNamespace(model_runner=SimpleNamespace(model=_MODEL())),
            model_config=sglang.MODEL,
            request_receiver=self.receiver,
            max_total_num_tokens=1,
            max_running_requests=1,
            max_req_input_len=1,
        )
        made = file.with_suffix(".new")
        made.write_text(json.dumps(asdict(ranks.join(scheduler))))
        made.rename(file)

    def receive(self) -> list[Any]:
        """What has come, for one request."""
        return ranks.recv_requests(SchedulerRequestReceiver.recv_requests, self.receiver)


class TextFront(sglang.Front):
    """Sends a text of as many tokens."""

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        request = sglang.image_request(payload)
        request.mm_inputs = None
        watch = Watch()
        self.send(request)
        return Written(watch.start, watch.seconds(), None, np.frombuffer(request.input_ids, np.uint8))


class TextRank(sglang.Rank):
    """A scheduler's process."""

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("receive"):
            (request,) = self.receive()
            self.held = [request]
        return torch.frombuffer(request.input_ids, dtype=torch.uint8)


SIDES = {"sglang-coatcheck": (Front, Rank), "sglang-text": (TextFront, TextRank)}
