"""A rank's side: requests with tickets are parked until every rank has their inputs, then go to SGLang's scheduler.

Around ``SchedulerRequestReceiver.recv_requests``, which gives all ranks the same list, and, so that an entry rank that
sleeps is woken by reports, around ``IdleSleeper.maybe_sleep``. What may be decided where stands in
:mod:`coatcheck.integrations.sglang.gate`. No collective is added: decisions ride in SGLang's own broadcast, as notes.

Until a Hello has come, nothing happens here; it comes in that broadcast too, so it opens all ranks at one position.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import zmq
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedEmbeddingReqInput,
    BatchTokenizedGenerateReqInput,
    MMInputsProcessError,
    TokenizedEmbeddingReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import MultimodalInputs, MultimodalProcessorOutput
from sglang.srt.runtime_context import get_parallel

from coatcheck.arena import ArenaAddress, ArenaReader
from coatcheck.errors import CoatcheckError, MaterializeError, WireError
from coatcheck.integrations.sglang.codec import unpack
from coatcheck.integrations.sglang.gate import Abort, Book, Event, Gate, Park, Pass
from coatcheck.integrations.sglang.leases import Leases
from coatcheck.integrations.sglang.metrics import rank_metrics
from coatcheck.integrations.sglang.records import (
    KEY,
    MARK,
    Attached,
    Hello,
    Note,
    Opened,
    Ticket,
    read_note,
    report_of,
    ticket_of,
    write_note,
)
from coatcheck.integrations.sglang.support import metrics_wanted
from coatcheck.messages import Ready, Returned
from coatcheck.private_socket import PrivateEndpoint
from coatcheck.ranks.lane import Job, Lane
from coatcheck.wire import encode

log = logging.getLogger(__name__)

READY_TIMEOUT_S = (
    30.0  # a request that some rank has not reported by then is rejected; as coatcheck's own ranks have it
)

# Models that only read their features, so that these may stay in read-only memory: a write there would kill the rank.
# Read in SGLang 0.5.23's models: each concatenates its items' features into a new tensor before anything else. Other
# models get copies, made in the lane.
READERS = frozenset(
    {
        "Qwen2VLForConditionalGeneration",  # models/qwen2_vl.py: get_image_feature, get_video_feature
        "Qwen2_5_VLForConditionalGeneration",  # models/qwen2_5_vl.py: likewise
        "Qwen3VLForConditionalGeneration",  # models/qwen3_vl.py: _get_visual_feature
        "Qwen3VLMoeForConditionalGeneration",  # models/qwen3_vl_moe.py: inherits it
    }
)

_SINGLE = (TokenizedGenerateReqInput, TokenizedEmbeddingReqInput)
_BATCH = (BatchTokenizedGenerateReqInput, BatchTokenizedEmbeddingReqInput)
_RECEIVER = "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver"
_SLEEPER = "sglang.srt.managers.scheduler_components.idle_sleeper.IdleSleeper"


class _Prepared(NamedTuple):
    """What the lane has made of a ticket."""

    inputs: Any  # SGLang's
    at: float  # time.monotonic()


class RankSide:
    """One scheduler's, of one receiver. Its thread calls everything that has no underscore."""

    def __init__(self, receiver: Any) -> None:
        parallel = get_parallel()
        self._rank: int = parallel.tp_rank
        self._book = Book(parallel.tp_size, READY_TIMEOUT_S) if self._rank == 0 else None
        self._gate = Gate[Any, _Prepared](self._rank, self._begin, self._admit, self._reject, self._book)
        self._metrics = rank_metrics(metrics_wanted(), self._rank)
        self._model = receiver.model_config
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.linger = 0
        self._hello: Hello | None = None
        self._opened: Opened | None = None  # entry rank: until a list has carried it
        self._inbox: zmq.Socket[bytes] | None = None  # entry rank: reports
        self._watched = False  # by SGLang's sleeper
        self._lane: Lane | None = None
        self._leases: Leases  # the lane's, as is what follows
        self._reports: zmq.Socket[bytes]
        self._modalities: bool  # whether the scheduler wants the modality of every token
        self._reader: bool  # whether the model only reads its features

    def receive(self, original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None) -> list[Any]:
        """In place of the receiver's ``recv_requests``."""
        waiting = self._opened is not None or len(self._gate) > 0  # else there is nothing to tell, in any iteration
        notes = None
        if waiting:
            self._metrics.start()
            notes = [AbortReq(rid=MARK, abort_message=write_note(note)) for note in self._outgoing()]
            self._metrics.stop()
        arrived = original(receiver, [*(local_reqs or []), *notes] if notes else local_reqs)
        if not any(isinstance(one, (AbortReq, *_SINGLE, *_BATCH)) for one in arrived):
            return arrived
        self._metrics.start()
        through = self._gate.take(self._events(arrived), time.monotonic())
        self._metrics.stop()
        return through

    def may_sleep(self, poller: zmq.Poller) -> bool:
        """False if there is something to tell the ranks; else the poller wakes when there is."""
        if self._inbox is not None and not self._watched:
            poller.register(self._inbox, zmq.POLLIN)
            self._watched = True
        return not self._outgoing()

    @property
    def parked(self) -> int:
        """Requests that wait for all ranks."""
        return len(self._gate)

    def close(self, timeout_s: float) -> None:
        """Ends the threads and closes the sockets."""
        if self._lane is not None:
            self._lane.close(timeout_s)
            self._leases.close(timeout_s)
        self._context.destroy()

    # ------------------------------------------------------------------ the scheduler's thread

    def _outgoing(self) -> list[Note]:
        """What the next list must carry: the entry rank's."""
        if self._book is None or self._inbox is None:
            return []
        while int(self._inbox.get(zmq.EVENTS)) & zmq.POLLIN:  # a poll makes a poller, ten times as dear
            try:
                ready = report_of(self._inbox.recv(zmq.NOBLOCK))
                self._book.report(ready.request, ready.rank, ready.error)
            except WireError as error:
                log.error("a rank's report could not be read: %s", error)
        return [note for note in (self._opened, self._book.settle(time.monotonic())) if note is not None]

    def _events(self, arrived: list[Any]) -> Sequence[Event[Any]]:
        events: list[Event[Any]] = []
        for one in arrived:
            if isinstance(one, AbortReq):
                note = _note(one)
                if isinstance(note, Hello | Opened):
                    self._open(note)
                else:
                    events.append(note or Abort(one, one.rid, one.abort_all))
            elif isinstance(one, _BATCH) and any(_frame(single) is not None for single in one.batch):
                events += map(_event, one.batch)  # SGLang, too, takes it apart, and treats each as if it came alone
            else:
                events.append(_event(one))
        for event in events:
            if isinstance(event, Park):
                self._metrics.parked(event.rid)
        return events

    def _admit(self, request: Any, prepared: _Prepared) -> Any:
        self._metrics.left(request.rid, time.monotonic() - prepared.at)
        request.mm_inputs = prepared.inputs
        return request

    def _reject(self, request: Any, reason: str) -> Any:
        self._metrics.left(request.rid)
        return _rejected(request, reason)

    def _open(self, note: Hello | Opened) -> None:
        if isinstance(note, Hello) and self._hello is None:
            self._hello = note
            if self._book is not None:
                self._inbox = self._context.socket(zmq.PULL)
                self._endpoint = PrivateEndpoint(self._inbox)
                self._opened = Opened(self._endpoint.address)
        elif isinstance(note, Opened) and self._hello is not None:
            self._opened = None
            self._lane = Lane(self._rank)
            self._submit("", partial(self._attach, self._hello, note))

    def _begin(self, ticket: Ticket) -> None:
        self._submit(ticket.request, partial(self._materialize, ticket))

    def _submit(self, request: str, run: Callable[[], None]) -> None:
        assert self._lane is not None  # a ticket comes once every rank has said Attached
        self._lane.submit(Job(request, False, lambda: True, run))

    # ------------------------------------------------------------------ the lane's

    def _attach(self, hello: Hello, opened: Opened) -> None:
        try:
            self._modalities = self._model.requires_mm_token_modalities
            self._reader = not READERS.isdisjoint(self._model.hf_config.architectures)
            reader = ArenaReader(ArenaAddress.from_json(hello.arena))
            returns, self._reports = self._push(hello.returns), self._push(opened.reports)
            returns.send(encode(Attached(self._rank)))
            self._leases = Leases(reader, lambda request: returns.send(encode(Returned(request, self._rank))))
        except Exception:  # never attached, no request is given a ticket
            log.exception("coatcheck stands aside, and SGLang works as without it: a rank could not map the arena")

    def _push(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.sndhwm = 0  # what a rank has to say is small, and is not lost
        socket.connect(address)
        return socket

    def _materialize(self, ticket: Ticket) -> None:
        if not self._gate.wanted(ticket.request):
            self._leases.decline(ticket)
            return
        reason = None
        try:
            start = time.monotonic()
            inputs = self._inputs(ticket)
            ready = time.monotonic()
            self._metrics.materialized(ready - start)
            self._gate.park(ticket.request, _Prepared(inputs, ready))
        except Exception as error:
            log.exception("rank %d could not prepare the multimodal inputs of request %s", self._rank, ticket.request)
            why = str(error) if isinstance(error, CoatcheckError) else type(error).__name__
            reason = f"Multimodal inputs could not be prepared on rank {self._rank}: {why}"
        self._reports.send(encode(Ready(ticket.request, self._rank, reason)))

    def _inputs(self, ticket: Ticket) -> Any:
        output = unpack(self._leases.lend(ticket), lend=self._reader and not ticket.copy)
        if not isinstance(output, MultimodalProcessorOutput):
            raise MaterializeError(f"a block that holds a {type(output).__name__}")
        inputs = MultimodalInputs.from_processor_output(output, requires_mm_token_modalities=self._modalities)
        if inputs.padded_input_ids is None and self._reader:  # as these models' processor does, where it knows the hash
            inputs.padded_input_ids = output.build_padded_input_ids(output.input_ids, inputs.mm_items)
        if inputs.padded_input_ids is not None:
            inputs.padded_input_ids = array("q", inputs.padded_input_ids)  # which the scheduler would make of it
        return inputs


def _rejected(request: Any, reason: str) -> Any:
    request.mm_inputs = MMInputsProcessError(reason)
    return request


def _event(one: Any) -> Event[Any]:
    frame = _frame(one)
    if frame is None:
        return Pass(one)
    try:
        return Park(one, one.rid, ticket_of(frame))
    except WireError as error:
        return Pass(_rejected(one, str(error)))


def _frame(one: Any) -> bytes | None:
    """What stands in place of a request's inputs; None: they are SGLang's."""
    inputs = getattr(one, "mm_inputs", None)
    if not isinstance(inputs, MultimodalProcessorOutput) or len(inputs.mm_items) != 1:
        return None
    frame = inputs.mm_items[0].model_specific_data.get(KEY)
    return frame if isinstance(frame, bytes) else None


def _note(abort: Any) -> Note | None:
    """None: it is SGLang's."""
    return read_note(abort.abort_message) if abort.rid == MARK and abort.abort_message else None


_sides: dict[int, tuple[Any, RankSide]] = {}  # by the receiver's id, which is its own as long as it is kept here


def side(receiver: Any) -> RankSide:
    """The receiver's, made when it is first asked for."""
    if id(receiver) not in _sides:
        _sides[id(receiver)] = receiver, RankSide(receiver)
    return _sides[id(receiver)][1]


def recv_requests(original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None = None) -> list[Any]:
    """Around ``SchedulerRequestReceiver.recv_requests``."""
    return side(receiver).receive(original, receiver, local_reqs)


def maybe_sleep(original: Callable[..., None], sleeper: Any) -> None:
    """Around ``IdleSleeper.maybe_sleep``."""
    if all(one.may_sleep(sleeper.poller) for _, one in _sides.values()):
        original(sleeper)


HOOKS: dict[str, Callable[..., Any]] = {
    f"{_RECEIVER}.recv_requests": recv_requests,
    f"{_SLEEPER}.maybe_sleep": maybe_sleep,
}
