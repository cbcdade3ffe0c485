"""A rank without a model: SGLang's own receiver over gloo, with the plugin's hooks, in SGLang's interpreter.

What it gets from the receiver it passes through ``Scheduler._get_multimodal_inputs``, holds, and tells the owner.
Tuples that arrive are orders of the test; they ride in SGLang's broadcast, so that all ranks have them at the same
position.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import torch
import torch.distributed as dist
import zmq
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.idle_sleeper import IdleSleeper
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_context, get_parallel

from coatcheck.delivery.records import Ready
from coatcheck.errors import MaterializeError
from coatcheck.integrations.sglang import ranks as adapter
from coatcheck.integrations.sglang.codec import unpack
from coatcheck.process import die_with_parent
from coatcheck.wire import encode

GROUP_TIMEOUT_S = 60.0


class Skipper:
    """SGLang's recv_skipper, which skips when told to: the same calls on every rank."""

    def __init__(self) -> None:
        self.left = 0

    def handle(self, last_batch: Any) -> bool:
        """False: this call receives nothing."""
        self.left -= self.left > 0
        return self.left == 0


def values(inputs: Any) -> str:
    """Digest of what a model would be fed."""
    digest = hashlib.sha256()
    for item in inputs.mm_items:
        for tensor in (item.feature, item.model_specific_data["image_grid_thw"]):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        digest.update(repr((item.modality, item.offsets, item.hash, item.pad_values)).encode())
    digest.update(inputs.mrope_positions.contiguous().numpy())
    return digest.hexdigest()


class Rank:
    """Receives until told to stop."""

    def __init__(self, directory: str, rank: int, ranks: int) -> None:
        self.rank = rank
        get_context().override_server_args(tp_size=ranks).install()
        get_parallel().override_permanently(
            pp_rank=0,
            tp_rank=rank,
            attn_tp_rank=rank,
            attn_cp_rank=0,
            tp_group=SimpleNamespace(rank=rank, ranks=list(range(ranks)), cpu_group=dist.group.WORLD),
        )
        context: Any = zmq.Context()
        self.out = context.socket(zmq.PUSH)
        self.out.connect(f"ipc://{directory}/told")
        requests, rpc = context.socket(zmq.PULL), context.socket(zmq.PULL)
        if rank == 0:
            requests.connect(f"ipc://{directory}/requests")
        self.skipper = Skipper()
        self.receiver = SchedulerRequestReceiver(
            recv_from_tokenizer=requests,
            recv_from_rpc=rpc,
            recv_skipper=self.skipper,
            input_blocker=None,
            mm_receiver=None,
            server_args=SimpleNamespace(),
            model_config=SimpleNamespace(
                is_multimodal=True,
                requires_mm_token_modalities=False,
                hf_config=SimpleNamespace(architectures=["Qwen2_5_VLForConditionalGeneration"]),
            ),
            max_recv_per_poll=-1,
            stream_output=lambda *args: None,
            get_last_batch=lambda: None,
        )
        self.join(adapter.join)
        self.sleeper = IdleSleeper([requests, rpc]) if rank == 0 else None
        self.held: dict[str, Any] = {}
        self.faults: list[Any] = []
        self.refusals: list[str] = []
        self.stopped = False
        self.muted = 0  # tickets of which this rank will report nothing that can be read
        vars(adapter)["unpack"] = partial(self._unpack, unpack)
        made = vars(adapter)["MultimodalInputs"].from_processor_output
        vars(adapter)["MultimodalInputs"] = SimpleNamespace(from_processor_output=partial(self._process, made))
        vars(adapter)["encode"] = partial(self._encode, encode)

    def join(self, join: Any) -> None:
        """What the plugin does when SGLang asks a scheduler whether it is ready."""
        model = type("Qwen2_5_VLForConditionalGeneration", (), {"__module__": "sglang.srt.models.qwen2_5_vl"})
        self.scheduler = SimpleNamespace(
            device="cpu",
            tp_worker=SimpleNamespace(model_runner=SimpleNamespace(model=model())),
            model_config=self.receiver.model_config,
            request_receiver=self.receiver,
            max_total_num_tokens=32768,
            max_running_requests=64,
            max_req_input_len=8192,
        )
        self._tell("facts", asdict(join(self.scheduler)))

    def _process(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Of SGLang, on the plugin's thread."""
        fault = self.refusals.pop(0) if self.refusals else None
        if fault is not None:
            raise ValueError(fault)
        return original(*args, **kwargs)

    def _unpack(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, str):
            raise MaterializeError(fault)
        if fault is not None:
            time.sleep(fault)
        return original(*args, **kwargs)

    def run(self) -> None:
        """Until ``stop``."""
        while not self.stopped:
            arrived = self.receiver.recv_requests(local_reqs=[])
            for one in arrived:
                self._take(one)
            if not arrived and self.sleeper is not None:
                self.sleeper.maybe_sleep()

    def _take(self, one: Any) -> None:
        if isinstance(one, AbortReq):
            self._tell("abort", one.rid)
            return
        if isinstance(one, tuple):
            self._order(*one)
            return
        for request in getattr(one, "batch", [one]):
            try:
                inputs = None
                if request.mm_inputs is not None:
                    inputs = Scheduler._get_multimodal_inputs(self.scheduler, request.mm_inputs)
            except Exception as error:
                self._tell("rejected", request.rid, str(error))
                continue
            self.held[request.rid] = inputs
            if inputs is None:
                self._tell("text", request.rid)
            else:
                lent = not inputs.mm_items[0].feature.untyped_storage().resizable()
                self._tell("inputs", request.rid, lent, values(inputs))

    def _order(self, what: str, *details: Any) -> None:
        if what == "finish":
            self.held.pop(details[0], None)
        elif what == "fault" and details[0] == self.rank:
            self.faults.append(details[1])
        elif what == "refuse" and details[0] == self.rank:
            self.refusals.append(details[1])
        elif what == "mute" and details[0] == self.rank:
            self.muted += 1
        elif what == "skip":
            self.skipper.left = details[0]
        elif what == "stop":
            self.stopped = True
        if what in ("finish", "skip", "mute", "fault", "refuse"):
            self._tell(what, str(details[0]))

    def _encode(self, original: Any, record: Any) -> bytes:
        """What it would report, or nothing that could be read."""
        muted = self.muted if isinstance(record, Ready) else 0
        self.muted -= muted > 0
        return b"" if muted else original(record)

    def _tell(self, *what: Any) -> None:
        self.out.send_pyobj((self.rank, *what))


def main(directory: str, rank: int, ranks: int) -> None:
    """One rank of the group."""
    die_with_parent()
    for path, hook in adapter.HOOKS.items():
        HookRegistry.register(path, hook, HookType.AROUND)
    HookRegistry.apply_hooks()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=GROUP_TIMEOUT_S),
    )
    torch.set_num_threads(1)
    Rank(directory, rank, ranks).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
