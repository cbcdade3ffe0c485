"""Who is compared: the same SGLang command with another environment or option each, and what all have in common."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import coatcheck

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, or where its code was unpacked
PLUGIN = "COATCHECK_SGLANG_ENABLED"
RESIDENT = "COATCHECK_BENCH_RESIDENT"  # switches the oracle on: see resident.py


@dataclass(frozen=True)
class Contender:
    """``environment`` and ``options`` are added to what all have."""

    what: str  # for the table's legend
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


_WITHOUT = {PLUGIN: "0"}

CONTENDERS: Mapping[str, Contender] = {
    "whole": Contender("coatcheck's plugin at its default settings: workers process images", {PLUGIN: "1"}),
    "carry": Contender(
        "coatcheck's plugin with `COATCHECK_SGLANG_MODE=carry`: SGLang processes images",
        {PLUGIN: "1", "COATCHECK_SGLANG_MODE": "carry"},
    ),
    "default": Contender("SGLang as installed", _WITHOUT),
    "hash": Contender("`SGLANG_MM_PRECOMPUTE_HASH=1`", {**_WITHOUT, "SGLANG_MM_PRECOMPUTE_HASH": "1"}),
    "ipc": Contender("`--mm-feature-transport cuda_ipc`", _WITHOUT, ("--mm-feature-transport", "cuda_ipc")),
    "flag": Contender(
        "`--enable-broadcast-mm-inputs-process`, the way of 17a57fd86",
        _WITHOUT,
        ("--enable-broadcast-mm-inputs-process",),
    ),
    "resident": Contender(
        "oracle, not a choice: preprocessing done once, pixels on every rank already, the same model work",
        {**_WITHOUT, RESIDENT: "1"},
    ),
}


RUNS_OUR_CODE = ("whole", "carry", "resident")  # so that a server that is left running is not used after a change


def digest() -> str:
    """Of the code that these run."""
    found = hashlib.sha256()
    for file in sorted([*Path(coatcheck.__file__).parent.rglob("*.py"), Path(__file__).parent / "resident.py"]):
        found.update(file.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Base:
    """What all contenders share."""

    python: str
    environment: Mapping[str, str]
    options: tuple[str, ...]
    paths: tuple[Path, ...]  # before PYTHONPATH


# Three servers share a GPU. Free memory is looked at by SGLang in four places (0.5.23):
# - bootstrap._check_tp_memory_balance fails a rank whose GPU has 10 % more free than another's. Servers that start side
#   by side fill their GPUs at different moments, so the check is made to warn only.
# - KVCacheConfigurator._profile_available_bytes: what is free after loading, less (1 - fraction) of what was free
#   before, less 0.1 to 1.1 GB for multimodal caches, has to be above 0. With three servers of 8.5 GB of weights that
#   start at once on 80 GB, and two pools already taken, 79 - 3 * 8.5 - 2 * 8.6 - 0.15 * 79 - 1.1 = 23 GB are left.
# - config_from_budget takes the smaller of that and --max-total-tokens: 300,000 tokens of 28 KB, 8.6 GB of 23.
# - compute_post_capture_kv_resize, after the graphs, asks again and is capped by --max-total-tokens, too.
FRACTION = "0.85"


def cuda(tp: int, kv_tokens: int) -> Base:
    """On ``tp`` GPUs, each server with room for ``kv_tokens`` tokens."""
    return Base(
        python=sys.executable,
        environment={"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0", "HF_HUB_OFFLINE": "1"},
        options=(
            *("--load-format", "dummy", "--random-seed", "1", "--tp", str(tp)),
            # flash_ops, 1.1 GB, is not carried there.
            *(
                "--attention-backend",
                "triton",
                "--mm-attention-backend",
                "triton_attn",
                "--sampling-backend",
                "pytorch",
            ),
            *("--max-total-tokens", str(kv_tokens), "--mem-fraction-static", FRACTION),
            # More than clients, text streams and probes together, or decoding loses its graphs: 25 ms a token, not 5.
            *("--cuda-graph-max-bs-decode", "128"),
            "--sleep-on-idle",  # servers whose turn it is not are to cost nothing
            "--enable-metrics",
        ),
        paths=(),
    )


def cpu(tp: int) -> Base:
    """SGLang's CPU build from ``make test-sglang``, to try the benchmark itself; its figures mean nothing."""
    from benchmarks.sglang.server import CPU_ENVIRONMENT, CPU_OPTIONS, PEERS, binding

    return Base(
        python=str(PEERS / "sglang/bin/python"),
        environment={**CPU_ENVIRONMENT, "SGLANG_CPU_OMP_THREADS_BIND": binding(tp)},
        options=("--tp", str(tp), *CPU_OPTIONS, "--sleep-on-idle", "--enable-metrics"),
        paths=(ROOT / "src",),
    )


def command(base: Base, contender: Contender, model: Path, port: int) -> list[str]:
    """SGLang's command line."""
    return [
        *(base.python, "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), *base.options, *contender.options),
    ]


def environment(base: Base, contender: Contender, inherited: Mapping[str, str], plugins: Path) -> dict[str, str]:
    """The whole one. ``plugins``: a directory in which SGLang finds the oracle's entry point.

    No setting of the plugin's is inherited: it is measured as it is by default.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith("COATCHECK_SGLANG_")}
    paths = [*base.paths]
    if RESIDENT in contender.environment:
        paths += [plugins, ROOT]
    before = [path for path in inherited.get("PYTHONPATH", "").split(":") if path]
    path = ":".join(dict.fromkeys([*map(str, paths), *before]))
    return {**kept, "PYTHONPATH": path, **base.environment, **contender.environment}
