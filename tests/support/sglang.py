"""Stands for SGLang 0.5.23 in tests of the plugin's frame: what the plugin looks at, with the same signatures.

That the real one looks like this is what ``make test-sglang`` and the doctor are for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec

from coatcheck.integrations.sglang.support import BROADCAST, CAPTURES, LIMITS, METRICS, UNNAMED
from tests.support import sglang_hooks


class Processed(msgspec.Struct, frozen=True):
    """MMInputsProcessError."""

    message: str


def modules() -> dict[str, ModuleType]:
    """New modules with new classes, by name, for ``sys.modules``."""

    class TokenizerManager:
        async def _send_one_request(self, tokenized_obj: Any) -> Any:
            return ["sent", tokenized_obj]

        async def _send_batch_request(self, tokenized_objs: Any) -> Any:
            return ["sent", *tokenized_objs]

        async def _tokenize_one_request(self, obj: Any) -> Any:
            return ["tokenized", obj]

        def abort_request(self, rid: str = "", abort_all: bool = False) -> Any:
            return ["aborted", rid]

        def _dispatch_to_scheduler(self, obj: Any) -> None: ...

    @dataclasses.dataclass
    class SchedulerRequestReceiver:
        recv_from_tokenizer: Any = None

        def recv_requests(self, local_reqs: Any = None) -> Any:
            return [*(local_reqs or []), "received"]

    class MultimodalInputs:
        def __init__(self, mm_items: list[Any]) -> None:
            self.mm_items = mm_items
            self.padded_input_ids: list[int] | None = None

        @staticmethod
        def from_processor_output(obj: Any, *, requires_mm_token_modalities: bool = False) -> Any:
            return MultimodalInputs(obj.mm_items)

    class Scheduler:
        def get_init_info(self) -> dict[str, Any]:
            return {"status": "ready"}

        def _get_multimodal_inputs(self, mm_inputs: Any) -> Any:
            if isinstance(mm_inputs, Processed):
                raise RuntimeError(mm_inputs.message)
            return mm_inputs

    class Modality(Enum):
        IMAGE = "image"

    Modality.__module__, Modality.__qualname__ = "sglang.srt.multimodal.modality", "Modality"

    def set_hash(self: Any, hash_value: int) -> None:
        self.hash = self.pad_value = hash_value

    def set_pad_value(self: Any) -> None:
        if self.pad_value is None:
            value = self.feature if self.feature is not None else self.precomputed_embeddings
            tensors = value if isinstance(value, list) else [value]
            digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).digest()
            self.set_hash(int.from_bytes(digest[:7], "big"))

    def build_padded_input_ids(input_ids: list[int] | None, mm_items: list[Any]) -> list[int] | None:
        return input_ids and [*input_ids, *(item.pad_value or 0 for item in mm_items)]

    def record(name: str, fields: list[str], **namespace: Any) -> type[msgspec.Struct]:
        """By keyword, None where nothing is given, and known to a pickle by the name of SGLang's."""
        given = [(field, Any, None) for field in fields]
        where = "sglang.srt.managers.schedule_batch"
        return msgspec.defstruct(name, given, module=where, namespace=namespace, kw_only=True, dict=True, weakref=True)

    def _wait_for_scheduler_ready(scheduler_pipe_readers: list[Any], scheduler_procs: list[Any]) -> list[Any]:
        return [reader() for reader in scheduler_pipe_readers]

    class ServerArgs:
        def resolved_dict(self) -> dict[str, Any]:
            return {name: getattr(self, name) for name in arguments}

    arguments = {limit.setting: limit.served[0] for limit in LIMITS if not limit.variable}
    arguments |= {BROADCAST: False, METRICS: False}
    for name, value in arguments.items():
        setattr(ServerArgs, name, value)
    values = {limit.setting: limit.served[0] for limit in LIMITS if limit.variable}
    values[UNNAMED] = values[CAPTURES] = False
    envs = SimpleNamespace(**{name: SimpleNamespace(get=lambda value=value: value) for name, value in values.items()})

    def get_server_args() -> ServerArgs:
        return ServerArgs()

    def get_parallel() -> Any:
        return SimpleNamespace(tp_rank=0)

    item_fields = [
        "modality", "hash", "pad_value", "offsets", "format", "feature", "precomputed_embeddings",
        "keep_device_embedding", "model_specific_data", "identity", "pad_values",
    ]  # fmt: skip
    output_fields = [
        "mm_items", "input_ids", "padded_input_ids", "im_token_id", "im_start_id", "im_end_id", "slice_start_id",
        "slice_end_id", "video_token_id", "audio_token_id", "audio_start_id", "audio_end_id", "mrope_positions",
        "mrope_position_delta", "vision_position_ids", "media_nums_per_sample", "visible_frame_counts",
        "token_type_ids",
    ]  # fmt: skip
    contents: dict[str, dict[str, Any]] = {
        "sglang": {},
        "sglang.srt": {},
        "sglang.srt.plugins": {},
        "sglang.srt.entrypoints": {},
        "sglang.srt.entrypoints.engine": {"_wait_for_scheduler_ready": _wait_for_scheduler_ready},
        "sglang.srt.environ": {"envs": envs},
        "sglang.srt.managers": {},
        "sglang.srt.managers.io_struct": {
            "MMInputsProcessError": Processed,
            "AbortReq": msgspec.defstruct("AbortReq", [("rid", str, ""), ("abort_all", bool, False)]),
            "TokenizedGenerateReqInput": msgspec.defstruct(
                "Generate", ["rid", "mm_inputs", "stream", "session_params"]
            ),
            "TokenizedEmbeddingReqInput": msgspec.defstruct("Embedding", ["rid", "input_ids", "mm_inputs"]),
            "BatchTokenizedGenerateReqInput": msgspec.defstruct("Batch", ["rids", "batch"]),
            "BatchTokenizedEmbeddingReqInput": msgspec.defstruct("Batch", ["rids", "batch"]),
        },
        "sglang.srt.managers.schedule_batch": {
            "Modality": Modality,
            "MultimodalInputs": MultimodalInputs,
            "MultimodalDataItem": record(
                "MultimodalDataItem", item_fields, set_hash=set_hash, set_pad_value=set_pad_value
            ),
            "MultimodalProcessorOutput": record(
                "MultimodalProcessorOutput", output_fields, build_padded_input_ids=staticmethod(build_padded_input_ids)
            ),
        },
        "sglang.srt.managers.scheduler": {"Scheduler": Scheduler},
        "sglang.srt.managers.scheduler_components": {},
        "sglang.srt.managers.scheduler_components.request_receiver": {
            "SchedulerRequestReceiver": SchedulerRequestReceiver
        },
        "sglang.srt.managers.tokenizer_manager": {
            "TokenizerManager": TokenizerManager,
            "ReqState": dataclasses.make_dataclass("ReqState", ["out_list", "abort_sent", "dispatched"]),
        },
        "sglang.srt.multimodal": {},
        "sglang.srt.multimodal.modality": {"Modality": Modality},
        "sglang.srt.runtime_context": {
            "get_server_args": get_server_args,
            "get_observability": ServerArgs,
            "get_parallel": get_parallel,
        },
        "sglang.srt.server_args": {"ServerArgs": ServerArgs},
    }
    made = {name: ModuleType(name) for name in contents}
    for name, content in contents.items():
        vars(made[name]).update(content)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, made[name])
    hooks = sys.modules[sglang_hooks.__name__]
    made["sglang.srt.plugins"].hook_registry = hooks  # type: ignore[attr-defined]
    return made | {"sglang.srt.plugins.hook_registry": hooks}
