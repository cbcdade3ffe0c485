"""Which strategy a request gets, and where its payloads go by that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter

from coatcheck.arena.handle import PixelForm
from coatcheck.engine.records import AutoRule, RanksReady
from coatcheck.engine.strategies.table import AUTO, FALLBACK, NAMES, NEED_ARENA, canonical, carrier_named, is_compact
from coatcheck.errors import BadRequest, UnknownStrategy
from coatcheck.intake.placement import Policy

log = logging.getLogger("coatcheck.frontend")

HEADER = "X-Coatcheck-Strategy"  # of a request: the strategy it asks for; of an answer: the one that was used


class StrategyChoice:
    """Decides once for each request, so that a switch changes new requests only.

    ``default`` is what a request gets that asks for nothing. A strategy that is unavailable on the ranks falls back.
    """

    def __init__(
        self, default: str, takes_header: bool, ranks: Callable[[], RanksReady | None], fallbacks: Counter
    ) -> None:
        """``ranks``: what they said of themselves. Raises UnknownStrategy if there is no strategy ``default``."""
        self.default = canonical(default)
        self._takes_header = takes_header
        self._ranks = ranks
        self._fallbacks = fallbacks

    def for_request(self, wanted: str | None) -> str:
        """The strategy of a new request, once the ranks are ready. ``wanted``: what its header says, if it has one.

        Raises BadRequest if there is no such strategy, or if this server takes no such header.
        """
        if wanted is not None and not self._takes_header:
            message = f"This server does not take the header {HEADER}; the option --strategy-header makes it do so"
            raise BadRequest(message, param=HEADER, code="strategy_header_disabled")
        name = self.default if wanted is None else _known(wanted, HEADER)
        if name in self._unavailable():
            self._fallbacks.labels(name).inc()
            return FALLBACK
        return name

    def switch(self, wanted: str) -> None:
        """Makes it the default. Raises BadRequest, changing nothing: 400 if it is unknown, 409 if unavailable."""
        name = _known(wanted, "strategy")
        if reason := self._unavailable().get(name):
            message = f"strategy: {name} is unavailable: {reason}"
            raise BadRequest(message, param="strategy", code="strategy_unavailable")
        if name != self.default:
            log.warning("the default strategy is %s from now on, was %s", name, self.default)
            self.default = name

    def state(self) -> dict[str, Any]:
        """What /admin/strategy answers."""
        unavailable = self._unavailable()
        available = [name for name in NAMES if name not in unavailable]
        return {"strategy": self.default, "available": available, "unavailable": unavailable}

    def _unavailable(self) -> dict[str, str]:
        ranks = self._ranks()
        return dict(ranks.unavailable) if ranks is not None else {}


def payload_policy(strategy: str, request: str, rule: AutoRule | None, form: PixelForm) -> Policy:
    """Where the payloads of a request with that strategy go, if there is an arena, and how they are made.

    ``rule``: what the ranks said of ``auto``; None before they have. ``form``: of what goes by handle.
    """
    made: PixelForm = form if is_compact(strategy) else "float32"
    if strategy == AUTO and rule is not None:
        if rule.inside_bytes is None:  # no handle may come to the ranks
            return Policy(made)
        return Policy(made, request, rule.inside_bytes, oversize_beside=True)
    return Policy(made, request if carrier_named(strategy) in NEED_ARENA else "")


def _known(wanted: str, field: str) -> str:
    try:
        return canonical(wanted[:100], field)
    except UnknownStrategy as error:
        raise BadRequest(str(error), param=field, code="unknown_strategy") from error
