"""torch's own: the process group that several contenders use, and ``torch-object-list``."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist

from benchmarks.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from benchmarks.handoff.peers.pipe import Inbox, InboxRank, Outbox, Watch
from coatcheck.engine.strategies.materialize import tensor_over
from coatcheck.intake.records import Tensor


def join(place: Place) -> None:
    """Every rank of a team, once."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place.directory}/rendezvous",
        rank=place.rank,
        world_size=place.ranks,
        timeout=timedelta(seconds=WAIT_S),
    )


class ObjectListFront:
    """Sends the tensor's bytes to the entry rank; nothing is copied on the way into the socket."""

    def __init__(self, place: Place) -> None:
        self._out = Outbox(place.path("requests"))

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        watch = Watch()
        self._out.socket.send_multipart([msgspec.json.encode(payload.wide.shape), payload.wide.data], copy=False)
        return Written(watch.start, watch.seconds(), None, payload.wide)

    def settle(self) -> None:
        """Nothing is lent."""

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._out.close()


class ObjectListRank(InboxRank):
    """The entry rank broadcasts a list of the one tensor."""

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("broadcast"):
            objects = [None if self.requests is None else _received(self.requests)]
            dist.broadcast_object_list(objects, src=0)
            (tensor,) = objects
            assert tensor is not None
            self.held = [tensor]
        return tensor


def _received(inbox: Inbox) -> torch.Tensor:
    shape, values = inbox.receive()
    return tensor_over(values.buffer, Tensor(0, tuple(msgspec.json.decode(shape.bytes)), "float32"))


SIDES = {"torch-object-list": (ObjectListFront, ObjectListRank)}
