"""A rank's side: inputs are prepared beside the scheduler's thread, which claims them when their request arrives.

Around ``SchedulerRequestReceiver.recv_requests``, which gives all ranks the same list. What may be decided where stands
in :mod:`coatcheck.integrations.sglang.prepare`. No collective is added, and no turn of the scheduler's.

A rank takes part from the moment that SGLang asks it whether it is ready; until a Hello has come it only listens.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, NamedTuple

import torch
import zmq
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import (
    BatchTokenizedEmbeddingReqInput,
    BatchTokenizedGenerateReqInput,
    MMInputsProcessError,
    TokenizedEmbeddingReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import MultimodalInputs, MultimodalProcessorOutput
from sglang.srt.runtime_context import get_parallel

from coatcheck.arena import ArenaReader
from coatcheck.delivery.leases import Leases
from coatcheck.delivery.records import Ready
from coatcheck.delivery.upload import Registered, relax
from coatcheck.errors import ConfigError, MaterializeError
from coatcheck.integrations.sglang.codec import unpack
from coatcheck.integrations.sglang.compact import Compact
from coatcheck.integrations.sglang.metrics import rank_metrics
from coatcheck.integrations.sglang.prepare import InputsRefused, TicketPreparer
from coatcheck.integrations.sglang.records import (
    Alive,
    Attached,
    Claim,
    Failed,
    Goodbye,
    Hello,
    Probe,
    Ticket,
    to_ranks,
)
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.sizing import token_bytes
from coatcheck.integrations.sglang.support import metrics_wanted
from coatcheck.process import set_name
from coatcheck.sockets import PrivateEndpoint, pull, push
from coatcheck.wire import encode

log = logging.getLogger(__name__)

# On a GPU every feature is copied there before a model sees it, or read by the copy that the model makes: none of
# SGLang 0.5.23's models writes to a feature in the host's memory. On a CPU a model works on the features themselves,
# and a write to the read-only mapping would kill the rank: there only models that were read, line by line, are served.
# Each copies its items' features (torch.cat, materialize_multimodal_features, pad_sequence) before anything else.
READERS = frozenset(
    {
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3OmniMoeForConditionalGeneration",
        "KimiK25ForConditionalGeneration",
        "KimiVLForConditionalGeneration",
        "InternVLChatModel",
        "InternS1ForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Phi4MMForCausalLM",
        "DotsOCRForCausalLM",
        "MiniCPMV",
        "MiniCPMV4_6ForConditionalGeneration",
        "MiniCPMV4_7ForConditionalGeneration",
        "MiniCPMO",
    }
)
# Models whose padded ids are the processor's to make (processors/qwen_vl.py), which makes them where it knows the hash.
PADDED = frozenset(
    {
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
    }
)
# Their get_image_feature was read: it concatenates features, casts them to visual.dtype, and keeps none.
WIDENED = frozenset(
    {
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    }
)
_COMPACT = "_coatcheck_compact"  # of a model: its images may be compact
_MODELS = "sglang.srt.models."
CLOSE_S = 5.0  # until the thread that gives back has ended

_SINGLE = (TokenizedGenerateReqInput, TokenizedEmbeddingReqInput)
_BATCH = (BatchTokenizedGenerateReqInput, BatchTokenizedEmbeddingReqInput)
_RECEIVER = "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver"


class _Prepared(NamedTuple):
    """What lies ready for a claim."""

    inputs: Any  # SGLang's
    cpu_s: float  # that preparing took, of the thread beside the scheduler's


class _Refusal(MMInputsProcessError, frozen=True):  # type: ignore[call-arg, misc]  # SGLang has no types
    """SGLang's sessions look at the items of what fails, too."""

    mm_items = ()


class RankSide:
    """One scheduler's. Made on its thread when its model is loaded; its helper is a thread of its own."""

    def __init__(self, scheduler: Any) -> None:
        """Raises ConfigError if the model is not one that may be lent read-only memory."""
        model = type(scheduler.tp_worker.model_runner.model)
        if scheduler.device not in ("cpu", "cuda"):
            raise ConfigError(f"features on a device of type {scheduler.device} were not tested")
        if scheduler.device == "cpu" and not (model.__name__ in READERS and model.__module__.startswith(_MODELS)):
            raise ConfigError(f"on a CPU, {model.__name__} is not known to leave its features as they are")
        self._rank: int = get_parallel().tp_rank
        self._metrics = rank_metrics(metrics_wanted(), self._rank)
        self._modalities: bool = scheduler.model_config.requires_mm_token_modalities
        self._scheduler = scheduler  # whose streams upload
        # Graphs of vision towers are captured while the server serves: then CUDA is left alone.
        uploads = scheduler.device == "cuda" and not envs.SGLANG_VIT_ENABLE_CUDA_GRAPH.get()
        self._device = torch.cuda.current_device() if uploads else None
        self._padded = model.__name__ in PADDED and model.__module__.startswith(_MODELS)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.linger = 0  # so that a rank can end
        self._tickets = pull(self._context)
        self._endpoint = PrivateEndpoint(self._tickets)
        self._preparer = TicketPreparer[_Prepared](self._rank, self._prepare, self._report)
        self._leases: Leases  # the helper thread's, as is what follows
        self._reports: zmq.Socket[bytes]
        self.facts = Facts(
            tickets=self._endpoint.address,
            pid=os.getpid(),
            pool_tokens=scheduler.max_total_num_tokens,
            running=scheduler.max_running_requests,
            input_tokens=scheduler.max_req_input_len,
            token_bytes=token_bytes(scheduler.model_config.hf_config),
            whole=_widening(scheduler.tp_worker.model_runner.model),
            # Of one server its tokenizer's process and its entry rank know the same socket; other ranks have none.
            server=_endpoint(scheduler.request_receiver.recv_from_tokenizer),
        )
        threading.Thread(target=self._serve, name="coatcheck-help", daemon=True).start()

    def receive(self, arrived: list[Any]) -> None:
        """What ``recv_requests`` has received: claims become inputs."""
        self._metrics.start()
        claiming = [request for request in _requests(arrived) if type(request.mm_inputs) is Claim]
        self._metrics.claimed([claimed for request in claiming if (claimed := self._claim(request)) is not None])

    # ------------------------------------------------------------------ the scheduler's thread

    def _claim(self, request: Any) -> tuple[float, float] | None:
        """Seconds for which the inputs have lain ready, and those that the helper thread worked on them.

        None: there are none, and the request fails.
        """
        claim: Claim = request.mm_inputs
        if claim.refusal is not None:
            request.mm_inputs = _Refusal(claim.refusal)
            return None
        prepared, waited_s = self._preparer.claim(claim.request)
        request.mm_inputs = prepared.inputs
        return waited_s, prepared.cpu_s

    # ------------------------------------------------------------------ the helper thread

    def _serve(self) -> None:
        set_name("coatcheck-help")
        attached = False
        undo = contextlib.ExitStack()  # of what attaching took
        while True:
            try:
                record = to_ranks(self._tickets.recv())
                if isinstance(record, Hello):
                    attached = self._attach(record, undo)
                elif isinstance(record, Goodbye):
                    attached = False
                    undo.close()
                elif not attached:
                    continue
                elif isinstance(record, Probe):
                    self._reports.send(encode(Alive(record.number, self._rank)))
                else:
                    self._preparer.take(record)
            except Exception:  # in time, its request goes another way, for want of a report
                log.exception("rank %d could not take what it was told", self._rank)

    def _attach(self, hello: Hello, undo: contextlib.ExitStack) -> bool:
        self._reports = push(self._context, hello.reports)
        problem = ""
        try:
            reader = ArenaReader(hello.arena)
            undo.callback(_let_go, reader)
            returns = push(self._context, hello.reports)  # another thread's
            registered = self._register(reader)
            if registered is not None:
                undo.callback(registered.release)
            self._leases = Leases(
                reader,
                self._rank,
                lambda returned: returns.send(encode(returned)),
                None if registered is None else registered.fence,
                relax if registered is not None else None,
            )
            undo.callback(self._leases.close, CLOSE_S)
        except Exception as error:
            log.exception("rank %d could not map the arena", self._rank)
            problem = f"{type(error).__name__}: {error}"
        self._reports.send(encode(Attached(self._rank, problem)))
        return not problem

    def _register(self, reader: ArenaReader) -> Registered | None:
        if self._device is None:
            return None
        try:
            return Registered(reader.mapping, self._device, self._streams)
        except RuntimeError as error:
            log.info("CUDA does not register the arena, and uploads out of it are synchronous: %s", error)
            return None

    def _streams(self) -> tuple[Any, ...]:
        """Where SGLang 0.5.23 uploads: on the stream of its forward pass, or without overlap on the scheduler's.

        See ``mm_schedule._move_items_to_device``, and the models' own ``materialize_multimodal_features``.
        """
        return self._scheduler.forward_stream, self._scheduler.schedule_stream

    def _report(self, report: Ready | Failed) -> None:
        self._reports.send(encode(report))

    def _prepare(self, ticket: Ticket) -> _Prepared:
        start, cpu = time.monotonic(), time.thread_time()
        inputs = self._inputs(ticket)
        self._metrics.materialized(time.monotonic() - start)
        return _Prepared(inputs, time.thread_time() - cpu)

    def _inputs(self, ticket: Ticket) -> Any:
        output = unpack(ticket.body, self._leases.lend(ticket.request, ticket.handles))
        if not isinstance(output, MultimodalProcessorOutput):
            raise MaterializeError(f"a ticket that holds a {type(output).__name__}")
        try:
            inputs = MultimodalInputs.from_processor_output(output, requires_mm_token_modalities=self._modalities)
            if inputs.padded_input_ids is None and self._padded:
                inputs.padded_input_ids = output.build_padded_input_ids(output.input_ids, inputs.mm_items)
        except Exception as error:
            raise InputsRefused(type(error).__name__) from error  # the client gets it: what it says stays in the log
        if inputs.padded_input_ids is not None:
            inputs.padded_input_ids = array("q", inputs.padded_input_ids)  # which the scheduler would make of it
        return inputs


def _widening(model: Any) -> bool:
    """From now on the model's images may be compact: widened when it encodes them. False: not of this model.

    ``get_image_feature(items)`` is where SGLang 0.5.23 has a model encode images, of whatever batch or chunk. The items
    keep what is compact, so they can be encoded again, after a retraction say, and SGLang has nothing on the GPU that
    it would copy down again when the step is over.
    """
    kind = type(model)
    encode_images = getattr(model, "get_image_feature", None)
    if kind.__name__ not in WIDENED or not kind.__module__.startswith(_MODELS) or encode_images is None:
        return False
    if _COMPACT in vars(model):
        return True

    def get_image_feature(self: Any, items: list[Any]) -> Any:
        return encode_images([_wide(item, self.visual) for item in items])

    model.get_image_feature = MethodType(get_image_feature, model)  # SGLang looks at its name, and whose it is
    setattr(model, _COMPACT, True)
    return True


def _wide(item: Any, visual: Any) -> Any:
    """The item as SGLang's own way would have brought it here; itself, if it is not compact."""
    if not isinstance(item.feature, Compact):
        return item
    weight = next(visual.parameters())
    wide = copy.copy(item)
    wide.feature = item.feature.wide(weight.device, visual.dtype)
    return wide


def _let_go(reader: ArenaReader) -> None:
    """Unless something still lies over it: then with the process."""
    with contextlib.suppress(BufferError):
        reader.close()


def _endpoint(socket: Any) -> str:
    return "" if socket is None else socket.getsockopt(zmq.LAST_ENDPOINT).decode()


def _requests(arrived: list[Any]) -> Iterator[Any]:
    """Those that may have inputs; SGLang takes batches apart, too, and treats each as if it came alone."""
    for one in arrived:
        if isinstance(one, _SINGLE):
            yield one
        elif isinstance(one, _BATCH):
            yield from one.batch


_sides: dict[int, tuple[Any, RankSide]] = {}  # by the receiver's id, which is its own as long as it is kept here


def join(scheduler: Any) -> Facts:
    """The scheduler's rank takes part from now on. Raises if it cannot, with the reason."""
    made = RankSide(scheduler)
    _sides[id(scheduler.request_receiver)] = scheduler.request_receiver, made
    return made.facts


def recv_requests(original: Callable[..., list[Any]], receiver: Any, local_reqs: list[Any] | None = None) -> list[Any]:
    """Around ``SchedulerRequestReceiver.recv_requests``."""
    arrived = original(receiver, local_reqs)
    if arrived and id(receiver) in _sides:
        _sides[id(receiver)][1].receive(arrived)
    return arrived


HOOKS: dict[str, Callable[..., Any]] = {f"{_RECEIVER}.recv_requests": recv_requests}
