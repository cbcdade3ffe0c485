"""What SGLang's commit 17a57fd86 did, by the functions of the first release that has it, 0.5.4.post2.

The front end's side is ``TokenizerManager._send_one_request``, which pickles the request with its pixels; a rank's side
is ``Scheduler.recv_requests`` (receive, broadcast) and ``Scheduler._process_and_broadcast_mm_inputs`` (hash on the
entry rank, broadcast again). What the scheduler does for the request beyond that is left out, in its favour.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import torch
import torch.distributed as dist
import zmq
from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.sampling.sampling_params import SamplingParams

from benchmarks.handoff.meter import Meter, Payload, Place, Written
from benchmarks.handoff.peers.gloo import join as join
from benchmarks.handoff.peers.pipe import Inbox, InboxRank, Outbox, Watch

TEXT = 16  # tokens of the prompt before the image
MERGE = 4  # patches that become one token
IMAGE = 151655  # Qwen2.5-VL's placeholder


def _request(payload: Payload) -> TokenizedGenerateReqInput:
    """What SGLang's tokenizer and image processor have made."""
    count = len(payload.wide) // MERGE
    ids = [*range(TEXT), *[IMAGE] * count]
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        feature=torch.from_numpy(payload.wide),
        offsets=[(TEXT, TEXT + count - 1)],
        model_specific_data={"image_grid_thw": torch.tensor([payload.grid])},
    )
    inputs = {
        "mm_items": [item],
        "input_ids": ids,
        "im_token_id": IMAGE,
        "mrope_positions": torch.arange(len(ids)).expand(3, -1).contiguous(),
        "mrope_position_delta": torch.tensor([[0]]),
    }
    return TokenizedGenerateReqInput(
        rid=payload.name,
        input_text="",
        input_ids=ids,
        mm_inputs=inputs,
        sampling_params=SamplingParams(),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


class Front:
    """The tokenizer's process."""

    def __init__(self, place: Place) -> None:
        self._out = Outbox(place.path("requests"))

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        request = _request(payload)
        watch = Watch()
        self._out.socket.send_pyobj(request)
        return Written(watch.start, watch.seconds(), None, payload.wide)

    def settle(self) -> None:
        """Nothing is lent."""

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._out.close()


class OneAtATime:
    """A socket that seems empty after each request, as others receive them; SGLang drains it into one broadcast."""

    def __init__(self, inbox: Inbox) -> None:
        self._socket = inbox.socket
        self._more = True

    def recv_pyobj(self, flags: int) -> Any:
        """The next request, then zmq.Again, in turns."""
        self._more = not self._more
        if self._more:
            raise zmq.Again
        return self._socket.recv_pyobj(flags)


class Rank(InboxRank):
    """A scheduler's process."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._rpc = Inbox(place.path("rpc")) if place.rank == 0 else None
        self._scheduler: Any = SimpleNamespace(
            recv_skipper=None,
            input_blocker=None,
            enable_trace=False,
            server_args=SimpleNamespace(enable_dp_attention=False),
            recv_from_tokenizer=None if self.requests is None else OneAtATime(self.requests),
            recv_from_rpc=None if self._rpc is None else self._rpc.socket,
            pp_rank=0,
            attn_tp_rank=place.rank,
            tp_size=place.ranks,
            tp_group=SimpleNamespace(rank=place.rank, ranks=list(range(place.ranks))),
            tp_cpu_group=dist.group.WORLD,
            cpu_group=dist.group.WORLD,
            is_entry_rank=place.rank == 0,
        )

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("receive"):
            (request,) = Scheduler.recv_requests(self._scheduler)
            inputs = Scheduler._process_and_broadcast_mm_inputs(self._scheduler, request.mm_inputs)
            self.held = [request, inputs]
        feature = inputs.mm_items[0].feature
        assert isinstance(feature, torch.Tensor)
        return feature

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        super().close()
        if self._rpc is not None:
            self._rpc.close()


SIDES = {"sglang-17a57fd86": (Front, Rank)}
