"""Starts a group's servers, measures what is left of the plan in turns, and stops in time to be called again."""

from __future__ import annotations

import asyncio
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu import counters, spy
from benchmarks.gpu.contenders import CONTENDERS, RUNS_OUR_CODE, Base, command, digest, environment
from benchmarks.gpu.plan import Cell, Group, Plan, Window, schedule, windows
from benchmarks.gpu.servers import Fleet, Server, plugin_directory
from benchmarks.gpu.store import Store
from benchmarks.gpu.store import environment as machine
from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.measure import measure
from coatcheck.bench.serve.result import Run
from coatcheck.errors import CoatcheckError

LOOK_S = 1.0  # between looks at a starting server
QUIET_PERCENT, QUIET_S = 60.0, 30.0  # a server counts as done with a load below so much of a core, or after so long
STOPPING_S = 20.0  # kept of the budget for ending servers
QUIET_LOOK_S = 0.4
WARM_S = 3.0  # of load for each kind of request, before anything is measured
SPY_S = 8.0
TOLD = re.compile(r"coatcheck (carries|stands aside)|max_total_num_tokens=\d+")  # lines of a log that are shown
SLACK_S = 60.0  # beyond what a window should take: then it is given up
_CARRIED = 'coatcheck_sglang_requests_total{way="carried"'
# By contender: counters that grow in each of its windows, or the plugin did not do its work.
WORK_OF_OURS = {"carry": (_CARRIED,), "whole": (_CARRIED, 'coatcheck_sglang_processed_total{how="whole"')}
FAILURES = 2  # windows of a contender that may fail in a call


class OutOfTime(Exception):
    """The budget does not suffice for what comes next."""


@dataclass(frozen=True)
class Settings:
    """Of one call."""

    plan: Plan  # the chosen part
    base: Base
    model: Path
    out: Path
    copies: tuple[Path, ...]
    state: Path
    tp: int
    budget_s: float
    keep: bool
    stagger_s: float
    first_port: int = 31000
    spy: tuple[str, ...] = ()
    spy_cell: str = ""


class Runner:
    """One call. Not reusable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._began = time.monotonic()
        self._fleet = Fleet(settings.state)
        self._plugins = plugin_directory(settings.state)
        self._call = int(time.time())  # pictures of another call are other pictures
        self._count = 0
        self._failed: dict[str, str] = {}  # contenders that did not start in this call
        self._failures: Counter[str] = Counter()  # windows, by contender
        self._commit = ""
        self._code = digest()

    def run(self) -> None:
        """All that fits into the budget. Servers are left running with ``keep`` only."""
        settings = self._settings
        variables = self._variables("default")
        made = machine(settings.base.python, variables)
        self._commit = made["commit"]
        stores = {group.name: self._store(group, made) for group in settings.plan.groups}
        self._say(self._left(stores))
        try:
            for group in settings.plan.groups:
                if settings.spy:
                    self._sample(group)
                elif windows(settings.plan, group, stores[group.name].done):
                    self._measure(group, stores[group.name])
        except OutOfTime as stopped:
            self._say(f"stopped: {stopped}")
        finally:
            if not settings.keep:
                self._fleet.stop(list(self._fleet.servers))
            for store in stores.values():  # so that a copy has all, also what earlier calls measured
                if store.report.runs:
                    store.write()
            self._say(f"ended; {', '.join(self._fleet.servers) or 'no server'} running\n{self._left(stores)}")

    # ------------------------------------------------------------------ a group

    def _measure(self, group: Group, store: Store) -> None:
        plan = self._settings.plan
        self._ready(group)
        for window in windows(plan, group, store.done):
            if window.contender in self._failed:
                continue
            self._need(plan.seconds(window.cell), f"{window.contender} {window.cell.name}")
            try:
                run = self._window(group, window)
            except (CoatcheckError, OSError) as error:
                self._fail(window.contender, f"{window.cell.name}: {error}")
                continue
            store.add(run)
            rate = f"{run.requests_per_s:.2f} requests/s"
            gaps = f"text gap p99 {run.text_gap_ms.p99:.0f} ms" if run.text_gap_ms else "no text gap"
            self._say(f"round {run.round} {window.cell.name} {run.contender}: {rate}, {gaps}, errors {run.errors}")

    def _fail(self, name: str, why: str) -> None:
        """A window that could not be measured; after FAILURES of them, or without its server, no more in this call."""
        self._failures[name] += 1
        server = self._fleet.servers[name]
        ended = server.process() is None
        self._say(f"FAILED: {name} {why}{f', and its server has ended:{chr(10)}{server.tail()}' if ended else ''}")
        if ended or self._failures[name] == FAILURES:
            self._failed[name] = why

    def _window(self, group: Group, window: Window) -> Run:
        server = self._fleet.servers[window.contender]
        families = {name: self._fleet.servers[name].family() for name in group.contenders if name not in self._failed}
        usage = counters.Usage(families)
        before = counters.parse(counters.scrape(server.url))
        start = time.monotonic()
        run = asyncio.run(self._one(server, self._load(window.cell), window.round))
        seconds = time.monotonic() - start
        added = counters.difference(before, counters.parse(counters.scrape(server.url)))
        extra: dict[str, Any] = {
            **run.extra,
            "model": self._settings.model.name,  # the server says its path
            **counters.summary(added),
            "counted_s": round(seconds, 2),  # ramp, window and what followed: counters and CPU time are of all of it
            "cpu_percent": usage.percent(window.contender, seconds),
            "idle_cpu_percent": {name: usage.total(name, seconds) for name in families if name != window.contender},
            **counters.memory(families[window.contender]),
            "gpu": [name for (name,) in counters.gpus("name")],
            "gpu_memory_mib": [int(used) for (used,) in counters.gpus("memory.used")],
            "commit": self._commit,
            "ready_s": server.ready_s,
        }
        extra["quiet_s"] = self._quiet(server)
        for name in WORK_OF_OURS.get(window.contender, ()):
            if not any(value > 0 for counter, value in added.items() if counter.startswith(name)):
                self._say(f"WARNING: {name}… counted nothing in this window; the server's log says why")
        return msgspec.structs.replace(run, extra=extra)

    async def _one(self, server: Server, load: Load, round_: int) -> Run:
        """Raises TimeoutError (an OSError) if it takes much longer than it should."""
        async with asyncio.timeout(load.ramp_s + load.window_s + self._settings.plan.overhead_s + SLACK_S):
            return await measure(server.url, load, contender=server.name, round=round_, tp=self._settings.tp)

    def _load(self, cell: Cell, ramp_s: float | None = None, window_s: float | None = None) -> Load:
        plan = self._settings.plan
        self._count += 1
        return Load(
            clients=cell.clients,
            images=cell.images,
            side=cell.side,
            output_tokens=plan.output_tokens,
            text_streams=plan.text_streams,
            probe_s=plan.probe_s,
            health_s=plan.health_s,
            ramp_s=cell.ramp_s if ramp_s is None else ramp_s,
            window_s=cell.window_s if window_s is None else window_s,
            seed=zlib.crc32(f"{self._call} {self._count}".encode()),
        )

    def _quiet(self, server: Server) -> float:
        """Waits until it is done with what was taken back, so that the next one has the machine to itself."""
        start = time.monotonic()
        while time.monotonic() - start < QUIET_S:
            usage, began = counters.Usage({server.name: server.family()}), time.monotonic()
            time.sleep(QUIET_LOOK_S)
            if usage.total(server.name, time.monotonic() - began) < QUIET_PERCENT:
                break
        return round(time.monotonic() - start, 1)

    # ------------------------------------------------------------------ servers

    def _ready(self, group: Group) -> None:
        """All of the group's servers up and warm, no other. Raises OutOfTime, with the servers still starting."""
        self._fleet.stop([name for name in self._fleet.servers if name not in group.contenders])
        started = 0
        for name in group.contenders:
            wanted, variables = command(self._settings.base, CONTENDERS[name], self._settings.model, 0), self._own(name)
            if self._fleet.has(name, wanted, variables):
                continue
            self._fleet.stop([name])
            if started and self._settings.stagger_s:
                time.sleep(self._settings.stagger_s)
            port = self._fleet.free_port(self._settings.first_port)
            wanted = command(self._settings.base, CONTENDERS[name], self._settings.model, port)
            self._fleet.start(name, port, wanted, self._variables(name), variables)
            self._say(f"started {name} on port {port}")
            started += 1
        waiting = [name for name in group.contenders if name not in self._failed]
        told = time.monotonic()
        while waiting:
            self._need(LOOK_S, f"servers to start: {', '.join(waiting)}")
            for name in list(waiting):
                server = self._fleet.servers[name]
                try:
                    if not self._fleet.look(server):
                        continue
                    self._say(f"{name} ready after {server.ready_s:.0f} s")
                except RuntimeError as error:
                    self._failed[name] = str(error)
                    self._say(f"FAILED: {error}")
                    self._fleet.stop([name])
                waiting.remove(name)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                self._say(f"waiting for {', '.join(waiting)}")
            time.sleep(LOOK_S if waiting else 0)
        self._warm([self._fleet.servers[name] for name in group.contenders if name not in self._failed])

    def _warm(self, servers: Sequence[Server]) -> None:
        """Some requests of each kind to those that had none, all at once: what is compiled late is compiled here."""
        cold = [server for server in servers if not server.warm]
        kinds = {(cell.images, cell.side): cell for cell in self._settings.plan.cells}

        async def every(cell: Cell) -> None:
            load = [self._load(msgspec.structs.replace(cell, clients=min(cell.clients, 8)), 1.0, WARM_S) for _ in cold]
            made = await asyncio.gather(
                *(self._one(server, one, 0) for server, one in zip(cold, load, strict=True)), return_exceptions=True
            )
            for server, result in zip(cold, made, strict=True):
                if isinstance(result, BaseException):
                    self._say(f"warming up {server.name} with {cell.name}: {type(result).__name__}: {result}")

        for cell in kinds.values() if cold else ():
            self._need(self._settings.plan.overhead_s + WARM_S, "warming up")
            asyncio.run(every(cell))
        for server in cold:
            server.warm = True
            self._quiet(server)
        self._fleet.save()
        for server in cold:
            for line in [line for line in server.text().splitlines() if TOLD.search(line)][-3:]:
                self._say(f"{server.name}: {line}")
        if cold:
            used = ", ".join(f"{mib} MiB" for (mib,) in counters.gpus("memory.used"))
            self._say(f"warm: {', '.join(server.name for server in cold)}; GPU memory in use: {used or 'no GPU'}")

    def _own(self, name: str) -> dict[str, str]:
        own = {**self._settings.base.environment, **CONTENDERS[name].environment}
        return own if name not in RUNS_OUR_CODE else {**own, "code": self._code}

    def _variables(self, name: str) -> dict[str, str]:
        return environment(self._settings.base, CONTENDERS[name], os.environ, self._plugins)

    # ------------------------------------------------------------------ samples

    def _sample(self, group: Group) -> None:
        """A window for each of ``spy`` that is in the group; it does not count."""
        settings = self._settings
        names = [name for name in settings.spy if name in group.contenders]
        if not names:
            return
        cell = settings.plan.cell(settings.spy_cell or group.cells[0])
        self._ready(group)
        (settings.state / "spy").mkdir(exist_ok=True)
        for name in names:
            if name in self._failed:
                continue
            self._need(settings.plan.seconds(cell) + SPY_S, f"sampling {name}")
            sampling = asyncio.run(self._sampled(self._fleet.servers[name], cell))
            for directory in (settings.out, *settings.copies):
                directory.mkdir(parents=True, exist_ok=True)
                spy.append(directory / "spy.json", sampling)
            counts = ", ".join(f"{one.name} {one.samples} {one.error}".strip() for one in sampling.processes)
            self._say(f"sampled {name} {cell.name}: {sampling.requests_per_s:.2f} requests/s meanwhile; {counts}")
            self._quiet(self._fleet.servers[name])

    async def _sampled(self, server: Server, cell: Cell) -> spy.Sampling:
        seconds = min(SPY_S, cell.window_s)
        load = self._load(cell, window_s=seconds + 2)
        # Two more seconds of ramp for the load's own processes to start.
        run, processes = await asyncio.gather(
            self._one(server, load, 0),
            spy.sample(server.family(), self._settings.state / "spy", cell.ramp_s + 2, seconds),
        )
        return spy.Sampling(server.name, cell.name, seconds, run.requests_per_s, processes)

    # ------------------------------------------------------------------ this call

    def _need(self, seconds: float, what: str) -> None:
        left = self._settings.budget_s - (time.monotonic() - self._began)
        if not self._settings.keep:
            left -= STOPPING_S
        if seconds > left:
            raise OutOfTime(f"{left:.0f} s left, not {seconds:.0f} s for {what}")

    def _store(self, group: Group, made: dict[str, Any]) -> Store:
        settings = self._settings
        options = {
            "group": msgspec.to_builtins(group),
            "plan": {**msgspec.to_builtins(settings.plan), "groups": None},
            "command": command(settings.base, CONTENDERS["default"], Path(settings.model.name), 0)[1:],
            "contenders": {
                name: {"environment": dict(CONTENDERS[name].environment), "options": list(CONTENDERS[name].options)}
                for name in group.contenders
            },
            "model": (settings.model / "config.json").read_text(),
        }
        return Store(settings.out, settings.copies, group.name, settings.tp, made, options)

    def _left(self, stores: dict[str, Store]) -> str:
        plan = self._settings.plan
        return schedule(plan, {group.name: windows(plan, group, stores[group.name].done) for group in plan.groups})

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", flush=True)
