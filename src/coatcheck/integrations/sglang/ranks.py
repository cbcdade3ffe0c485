"""A rank's side: inputs are prepared beside the scheduler's thread, which claims them when their request arrives.

Around ``SchedulerRequestReceiver.recv_requests``, which gives all ranks the same list. What may be decided where stands
in :mod:`coatcheck.integrations.sglang.prepare`. No collective is added, and no turn of the scheduler's.

Until a Hello has come, nothing happens here; it comes in that broadcast, too.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable, Iterator
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
from coatcheck.errors import MaterializeError, WireError
from coatcheck.integrations.sglang.codec import unpack
from coatcheck.integrations.sglang.leases import Leases
from coatcheck.integrations.sglang.metrics import rank_metrics
from coatcheck.integrations.sglang.prepare import Preparer
from coatcheck.integrations.sglang.records import MARK, Attached, Claim, Hello, Ticket, read_note, ticket_of
from coatcheck.integrations.sglang.support import metrics_wanted
from coatcheck.messages import Returned
from coatcheck.private_socket import PrivateEndpoint
from coatcheck.process import set_name
from coatcheck.wire import encode

log = logging.getLogger(__name__)

# Models that only read their features, so that these may stay in read-only memory: a write there would kill the rank.
# Read in SGLang 0.5.23's models: each concatenates its items' features into a new tensor before anything else. Other
# models get copies, made beside the scheduler's thread.
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


class _Prepared(NamedTuple):
    """What lies ready for a claim."""

    inputs: Any  # SGLang's
    at: float  # time.monotonic()


class _Refusal(MMInputsProcessError, frozen=True):  # type: ignore[call-arg, misc]  # SGLang has no types
    """SGLang's sessions look at the items of what fails, too."""

    mm_items = ()


class RankSide:
    """One scheduler's, of one receiver. Its thread calls everything that has no underscore."""

    def __init__(self, receiver: Any) -> None:
        self._rank: int = get_parallel().tp_rank
        self._metrics = rank_metrics(metrics_wanted(), self._rank)
        self._model = receiver.model_config
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.linger = 0  # so that a rank can end
        self._preparer = Preparer[_Prepared](self._rank, self._prepare, lambda ready: self._reports.send(encode(ready)))
        self._thread: threading.Thread | None = None
        self._leases: Leases  # the thread's, as is what follows
        self._reports: zmq.Socket[bytes]
        self._modalities: bool  # whether the scheduler wants the modality of every token
        self._reader: bool  # whether the model only reads its features

    def receive(self, original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None) -> list[Any]:
        """In place of the receiver's ``recv_requests``."""
        arrived = original(receiver, local_reqs)
        if not arrived:
            return arrived
        self._metrics.start()
        claiming = [request for request in _requests(arrived) if type(request.mm_inputs) is Claim]
        self._metrics.claimed([waited for request in claiming if (waited := self._claim(request)) is not None])
        return [one for one in arrived if not (isinstance(one, AbortReq) and self._is_ours(one))]

    # ------------------------------------------------------------------ the scheduler's thread

    def _claim(self, request: Any) -> float | None:
        """Seconds for which the inputs have lain ready; None: there are none, and the request fails."""
        claim: Claim = request.mm_inputs
        if claim.refusal is not None:
            request.mm_inputs = _Refusal(claim.refusal)
            return None
        prepared = self._preparer.claim(claim.request)
        request.mm_inputs = prepared.inputs
        return time.monotonic() - prepared.at

    def _is_ours(self, abort: Any) -> bool:
        """A note, which is read then, and is not the scheduler's business."""
        if abort.rid != MARK or not abort.abort_message:
            return False
        try:
            hello = read_note(abort.abort_message)
        except WireError as error:
            log.error("a note could not be read: %s", error)
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, args=[hello], name="coatcheck-lane", daemon=True)
            self._thread.start()
        return True

    # ------------------------------------------------------------------ the thread beside it

    def _serve(self, hello: Hello) -> None:
        set_name("coatcheck-lane")
        try:
            tickets = self._attach(hello)
        except Exception:  # never attached, no request is carried
            log.exception("coatcheck stands aside, and SGLang works as without it: a rank could not map the arena")
            return
        while True:
            try:
                self._preparer.take(ticket_of(tickets.recv()))
            except Exception:  # its request is refused, in time, for want of a report
                log.exception("rank %d could not take a ticket", self._rank)

    def _attach(self, hello: Hello) -> zmq.Socket[bytes]:
        self._modalities = self._model.requires_mm_token_modalities
        self._reader = not READERS.isdisjoint(self._model.hf_config.architectures)
        reader = ArenaReader(ArenaAddress.from_json(hello.arena))
        tickets = self._context.socket(zmq.PULL)
        tickets.rcvhwm = 0  # what is announced is small, and is not lost
        self._endpoint = PrivateEndpoint(tickets)
        self._reports, returns = self._push(hello.reports), self._push(hello.reports)  # each has a thread of its own
        self._leases = Leases(reader, lambda request: returns.send(encode(Returned(request, self._rank))))
        self._reports.send(encode(Attached(self._rank, self._endpoint.address)))
        return tickets

    def _push(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.sndhwm = 0  # what a rank has to say is small, and is not lost
        socket.connect(address)
        return socket

    def _prepare(self, ticket: Ticket) -> _Prepared:
        start = time.monotonic()
        inputs = self._inputs(ticket)
        ready = time.monotonic()
        self._metrics.materialized(ready - start)
        return _Prepared(inputs, ready)

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


def _requests(arrived: list[Any]) -> Iterator[Any]:
    """Those that may have inputs; SGLang takes batches apart, too, and treats each as if it came alone."""
    for one in arrived:
        if isinstance(one, _SINGLE):
            yield one
        elif isinstance(one, _BATCH):
            yield from one.batch


_sides: dict[int, tuple[Any, RankSide]] = {}  # by the receiver's id, which is its own as long as it is kept here


def side(receiver: Any) -> RankSide:
    """The receiver's, made when it is first asked for."""
    if id(receiver) not in _sides:
        _sides[id(receiver)] = receiver, RankSide(receiver)
    return _sides[id(receiver)][1]


def recv_requests(original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None = None) -> list[Any]:
    """Around ``SchedulerRequestReceiver.recv_requests``."""
    return side(receiver).receive(original, receiver, local_reqs)


HOOKS: dict[str, Callable[..., Any]] = {f"{_RECEIVER}.recv_requests": recv_requests}
