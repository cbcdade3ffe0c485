"""Which of SGLang's configurations the plugin serves, and for which it stands aside, with the reason.

What is not named here does not touch the way of a request's inputs from the tokenizer to the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The plugin serves only these values of one of SGLang's arguments or environment variables."""

    setting: str  # field of SGLang's ServerArgs, or name of an environment variable
    served: tuple[object, ...]
    name: str  # as its users know it
    why: str

    @property
    def variable(self) -> bool:
        """True: an environment variable, in ``sglang.srt.environ.envs``."""
        return self.setting.isupper()


_ONE_HOST = "the arena is memory of one host"
_OTHER_WAY = "requests reach the ranks another way"
_ON_GPU = "features are on the GPU already"
# sglang/srt/arg_groups/model_overrides/qwen3_vl.py: one node, compute capability 9.0, 60 GiB and more, no cache.
_ON_HOPPER = (
    f"{_ON_GPU}; SGLang chooses cuda_ipc by itself for Qwen3-VL and its MoE on H100, H200 and the like: "
    "`--mm-feature-transport cpu` gives the choice back"
)
_UNTESTED = "not tested"
LIMITS = (
    Limit("nnodes", (1,), "several nodes (`--nnodes` above 1)", _ONE_HOST),
    Limit("dp_size", (1,), "data parallel (`--dp-size` above 1)", _OTHER_WAY),
    Limit("attn_dp_size", (1,), "DP attention (`--attn-dp-size` above 1)", "ranks receive different requests"),
    Limit("attn_cp_size", (1,), "context parallel attention (`--attn-cp-size` above 1)", _UNTESTED),
    Limit("pp_size", (1,), "pipeline parallel (`--pp-size` above 1)", "stages relay requests to each other"),
    Limit("elastic_ep_backend", (None,), "elastic expert parallel (`--elastic-ep-backend`)", "ranks come and go"),
    Limit("disaggregation_mode", ("null",), "prefill/decode disaggregation (`--disaggregation-mode`)", _OTHER_WAY),
    Limit("encoder_only", (False,), "encoder disaggregation, its encoder (`--encoder-only`)", _OTHER_WAY),
    Limit("language_only", (False,), "encoder disaggregation, its language model (`--language-only`)", _OTHER_WAY),
    Limit("enable_pdmux", (False,), "PD multiplexing (`--enable-pdmux`)", _UNTESTED),
    Limit("tokenizer_worker_num", (1,), "`--tokenizer-worker-num` above 1", "the arena has one owner"),
    Limit("skip_tokenizer_init", (False,), "`--skip-tokenizer-init`", "SGLang does not share memory then, either"),
    Limit("use_ray", (False,), "Ray (`--use-ray`)", _ONE_HOST),
    Limit("smg_grpc_mode", (False,), "the SMG gRPC server (`--smg-grpc-mode`)", _UNTESTED),
    Limit("mm_feature_transport", (None, "cpu"), "`--mm-feature-transport cuda_ipc` or `cuda_vmm`", _ON_HOPPER),
    Limit("mm_enable_dp_encoder", (False,), "`--mm-enable-dp-encoder`", _UNTESTED),
    Limit("enable_mm_global_cache", (False,), "`--enable-mm-global-cache`", "its keys are SGLang's own hashes"),
    Limit("trust_mm_content_hashes", (False,), "`--trust-mm-content-hashes`", _UNTESTED),
    Limit("SGLANG_RUST_SERVER", (False,), "the Rust server (`SGLANG_RUST_SERVER`)", "it has no tokenizer in Python"),
    Limit("SGLANG_USE_CUDA_IPC_TRANSPORT", (False,), "`SGLANG_USE_CUDA_IPC_TRANSPORT`", _ON_GPU),
    Limit("SGLANG_USE_PICKLE_IPC", (True,), "`SGLANG_USE_PICKLE_IPC=0`", _UNTESTED),
    Limit("SGLANG_MM_BUFFER_SIZE_MB", (0,), "`SGLANG_MM_BUFFER_SIZE_MB`", "hashing on the GPU: there is none to do"),
)

# What touches the inputs' way, and is served.
SERVED = (
    ("tensor parallel on one host (`--tp` of any size, 1 included)", "a rank is a scheduler process"),
    ("batch requests and parallel sampling (`n` above 1)", "an item that is sent again is not written again"),
    ("streaming, aborts, `abort_all`", "as without the plugin"),
    ("sessions", "their requests take SGLang's own path: the features outlive the request"),
    ("`--enable-broadcast-mm-inputs-process`", "what travels by handle is not broadcast again; the log says so"),
    ("`SGLANG_MM_PRECOMPUTE_HASH`", "not needed: the plugin computes the same hash, on a thread too"),
    ("`--scheduler-recv-interval`, `--sleep-on-idle`", "respected"),
    ("features that are no CPU tensors", "such a request takes SGLang's own path"),
)
BROADCAST = "enable_broadcast_mm_inputs_process"
METRICS = "enable_metrics"
CAPTURES = "SGLANG_VIT_ENABLE_CUDA_GRAPH"  # graphs of vision towers are captured while the server serves
UNNAMED = "SGLANG_MM_SKIP_COMPUTE_HASH"  # items are to have no names by content


def published() -> dict[str, object]:
    """SGLang's resolved arguments and variables in this process, after it has published them, by :attr:`Limit.setting`.

    Raises whatever SGLang raises before that.
    """
    from sglang.srt.environ import envs
    from sglang.srt.runtime_context import get_server_args

    arguments = get_server_args().resolved_dict()
    found = {limit.setting: getattr(envs, limit.setting).get() for limit in LIMITS if limit.variable}
    return found | {name: arguments[name] for name in (*(w.setting for w in LIMITS if not w.variable), BROADCAST)}


def metrics_wanted() -> bool:
    """SGLang measures itself, and has prepared this process for it. Raises as ``published``."""
    from sglang.srt.runtime_context import get_observability

    return bool(getattr(get_observability(), METRICS))


def obstacles(settings: Mapping[str, object]) -> list[str]:
    """The configurations among these settings that the plugin does not serve, each with its reason."""
    return [f"{limit.name}: {limit.why}" for limit in LIMITS if settings[limit.setting] not in limit.served]


def table() -> str:
    """What is served and what is not, as Markdown, for docs/sglang.md."""
    rows = [f"| {name} | yes | {note} |\n" for name, note in SERVED]
    rows += [f"| {limit.name} | stands aside | {limit.why} |\n" for limit in LIMITS]
    return "".join(["| configuration | served | why, or how |\n", "|---|---|---|\n", *rows])
