"""A follower: receives plans, executes them, reports."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from coatcheck.engine.model.runner import Outcome
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.records import Plan, Report
from coatcheck.wire import Buffer, send


class FollowerRole:
    """A :class:`coatcheck.engine.ranks.loop.Role`. ``reports``: PUSH socket, connected to the entry rank."""

    def __init__(self, channel: PlanChannel, reports: zmq.Socket[bytes]) -> None:
        self._channel = channel
        self._reports = reports

    def next_plan(self) -> tuple[Plan, Sequence[Buffer]]:
        """Sleeps in the broadcast."""
        return self._channel.receive()

    def report(self, report: Report) -> None:
        """Over the side channel, so that no collective waits for it."""
        send(self._reports, report)

    def executed(self, outcome: Outcome) -> None:
        """A follower draws no tokens: the next plan brings them."""
