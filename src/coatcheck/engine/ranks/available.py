"""Which strategies can run: those that every rank could construct. Settled once, at start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from coatcheck.engine.ranks.group import collective
from coatcheck.engine.strategies.base import Strategy
from coatcheck.engine.strategies.table import (
    AUTO,
    FALLBACK,
    NEED_ARENA,
    STRATEGIES,
    canonical,
    carrier_named,
    strategy_named,
)
from coatcheck.errors import CoatcheckError, MaterializeError, UnknownStrategy


@dataclass(frozen=True)
class Available:
    """What this rank obeys with; the names are the same on every rank."""

    strategies: Mapping[str, Strategy]
    unavailable: Mapping[str, str]  # name: reason, with the ranks

    def named(self, name: str) -> Strategy:
        """The strategy of that name or alias. Raises UnknownStrategy, or MaterializeError if it is unavailable."""
        found = canonical(name)
        if found in self.unavailable:
            raise MaterializeError(f"strategy {found} is unavailable: {self.unavailable[found]}")
        if found == AUTO:
            raise UnknownStrategy(f"{AUTO} stands in a plan, where only what it chose may stand")
        return self.strategies[found]

    @property
    def handles(self) -> bool:
        """True if payloads may come by handle on every rank."""
        return not any(carrier_named(name) in NEED_ARENA for name in self.unavailable)


def agree(ranks: int, group: dist.ProcessGroup, no_arena: str) -> Available:
    """Constructs every strategy here, and hears what failed on the other ranks. A collective.

    ``no_arena``: why this rank has no arena, so that carriers that need one cannot start; empty if it has.

    Raises CoatcheckError on every rank if the fallback cannot start on one: the group cannot serve.
    """
    made: dict[str, Strategy] = {}
    failed: dict[str, str] = {}
    for name in STRATEGIES:
        if no_arena and carrier_named(name) in NEED_ARENA:
            failed[name] = no_arena
            continue
        try:
            made[name] = strategy_named(name)  # imported now, not by the first request
        except Exception as error:  # whatever a carrier needs and lacks here
            failed[name] = f"{type(error).__name__}: {error}"
    everywhere: list[dict[str, str]] = [{}] * ranks
    with collective():
        dist.all_gather_object(everywhere, failed, group=group)
    unavailable = {name: why for name in STRATEGIES if (why := reason(name, everywhere))}
    if FALLBACK in unavailable:
        raise CoatcheckError(f"{FALLBACK} cannot start, so the group cannot serve: {unavailable[FALLBACK]}")
    return Available({name: made[name] for name in STRATEGIES if name not in unavailable}, unavailable)


def reason(name: str, everywhere: Sequence[Mapping[str, str]]) -> str:
    """Why the strategy is unavailable, and on which ranks; "" if it is available."""
    ranks: dict[str, list[str]] = {}
    for rank, failed in enumerate(everywhere):
        if name in failed:
            ranks.setdefault(failed[name], []).append(str(rank))
    return "; ".join(f"rank {', '.join(where)}: {why}" for why, where in ranks.items())
