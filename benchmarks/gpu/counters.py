"""What a server says of itself around a window: its /metrics before and after, its processes' CPU time and memory."""

from __future__ import annotations

import subprocess
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 20.0
# SGLang's, of which the difference over the window is kept; labels are added up but for those named here.
KEPT = {
    "sglang:prompt_tokens_total": (),
    "sglang:cached_tokens_total": (),
    "sglang:generation_tokens_total": (),
    "sglang:num_requests_total": (),
    "sglang:num_aborted_requests_total": (),
    "sglang:num_retracted_requests_total": (),
    "sglang:uncached_prompt_tokens_histogram_sum": (),
    "sglang:uncached_prompt_tokens_histogram_count": (),
    "sglang:uncached_prompt_tokens_histogram_bucket": ("le",),
    "sglang:forward_execution_seconds_total": ("category",),
    "sglang:cuda_graph_passes_total": ("mode",),
}
LAG = "coatcheck_event_loop_lag_seconds_bucket"  # of which the distribution is kept
TEXT_BELOW = "100.0"  # uncached tokens: a text of ours has fewer, a request with a picture more
_DIFFERENCE = ("_total", "_sum", "_count")


def scrape(url: str) -> str:
    """A server's /metrics. Raises OSError."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT_S) as reply:
        text: str = reply.read().decode()
        return text


def parse(text: str) -> dict[str, float]:
    """SGLang's metrics in KEPT and all of coatcheck's but buckets, by ``name`` or ``name{label="value"}``."""
    found: dict[str, float] = defaultdict(float)
    samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
    for name, labels, value, *_ in samples:
        if name in KEPT:
            wanted = KEPT[name]
            if name.endswith("_bucket") and labels.get("le") != TEXT_BELOW:
                continue
        elif name.startswith("coatcheck_") and (name == LAG or not name.endswith(("_bucket", "_created"))):
            wanted = tuple(sorted(labels.keys() - {"pid", "strategy"}))
        else:
            continue
        shown = ",".join(f'{label}="{labels[label]}"' for label in wanted if label in labels)
        found[f"{name}{{{shown}}}" if shown else name] += value
    return dict(found)


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Counters: what was added; gauges: as they are after."""
    made = {}
    for name, value in after.items():
        counts = name.split("{")[0].endswith((*_DIFFERENCE, "_bucket"))
        made[name] = round(value - before.get(name, 0.0) if counts else value, 6)
    return made


def uncached_tokens(added: Mapping[str, float]) -> float | None:
    """Prompt tokens computed, not taken from a cache, by request with pictures; None if none ended.

    Texts are told apart by their few tokens, and those few are counted to the pictures: below 1 % of them.
    """
    name = "sglang:uncached_prompt_tokens_histogram"
    count = added.get(f"{name}_count", 0) - added.get(f'{name}_bucket{{le="{TEXT_BELOW}"}}', 0)
    return added[f"{name}_sum"] / count if count > 0 else None


class Usage:
    """CPU time of groups of processes since it was made. ``families``: by server."""

    def __init__(self, families: Mapping[str, list[psutil.Process]]) -> None:
        self._families = families
        self._before = {name: _seconds(processes) for name, processes in families.items()}

    def percent(self, name: str, seconds: float) -> dict[str, float]:
        """Of one core, by process of a server, those above 1 %."""
        before, after = self._before[name], _seconds(self._families[name])
        used = {title: 100 * (spent - before.get(title, 0.0)) / seconds for title, spent in after.items()}
        return {title: round(share, 1) for title, share in sorted(used.items()) if share >= 1}

    def total(self, name: str, seconds: float) -> float:
        """Of one core, all of a server's processes."""
        before, after = self._before[name], _seconds(self._families[name])
        return round(100 * (sum(after.values()) - sum(before.values())) / seconds, 1)


def _seconds(processes: list[psutil.Process]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for process in processes:
        try:
            times = process.cpu_times()
            spent[title(process)] += times.user + times.system
        except psutil.Error:
            continue
    return dict(spent)


def title(process: psutil.Process) -> str:
    """SGLang's own for what it started, "tokenizer" for the process that it was started as."""
    words = process.cmdline()
    if words and words[0].startswith("sglang::"):
        return words[0].split()[0].removeprefix("sglang::")
    return "tokenizer" if "sglang.launch_server" in words else "other"


def memory(processes: list[psutil.Process]) -> dict[str, float]:
    """MiB of resident and of proportional set sizes, of all together. Shared pages count once in the latter."""
    sums = {"Rss": 0, "Pss": 0}
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0])
    return {f"{name.lower()}_mib": round(kib / 1024, 1) for name, kib in sums.items()}


def gpus(*columns: str) -> list[list[str]]:
    """nvidia-smi's columns by GPU; empty where there is no GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def summary(added: Mapping[str, float]) -> dict[str, Any]:
    """What goes into a run's ``extra``: the differences, and tokens computed by request."""
    return {"counters": dict(sorted(added.items())), "uncached_tokens_per_request": uncached_tokens(added)}
