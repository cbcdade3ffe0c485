"""CPU time of processes, and of everything beside them."""

from __future__ import annotations

import psutil


class CpuMeter:
    """CPU seconds of the engine's processes, and of all that is neither theirs nor ours."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {"": psutil.Process()}
        for name, pid in pids.items():
            try:
                self._processes[name] = psutil.Process(pid)
            except psutil.NoSuchProcess:  # it died: the round will tell
                continue
        self._before = self._read()
        self._whole = _busy()

    def _read(self) -> dict[str, float]:
        times = {}
        for name, process in self._processes.items():
            try:
                times[name] = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                times[name] = 0.0
        return times

    def stop(self) -> tuple[dict[str, float], float]:
        """By process of the engine, and of all others together."""
        after = self._read()
        spent = {name: max(0.0, after[name] - self._before[name]) for name in after}
        others = max(0.0, _busy() - self._whole - sum(spent.values()))
        del spent[""]
        return spent, others


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
