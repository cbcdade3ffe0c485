"""What the plugin relies on in SGLang: the functions that it hooks, those that it calls, and the records in between.

Read from SGLang 0.5.23's sources; :func:`check` compares an installed SGLang with it, without starting anything.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from coatcheck.findings import Finding
from coatcheck.integrations.sglang.support import BROADCAST, CAPTURES, LIMITS, METRICS, UNNAMED

VERSIONS = ("0.5.23",)  # tested with; a local part ("+cu130") is not looked at
_MANAGERS = "sglang.srt.managers"

SEND_ONE = f"{_MANAGERS}.tokenizer_manager.TokenizerManager._send_one_request"
SEND_BATCH = f"{_MANAGERS}.tokenizer_manager.TokenizerManager._send_batch_request"
TOKENIZE = f"{_MANAGERS}.tokenizer_manager.TokenizerManager._tokenize_one_request"
ABORT = f"{_MANAGERS}.tokenizer_manager.TokenizerManager.abort_request"
WAIT_FOR_RANKS = "sglang.srt.entrypoints.engine._wait_for_scheduler_ready"
RECEIVE = f"{_MANAGERS}.scheduler_components.request_receiver.SchedulerRequestReceiver.recv_requests"
RANK_READY = f"{_MANAGERS}.scheduler.Scheduler.get_init_info"
INPUTS = f"{_MANAGERS}.scheduler.Scheduler._get_multimodal_inputs"


@dataclass(frozen=True)
class Function:
    """A function as SGLang defines it."""

    path: str  # dotted
    signature: str  # without annotations, as :func:`signature` writes it
    coroutine: bool = False


HOOKED = (
    Function(SEND_ONE, "(self, tokenized_obj)", coroutine=True),
    Function(SEND_BATCH, "(self, tokenized_objs)", coroutine=True),
    Function(TOKENIZE, "(self, obj)", coroutine=True),
    Function(ABORT, "(self, rid=..., abort_all=...)"),
    Function(WAIT_FOR_RANKS, "(scheduler_pipe_readers, scheduler_procs)"),
    Function(RECEIVE, "(self, local_reqs=...)"),
    Function(RANK_READY, "(self)"),
)
CALLED = (
    Function(INPUTS, "(self, mm_inputs)"),
    Function(
        f"{_MANAGERS}.schedule_batch.MultimodalInputs.from_processor_output",
        "(obj, *, requires_mm_token_modalities=...)",
    ),
    Function(f"{_MANAGERS}.schedule_batch.MultimodalDataItem.set_hash", "(self, hash_value)"),
    Function(f"{_MANAGERS}.schedule_batch.MultimodalDataItem.set_pad_value", "(self)"),
    Function(f"{_MANAGERS}.schedule_batch.MultimodalProcessorOutput.build_padded_input_ids", "(input_ids, mm_items)"),
    Function(f"{_MANAGERS}.tokenizer_manager.TokenizerManager._dispatch_to_scheduler", "(self, obj)"),
    Function("sglang.srt.plugins.hook_registry.HookRegistry.register", "(target, hook, hook_type=..., *, source=...)"),
    Function("sglang.srt.runtime_context.get_server_args", "()"),
    Function("sglang.srt.runtime_context.get_observability", "()"),
    Function("sglang.srt.runtime_context.get_parallel", "()"),
    Function("sglang.srt.server_args.ServerArgs.resolved_dict", "(self)"),
)  # fmt: skip
# Records whose every field the plugin has to know, since it takes them apart and puts them together again.
RECORDS = {
    f"{_MANAGERS}.schedule_batch.MultimodalDataItem": (
        "modality", "hash", "pad_value", "offsets", "format", "feature", "precomputed_embeddings",
        "keep_device_embedding", "model_specific_data", "identity", "pad_values",
    ),
    f"{_MANAGERS}.schedule_batch.MultimodalProcessorOutput": (
        "mm_items", "input_ids", "padded_input_ids", "im_token_id", "im_start_id", "im_end_id", "slice_start_id",
        "slice_end_id", "video_token_id", "audio_token_id", "audio_start_id", "audio_end_id", "mrope_positions",
        "mrope_position_delta", "vision_position_ids", "media_nums_per_sample", "visible_frame_counts",
        "token_type_ids",
    ),
    f"{_MANAGERS}.io_struct.MMInputsProcessError": ("message",),
}  # fmt: skip
# Records of which it only uses these.
USED = {
    f"{_MANAGERS}.io_struct.AbortReq": ("rid", "abort_all"),
    f"{_MANAGERS}.io_struct.TokenizedGenerateReqInput": ("rid", "mm_inputs", "session_params"),
    f"{_MANAGERS}.io_struct.TokenizedEmbeddingReqInput": ("rid", "mm_inputs"),
    f"{_MANAGERS}.io_struct.BatchTokenizedGenerateReqInput": ("batch",),
    f"{_MANAGERS}.io_struct.BatchTokenizedEmbeddingReqInput": ("batch",),
    f"{_MANAGERS}.tokenizer_manager.ReqState": ("dispatched",),
    f"{_MANAGERS}.scheduler_components.request_receiver.SchedulerRequestReceiver": ("recv_from_tokenizer",),
}


_NONE = inspect.Parameter.empty


def signature(function: Callable[..., Any]) -> str:
    """Names and kinds of the parameters, and which have a default: ``(self, local_reqs=...)``.

    Of a function that decorators or hooks wrap it is the innermost one's.
    """
    parameters = [
        parameter.replace(annotation=_NONE, default=_NONE if parameter.default is _NONE else ...)
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters)).replace("Ellipsis", "...")


def version() -> str | None:
    """Of the SGLang in this environment; None: there is none."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def check() -> list[Finding]:
    """Looks at everything that the plugin relies on. One that failed means: the plugin stands aside.

    Imports SGLang's servers, which takes seconds. Where an import fails, or there is another version, that is the last
    finding.
    """
    findings = []
    for finding in _findings():
        findings.append(finding)
        if finding.status == "failed" and finding.what in (_VERSION, _IMPORT):
            break
    return findings


def failures(findings: list[Finding]) -> str:
    """What failed, as one line; empty if nothing did."""
    return "; ".join(f"{finding.what}: {finding.found}" for finding in findings if finding.status == "failed")


_VERSION = "SGLang's version"
_IMPORT = "SGLang's modules"


def _findings() -> Iterator[Finding]:
    found = version()
    if found is None or found.partition("+")[0] not in VERSIONS:
        means = f"tested with {', '.join(VERSIONS)}; with another the plugin stands aside"
        yield Finding(_VERSION, found or "not installed", means, "failed")
    else:
        yield Finding(_VERSION, found, "a version that the plugin was tested with", "ok")
    if importlib.util.find_spec("blake3") is None:
        yield Finding("blake3", "not installed", "payloads cannot be named by content: pip install blake3", "failed")
    try:
        for path in sorted({function.path.rpartition(".")[0] for function in HOOKED + CALLED}):
            _import(path)
    except Exception as error:  # whatever SGLang's modules do when they are imported
        found = f"{type(error).__name__}: {error}"
        yield Finding(_IMPORT, found, "nothing can be hooked; mostly SGLang cannot start here either", "failed")
        return
    yield Finding(_IMPORT, "imported", "SGLang can be looked at", "ok")
    for function in HOOKED:
        yield _compare(f"hook {_short(function.path)}", function)
    for function in CALLED:
        yield _compare(_short(function.path), function)
    for path, fields in RECORDS.items():
        yield _record(path, set(fields), whole=True)
    for path, fields in USED.items():
        yield _record(path, set(fields), whole=False)
    yield _settings()
    yield _passes_through()


def _import(path: str) -> None:
    """The module of that path, or the one that its class is in."""
    try:
        importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        importlib.import_module(path.rpartition(".")[0])


def _short(path: str) -> str:
    """Class and name, or module and name."""
    return ".".join(path.split(".")[-2:])


def _compare(what: str, function: Function) -> Finding:
    try:
        present = pkgutil.resolve_name(function.path)
    except (AttributeError, ImportError):
        return Finding(what, f"there is no {function.path}", _ANOTHER, "failed")
    found = signature(present)
    if found != function.signature:
        return Finding(what, f"takes {found}, not {function.signature}", _ANOTHER, "failed")
    if inspect.iscoroutinefunction(inspect.unwrap(present)) != function.coroutine:
        return Finding(what, f"is {'not ' if function.coroutine else ''}a coroutine function", _ANOTHER, "failed")
    return Finding(what, found, "as the plugin expects", "ok")


_ANOTHER = "SGLang has changed: the plugin stands aside"


def _record(path: str, fields: set[str], whole: bool) -> Finding:
    what = f"fields of {path.rpartition('.')[2]}"
    try:
        record = pkgutil.resolve_name(path)
    except (AttributeError, ImportError):
        return Finding(what, f"there is no {path}", _ANOTHER, "failed")
    names = getattr(record, "__struct_fields__", None) or [field.name for field in dataclasses.fields(record)]
    odd = fields.symmetric_difference(names) if whole else fields.difference(names)
    if odd:
        return Finding(what, f"{', '.join(sorted(odd))} new or missing", _ANOTHER, "failed")
    return Finding(what, f"{'all' if whole else 'has the'} {len(fields)} of the plugin's", "as expected", "ok")


def _settings() -> Finding:
    """Whether everything by which the plugin tells configurations apart is still called that."""
    from sglang.srt.environ import envs
    from sglang.srt.server_args import ServerArgs

    arguments = [limit.setting for limit in LIMITS if not limit.variable]
    gone = [name for name in (*arguments, BROADCAST, METRICS) if not hasattr(ServerArgs, name)]
    variables = [*(limit.setting for limit in LIMITS if limit.variable), UNNAMED, CAPTURES]
    gone += [name for name in variables if not hasattr(envs, name)]
    if gone:
        return Finding("SGLang's settings", f"there is no {', '.join(gone)}", _ANOTHER, "failed")
    return Finding("SGLang's settings", f"{len(LIMITS)} that limit the plugin", "all are called as expected", "ok")


def _passes_through() -> Finding:
    """Whether a scheduler takes inputs that are ready as they are, and turns an error of ours into the request's."""
    what = "inputs made by the plugin"
    try:
        function = pkgutil.resolve_name(INPUTS)
        ready = pkgutil.resolve_name(f"{_MANAGERS}.schedule_batch.MultimodalInputs")(mm_items=[])
        error = pkgutil.resolve_name(f"{_MANAGERS}.io_struct.MMInputsProcessError")("why")
        if function(None, ready) is not ready:
            return Finding(what, "the scheduler does not take them as they are", _ANOTHER, "failed")
        try:
            function(None, error)
        except Exception as raised:
            if "why" not in str(raised):
                raise
        else:
            return Finding(what, "the scheduler takes an error for inputs", _ANOTHER, "failed")
    except Exception as raised:  # SGLang's code, called in a way that it may no longer know
        return Finding(what, f"{type(raised).__name__}: {raised}", _ANOTHER, "failed")
    return Finding(what, "taken as they are; an error fails its request", "as the plugin expects", "ok")
