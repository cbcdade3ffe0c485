"""The entry rank: takes requests from the front end, decides, and puts every decision into a plan."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import zmq

from coatcheck.arena.handle import nbytes
from coatcheck.delivery.readiness import Rejection
from coatcheck.delivery.records import Ready, Returned
from coatcheck.engine.model.kv_regions import Regions
from coatcheck.engine.model.runner import Outcome
from coatcheck.engine.model.schedule import Schedule
from coatcheck.engine.ranks.admission import Admission
from coatcheck.engine.ranks.auto import Auto, Load
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.ranks.verify import Digests
from coatcheck.engine.records import Abort, Admit, Arrived, FromEntry, Plan, Rejected, Report, Stop, ToEntry, Tokens
from coatcheck.engine.strategies.table import AUTO, is_background
from coatcheck.errors import WireError
from coatcheck.intake.records import check_frames, prompt_tokens, tensors
from coatcheck.stopwatch import Stopwatch
from coatcheck.wire import Buffer, Decoder, received, send

log = logging.getLogger(__name__)

PLAN_BYTES = (
    128 << 20
)  # payload bytes that one plan carries at most (one request at least): bounds the buffer on every rank

_decode_arrival = Decoder[ToEntry](ToEntry)
_decode_report = Decoder[Report](Report)


@dataclass(frozen=True)
class EntrySockets:
    """``requests``: PULL, from the front end. ``events``: PUSH, to it. ``reports``: PULL, from the followers.

    ``gone``: monitor of ``requests``; speaks when the front end's connection has ended.
    """

    requests: zmq.Socket[bytes]
    events: zmq.Socket[bytes]
    reports: zmq.Socket[bytes]
    gone: zmq.Socket[bytes]


def _payload(arrived: Arrived) -> int:
    """Bytes of the request's payloads that each rank holds for itself; what is in the arena costs it nothing."""
    return sum(map(nbytes, tensors(arrived.items)))


class EntryRole:
    """A :class:`coatcheck.engine.ranks.loop.Role`. Sleeps in a poll of its sockets while nothing can be done."""

    def __init__(
        self,
        channel: PlanChannel,
        sockets: EntrySockets,
        admission: Admission,
        schedule: Schedule,
        regions: Regions,
        max_running: int,
        heartbeat_s: float,
        waiting_payload_bytes: int,
        auto: Auto,
        recorder: Recorder,
    ) -> None:
        self._channel = channel
        self._sockets = sockets
        self._admission = admission
        self._schedule = schedule
        self._regions = regions
        self._max_running = max_running
        self._heartbeat_s = heartbeat_s
        self._waiting_payload_bytes = waiting_payload_bytes
        self._auto = auto
        self._digests = Digests(admission.ranks)
        self._recorder = recorder
        self._poller = zmq.Poller()
        self._poller.register(sockets.requests, zmq.POLLIN)
        self._poller.register(sockets.reports, zmq.POLLIN)
        self._poller.register(sockets.gone, zmq.POLLIN)
        self._incoming: dict[str, tuple[Arrived, Sequence[Buffer]]] = {}  # not in any plan yet, in order
        self._arrived: dict[str, Arrived] = {}  # in a plan, not admitted yet
        self._admits: list[Admit] = []  # reserved for the plan under way
        self._ended: list[str] = []  # for the next plan
        self._stop = False
        self._step = 0
        self._last_plan = time.monotonic()

    # ------------------------------------------------------------------ Role

    def next_plan(self) -> tuple[Plan, Sequence[Buffer]]:
        """Waits until there is something to say (or a heartbeat is due), says it to all ranks, and returns it."""
        while True:
            self._poll()
            plan, frames = self._compose()
            overdue = time.monotonic() - self._last_plan >= self._heartbeat_s
            said = plan.arrivals or plan.ended or plan.evicted or plan.admits or plan.work or plan.stop
            if said or overdue:
                break
        self._channel.send(plan, frames)
        self._step += 1
        self._last_plan = time.monotonic()
        return plan, frames

    def report(self, report: Report) -> None:
        """The entry rank's own reports need no socket."""
        if isinstance(report, Ready):
            self._admission.report(report.request, report.rank, report.error)
        else:
            verdict = self._digests.consumed(report)
            if isinstance(verdict, Rejection):
                log.error("entry rank: request %s: %s", verdict.request, verdict.reason)
                self._admission.fail(verdict.request, verdict.reason)
                self._schedule.embeddings.distrust(verdict.request)  # it may have drawn tokens, or have ended
            elif verdict is not None:
                self._recorder.verified(verdict.request, verdict.digest)
                self._tell(verdict)

    def executed(self, outcome: Outcome) -> None:
        """Tells the front end the tokens drawn; finished requests end with the next plan."""
        for request in outcome.broken:
            self._admission.fail(request, "the model's output is not a finite number")
        for tokens in self._schedule.absorb(outcome.drawn):
            self._tell(tokens)
            if tokens.finish is not None:
                self._admission.finish(tokens.request)
                self._end(tokens.request)

    # ------------------------------------------------------------------ reading

    def _poll(self) -> None:
        """Sleeps until a message comes, a deadline passes, or not at all if there is work; then reads all there is."""
        now = time.monotonic()
        wait = self._last_plan + self._heartbeat_s - now
        deadline = self._admission.next_deadline()
        if deadline is not None:
            wait = min(wait, deadline - now)
        if self._schedule or self._takes_next() or self._ended or self._stop or self._admission.undecided():
            wait = 0
        ready = dict(self._poller.poll(math.ceil(max(0.0, wait) * 1000)))
        if self._sockets.reports in ready:
            for report, _ in received(self._sockets.reports, _decode_report):
                self.report(report)
        if self._sockets.requests in ready:
            self._read_requests()
        if self._sockets.gone in ready and not self._stop:
            log.error("entry rank: the front end is gone; the ranks end")
            self._stop = True

    def _read_requests(self) -> None:
        watch = Stopwatch()
        for message, frames in received(self._sockets.requests, _decode_arrival):
            if isinstance(message, Arrived):
                if self._accept(message, frames):
                    self._recorder.received(message, watch.stop())
            elif isinstance(message, Abort):
                self._abort(message.request)
            elif isinstance(message, Stop):
                self._stop = True
            watch = Stopwatch()

    def _accept(self, arrived: Arrived, frames: Sequence[Buffer]) -> bool:
        need = prompt_tokens(arrived.ids, arrived.items) + arrived.sampling.max_tokens
        if arrived.request in self._incoming or arrived.request in self._admission:
            log.error("entry rank: request %s came twice; the second was dropped", arrived.request)
            return False
        try:
            check_frames(arrived.items, frames)
        except WireError as error:
            self._tell(Rejected(arrived.request, str(error), None))
            self._never_went_out(arrived)
            return False
        if need > self._regions.size:
            reason = f"the request needs {need} KV tokens (prompt and max_tokens), there are {self._regions.size}"
            self._tell(Rejected(arrived.request, reason, None))
            self._never_went_out(arrived)
            return False
        self._incoming[arrived.request] = arrived, frames
        return True

    def _abort(self, request: str) -> None:
        incoming = self._incoming.pop(request, None)
        if incoming is not None:
            self._never_went_out(incoming[0])
        elif not self._admission.abort(request):
            return
        self._tell(Tokens(request, (), "abort"))
        self._end(request)

    def _never_went_out(self, arrived: Arrived) -> None:
        """No plan carried the request, so no rank has read or will read its blocks."""
        if len(tensors(arrived.items)) < len(arrived.items):
            self._tell(Returned(arrived.request, None))

    # ------------------------------------------------------------------ deciding

    def _compose(self) -> tuple[Plan, list[Buffer]]:
        if self._stop:
            for request in [*self._incoming, *self._admission.open()]:
                self._abort(request)
        now = time.monotonic()
        decision = self._admission.decide(now, self._reserve)
        for rejection in decision.rejected:
            log.warning("entry rank, step %d: request %s rejected: %s", self._step, rejection.request, rejection.reason)
            self._tell(Rejected(rejection.request, rejection.reason, rejection.rank))
            self._end(rejection.request)
        for request in decision.admitted:
            self._schedule.admit(self._arrived.pop(request))
        arrivals, frames = self._take_incoming(now)
        ended, self._ended = tuple(self._ended), []
        admits, self._admits = tuple(self._admits), []
        work = self._schedule.compose()
        evicted = self._schedule.embeddings.close_plan()
        return Plan(self._step, arrivals, ended, admits, work, self._stop, evicted), frames

    def _takes_next(self) -> bool:
        """Is there a next request, and may the ranks hold it already?

        They hold what has arrived until it is admitted. Without a bound a burst of large requests would fill the
        memory of all ranks at once; what is not taken yet is held here alone, and can be aborted.
        """
        if not self._incoming:
            return False
        held = sum(map(_payload, self._arrived.values()))
        first, _ = next(iter(self._incoming.values()))
        return not held or held + _payload(first) <= self._waiting_payload_bytes

    def _take_incoming(self, now: float) -> tuple[tuple[Arrived, ...], list[Buffer]]:
        if not self._incoming:
            return (), []
        arrivals: list[Arrived] = []
        frames: list[Buffer] = []
        size = 0
        load = self._load()
        for request, (arrived, own) in list(self._incoming.items()):
            size += _payload(arrived)
            if not self._takes_next() or (arrivals and size > PLAN_BYTES):
                break
            del self._incoming[request]
            arrived = self._decided(arrived, load)
            self._admission.arrive(request, now)
            self._arrived[request] = arrived
            arrivals.append(arrived)
            frames.extend(own)
        return tuple(arrivals), frames

    def _load(self) -> Load:
        """What the first of the incoming meets if it is taken in now."""
        laned = [a for r, a in self._arrived.items() if is_background(a.strategy) and self._admission.waits(r)]
        open_ = len(self._admission.open()) + len(self._incoming)
        return Load(open_ - len(laned) - 1, sum(map(self._auto.cost, laned)))

    def _decided(self, arrived: Arrived, load: Load) -> Arrived:
        """The request with a strategy that ranks can obey; ``load`` is then that of the one behind it."""
        if arrived.strategy == AUTO:
            arrived = msgspec.structs.replace(arrived, strategy=self._auto.strategy(arrived, load))
            self._recorder.chose(arrived.strategy)
        if is_background(arrived.strategy):
            load.delayed -= 1
            load.backlog_s += self._auto.cost(arrived)
        return arrived

    def _reserve(self, request: str) -> bool:
        if len(self._schedule) + len(self._admits) >= self._max_running:
            return False
        arrived = self._arrived[request]
        count = prompt_tokens(arrived.ids, arrived.items) + arrived.sampling.max_tokens
        start = self._regions.reserve(request, count)
        if start is None:
            return False
        self._admits.append(Admit(request, start, count, arrived.verify))
        return True

    def _end(self, request: str) -> None:
        """Frees what the entry rank holds; the ranks hear of it in the next plan."""
        self._schedule.end(request)
        self._regions.release(request)
        self._arrived.pop(request, None)
        self._ended.append(request)

    def _tell(self, event: FromEntry | Returned) -> None:
        try:
            send(self._sockets.events, event)
        except zmq.Again:
            log.error("entry rank: the front end does not read; dropped %s", type(event).__name__)
