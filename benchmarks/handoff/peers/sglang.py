"""SGLang 0.5.23's own functions, without its server around them.

The front end's side is ``TokenizerManager._send_one_request`` from ``wrap_shm_features`` on; a rank's side is
``SchedulerRequestReceiver.recv_requests`` (receive, broadcast, barrier, map, all-reduce) and
``Scheduler._get_multimodal_inputs`` (hash, or with the flag process and broadcast). What SGLang's scheduler does for
the request beyond that (padding the prompt) is left out, in its favour.

``sglang-default``: as installed. ``sglang-precomputed-hash``: SGLANG_MM_PRECOMPUTE_HASH=1, which hashes in a thread of
the front end. ``sglang-broadcast-flag``: --enable-broadcast-mm-inputs-process, as 17a57fd86 lives on. ``sglang-raw``:
the tensor rides in the broadcast, which is what SGLang falls back to without shared memory or with several nodes.
"""

from __future__ import annotations

import os
from array import array
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import torch
import torch.distributed as dist
from sglang.srt.managers.io_struct import TokenizedGenerateReqInput, sock_send
from sglang.srt.managers.mm_utils import wrap_shm_features
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver
from sglang.srt.multimodal.processors.hash_executor import MultimodalHashExecutor
from sglang.srt.runtime_context import get_context, get_parallel
from sglang.srt.sampling.sampling_params import SamplingParams

from benchmarks.handoff.meter import Meter, Payload, Place, Written
from benchmarks.handoff.peers.gloo import join as join
from benchmarks.handoff.peers.pipe import Inbox, InboxRank, Outbox, Watch

TEXT = 16  # tokens of the prompt before the image
MERGE = 4  # patches that become one token
IMAGE = 151655  # Qwen2.5-VL's placeholder
MODEL = SimpleNamespace(
    is_multimodal=True,
    requires_mm_token_modalities=False,
    hf_config=SimpleNamespace(architectures=["Qwen2_5_VLForConditionalGeneration"]),
)


_configured: dict[str, bool] = {}  # what the process's settings are now


def configure(place: Place, broadcast: bool = False) -> None:
    get_context().override_server_args(tp_size=place.ranks, enable_broadcast_mm_inputs_process=broadcast).install()


def image_request(payload: Payload) -> TokenizedGenerateReqInput:
    """What SGLang's tokenizer and image processor have made."""
    count = len(payload.wide) // MERGE
    ids = [*range(TEXT), *[IMAGE] * count]
    item = MultimodalDataItem(
        modality=Modality.IMAGE,
        feature=torch.from_numpy(payload.wide),
        offsets=[(TEXT, TEXT + count - 1)],
        model_specific_data={"image_grid_thw": torch.tensor([payload.grid])},
    )
    inputs = MultimodalProcessorOutput(
        mm_items=[item],
        input_ids=ids,
        im_token_id=IMAGE,
        mrope_positions=torch.arange(len(ids)).expand(3, -1).contiguous(),
        mrope_position_delta=torch.tensor([[0]]),
    )
    return TokenizedGenerateReqInput(
        rid=payload.name,
        input_text="",
        input_ids=array("q", ids),
        input_embeds=None,
        mm_inputs=inputs,
        token_type_ids=None,
        sampling_params=SamplingParams(),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


class Front:
    """The tokenizer's process."""

    def __init__(self, place: Place, precompute: bool = False, shared: bool = True) -> None:
        configure(place)
        self._out = Outbox(place.path("requests"))
        self._hashes = MultimodalHashExecutor() if precompute else None
        self._shared = shared

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        request = image_request(payload)
        hash_s = None
        watch = Watch()
        if self._hashes is not None:
            hashing = Watch()
            await self._hashes.set_pad_values(request.mm_inputs.mm_items)
            hash_s = hashing.seconds()
        self.send(request)
        writer_s = watch.seconds() - (hash_s or 0.0)
        return Written(watch.start, writer_s, hash_s, payload.wide)

    def send(self, request: TokenizedGenerateReqInput) -> None:
        """What ``_send_one_request`` does where no pixels are on a GPU."""
        if self._shared:
            request = wrap_shm_features(request)
        request.wrap_pickle_fields()
        sock_send(self._out.socket, request)

    def settle(self) -> None:
        """The ranks unlink the segment."""

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        if self._hashes is not None:
            self._hashes.shutdown()
        self._out.close()


class Rank(InboxRank):
    """A scheduler's process."""

    def __init__(self, place: Place, broadcast: bool = False) -> None:
        self._place = place
        self._broadcast = broadcast
        super().__init__(place)
        self._rpc = Inbox(place.path("rpc")) if place.rank == 0 else None
        self.receiver = SchedulerRequestReceiver(
            recv_from_tokenizer=None if self.requests is None else self.requests.socket,
            recv_from_rpc=None if self._rpc is None else self._rpc.socket,
            recv_skipper=None,
            input_blocker=None,
            mm_receiver=None,
            server_args=SimpleNamespace(),
            model_config=MODEL,
            max_recv_per_poll=1,  # -1 as installed: those that wait would share one broadcast, barrier and all-reduce
            stream_output=lambda *args: None,
            get_last_batch=lambda: None,
        )
        self.scheduler: Any = SimpleNamespace(
            model_config=MODEL,
            dp_tp_cpu_group=dist.group.WORLD,
            dp_tp_group=SimpleNamespace(rank_in_group=place.rank, first_rank=0),
        )
        self.scheduler._process_and_broadcast_mm_inputs = partial(
            Scheduler._process_and_broadcast_mm_inputs, self.scheduler
        )

    def prepare(self) -> None:
        """Contenders of one process take turns with its settings."""
        if _configured.get("broadcast") == self._broadcast:
            return
        _configured["broadcast"] = self._broadcast
        configure(self._place, self._broadcast)
        get_parallel().override_permanently(
            pp_rank=0,
            tp_rank=self._place.rank,
            attn_tp_rank=self._place.rank,
            attn_cp_rank=0,
            tp_group=SimpleNamespace(
                rank=self._place.rank, ranks=list(range(self._place.ranks)), cpu_group=dist.group.WORLD
            ),
        )

    def receive(self) -> list[Any]:
        """What has come, for one request."""
        arrived: list[Any] = self.receiver.recv_requests()
        return arrived

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("receive"):
            (request,) = self.receive()
            inputs = Scheduler._get_multimodal_inputs(self.scheduler, request.mm_inputs)
            self.held = [request, inputs]
        feature = inputs.mm_items[0].feature
        assert isinstance(feature, torch.Tensor)
        return feature

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        super().close()
        if self._rpc is not None:
            self._rpc.close()


SIDES = {
    "sglang-precomputed-hash": (partial(Front, precompute=True), Rank),
    "sglang-default": (Front, Rank),
    "sglang-broadcast-flag": (Front, partial(Rank, broadcast=True)),
    "sglang-raw": (partial(Front, shared=False), Rank),
}
