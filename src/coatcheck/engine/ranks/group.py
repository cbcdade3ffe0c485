"""The process groups of one tensor-parallel group, and how a rank joins them.

Two groups: *control* (gloo: plans, and what strategies exchange) and *model* (NCCL on GPUs, gloo on CPUs: the sums
inside the layers). A rank is started by our launcher or by torchrun; both say who it is by the same environment
variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # re-exported from C++

from coatcheck.engine.ranks.settings import STORE_FD
from coatcheck.errors import RankLost


@contextmanager
def collective() -> Iterator[None]:
    """A collective within fails only because a rank is gone or hangs: RankLost."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"the other ranks were lost in a collective: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Group:
    """One rank's membership. ``close`` when done."""

    rank: int
    size: int
    store: Store
    control: dist.ProcessGroup
    model: dist.ProcessGroup
    lane: dist.ProcessGroup

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sums ``tensor`` in place over the ranks (model group)."""
        with collective():
            dist.all_reduce(tensor, group=self.model)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """The entry rank's ``tensor`` (host memory) into everybody's (control group)."""
        with collective():
            dist.broadcast(tensor, src=0, group=self.control)

    def close(self) -> None:
        """Waits (bounded) until every rank has come here, then leaves the groups."""
        dist.barrier(group=self.control)
        dist.destroy_process_group()


def join(device: torch.device, timeout_s: float) -> Group:
    """Joins the groups that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    Every collective is bound by ``timeout_s``.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(seconds=timeout_s)
    if os.environ.get("TORCHELASTIC_RUN_ID") is None:
        fd = os.environ.get(STORE_FD)
        store: Store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=rank == 0,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=int(fd) if fd is not None else None,
        )
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        dist.init_process_group("gloo", timeout=timeout)
        store = dist.distributed_c10d._get_default_store()
    control = dist.group.WORLD
    assert control is not None
    model = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    lane = dist.new_group(backend="gloo", timeout=timeout)
    return Group(rank, size, PrefixStore("coatcheck", store), control, model, lane)
