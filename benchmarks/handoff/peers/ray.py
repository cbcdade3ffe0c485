"""Ray's object store: ``ray.put`` in the front end, ``ray.get`` on every rank, zero-copy and read-only.

The reference travels over our socket to the entry rank and a gloo broadcast, as a handle would.
"""

from __future__ import annotations

import os
import pickle
import secrets
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "token"  # a new cluster's default, but only of the driver that starts it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import torch
import torch.distributed as dist

from benchmarks.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from benchmarks.handoff.peers.gloo import join as join
from benchmarks.handoff.peers.pipe import InboxRank, Outbox, Watch
from coatcheck.engine.strategies.materialize import tensor_over
from coatcheck.intake.records import Tensor

STORE_BYTES = 2 << 30


def _start(place: Place, **options: Any) -> None:
    """``ray.init`` on loopback, with a token of this cluster's own in place of the one in the user's home."""
    os.environ["RAY_AUTH_TOKEN_PATH"] = place.path("token")
    ray.init(
        log_to_driver=False, logging_level="ERROR", include_dashboard=False, _node_ip_address="127.0.0.1", **options
    )


class Front:
    """A driver, and the head of a cluster of its own."""

    def __init__(self, place: Place) -> None:
        Path(place.path("token")).write_text(secrets.token_hex(32))
        _start(place, num_cpus=1, object_store_memory=STORE_BYTES, _temp_dir=place.path("ray"))
        Path(place.path("address")).write_text(ray.get_runtime_context().gcs_address)
        self._out = Outbox(place.path("requests"))
        self._kept: list[ray.ObjectRef] = []

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        watch = Watch()
        reference = ray.put(payload.wide)
        self._kept.append(reference)
        self._out.socket.send(ray.cloudpickle.dumps(reference))
        return Written(watch.start, watch.seconds(), None, payload.wide)

    def settle(self) -> None:
        """The last reference is the front end's."""
        del self._kept[0]

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._out.close()
        ray.shutdown()


class Rank(InboxRank):
    """A driver of the same cluster."""

    def __init__(self, place: Place) -> None:
        _start(place, address=Path(place.path("address")).read_text(), namespace=place.contender)
        super().__init__(place)

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("get"):
            found = [None if self.requests is None else self.requests.receive()[0].bytes]
            dist.broadcast_object_list(found, src=0)
            values = ray.get(pickle.loads(found[0] or b""), timeout=WAIT_S)
            tensor = tensor_over(values, Tensor(0, values.shape, "float32"))
            self.held = [values, tensor]
        return tensor

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        super().close()
        ray.shutdown()


SIDES = {"ray": (Front, Rank)}
