"""Servers that stay up over calls, results that gather, what is left when a call is out of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.contenders import Base
from benchmarks.gpu.plan import Cell, Group, Plan
from benchmarks.gpu.runner import Runner, Settings
from benchmarks.gpu.servers import Fleet
from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.result import Report, Run
from coatcheck.bench.support.files import read_json
from coatcheck.errors import ConfigError
from tests.benchmarks.gpu.conftest import make_run

SERVER = '''
"""Stands in for SGLang's: says that it is ready, and has metrics."""
import http.server, sys

if "{broken}" in sys.argv:
    sys.exit("no such option")
port = int(sys.argv[sys.argv.index("--port") + 1])
count = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        body = ('coatcheck_sglang_requests_total{way="carried"} %d\\n' % count).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", port), Handler)
print("The server is fired up and ready to roll!", flush=True)
server.serve_forever()
'''
CELL, OTHER = Cell(2, 1, 448, 0.0, 0.1), Cell(3, 1, 448, 0.0, 0.1)
GROUP = Group("g", ("carry", "default"), (CELL.name, OTHER.name), rounds=2)
PLAN = Plan((CELL, OTHER), (GROUP,), 32, 4, 1.0, 0.5, overhead_s=0.0, start_s=1.0)


class Measured(list[tuple[str, int, int]]):
    """Contender, round and clients of every window; ``fail``: what to raise for which contender."""

    fail: str = ""
    seconds: float = 0.0

    async def __call__(self, url: str, load: Load, *, contender: str, round: int, tp: int | None = None) -> Run:
        if round:
            self.append((contender, round, load.clients))
            if contender == self.fail:
                raise ConfigError("the server is gone")
            await asyncio.sleep(self.seconds)
        cell = (load.clients, load.images, load.side)
        return make_run(contender, round, cell=cell)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    made = Measured()
    monkeypatch.setattr(runner, "measure", made)
    monkeypatch.setattr(runner, "QUIET_LOOK_S", 0.01)
    monkeypatch.setattr(runner, "LOOK_S", 0.1)
    monkeypatch.setattr(runner, "machine", lambda python, variables: {"commit": "abc"})
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of a call with servers that only say that they are ready."""
    import sys

    package = tmp_path / "path/sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(SERVER.replace("{broken}", "--broken"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    base = Base(sys.executable, {}, (), (tmp_path / "path",))
    made = Settings(
        plan=PLAN,
        base=base,
        model=tmp_path / "model",
        out=tmp_path / "out",
        copies=(tmp_path / "copy",),
        state=tmp_path / "state",
        tp=2,
        budget_s=60.0,
        keep=True,
        stagger_s=0.0,
    )
    yield made
    fleet = Fleet(made.state)
    fleet.stop(list(fleet.servers))


def replaced(settings: Settings, **changes: Any) -> Settings:
    import dataclasses

    return dataclasses.replace(settings, **changes)


def test_all_is_measured_in_turns_and_written(settings: Settings, measured: Measured) -> None:
    Runner(settings).run()
    assert measured == [
        *[("carry", 1, 2), ("default", 1, 2), ("default", 1, 3), ("carry", 1, 3)],
        *[("default", 2, 2), ("carry", 2, 2), ("carry", 2, 3), ("default", 2, 3)],
    ]
    report = read_json(settings.out / "g-tp2.json.gz", Report)
    assert read_json(settings.copies[0] / "g-tp2.json.gz", Report) == report
    assert [(run.contender, run.round, run.clients) for run in report.runs] == measured
    extra = report.runs[0].extra
    assert extra["commit"] == "abc"
    assert extra["counters"] == {'coatcheck_sglang_requests_total{way="carried"}': 1.0}
    assert extra["idle_cpu_percent"].keys() == {"default"}
    assert extra["pss_mib"] > 0
    assert report.options["group"]["contenders"] == ["carry", "default"]


def test_a_later_call_goes_on_with_the_same_servers(
    settings: Settings, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    Runner(
        replaced(settings, plan=msgspec.structs.replace(PLAN, groups=(msgspec.structs.replace(GROUP, rounds=1),)))
    ).run()
    before = {name: server.pid for name, server in Fleet(settings.state).servers.items()}
    assert before.keys() == {"carry", "default"}
    capsys.readouterr()
    Runner(settings).run()
    assert "started" not in capsys.readouterr().out
    assert {name: server.pid for name, server in Fleet(settings.state).servers.items()} == before
    assert len(measured) == 8
    assert len({*measured}) == 8
    Runner(settings).run()
    assert len(measured) == 8


def test_without_keep_nothing_is_left_running(settings: Settings, measured: Measured) -> None:
    Runner(settings).run()
    pids = [server.pid for server in Fleet(settings.state).servers.values()]
    Runner(replaced(settings, keep=False)).run()
    assert not Fleet(settings.state).servers
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_a_call_that_is_out_of_time_leaves_the_rest(
    settings: Settings, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = msgspec.structs.replace(CELL, window_s=1000.0)
    plan = msgspec.structs.replace(
        PLAN, cells=(slow, OTHER), groups=(msgspec.structs.replace(GROUP, cells=(OTHER.name, slow.name)),)
    )
    Runner(replaced(settings, plan=plan)).run()
    assert measured == [("carry", 1, 3), ("default", 1, 3)]
    said = capsys.readouterr().out
    assert "stopped:" in said and "not 1000 s for default 2x1-448" in said
    assert len(read_json(settings.out / "g-tp2.json.gz", Report).runs) == 2


def test_a_window_that_fails_is_left_for_the_next_call(settings: Settings, measured: Measured) -> None:
    measured.fail = "carry"
    Runner(settings).run()
    report = read_json(settings.out / "g-tp2.json.gz", Report)
    assert {run.contender for run in report.runs} == {"default"}
    assert [one[0] for one in measured].count("carry") == runner.FAILURES
    measured.fail = ""
    Runner(settings).run()
    assert len(read_json(settings.out / "g-tp2.json.gz", Report).runs) == 8


def test_a_server_that_does_not_start_is_reported_and_the_others_are_measured(
    settings: Settings, measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from benchmarks.gpu.contenders import CONTENDERS

    broken = {**CONTENDERS, "default": dataclasses.replace(CONTENDERS["default"], options=("--broken",))}
    monkeypatch.setattr(runner, "CONTENDERS", broken)
    Runner(settings).run()
    assert {one[0] for one in measured} == {"carry"}
    assert "default did not start:\nno such option" in capsys.readouterr().out


def test_servers_with_other_options_are_not_taken_for_the_wanted(settings: Settings, measured: Measured) -> None:
    Runner(settings).run()
    before = {name: server.pid for name, server in Fleet(settings.state).servers.items()}
    other = Base(settings.base.python, {}, ("--other",), settings.base.paths)
    plan = msgspec.structs.replace(PLAN, groups=(msgspec.structs.replace(GROUP, rounds=3),))
    Runner(replaced(settings, base=other, plan=plan)).run()
    after = {name: server.pid for name, server in Fleet(settings.state).servers.items()}
    assert before.keys() == after.keys() and not {*before.values()} & {*after.values()}


def test_a_server_is_known_by_more_than_its_number(settings: Settings, measured: Measured) -> None:
    Runner(settings).run()
    fleet = Fleet(settings.state)
    server = fleet.servers["carry"]
    server.created -= 100
    fleet.save()
    assert "carry" not in Fleet(settings.state).servers
    server.created += 100
    fleet.save()
    assert "carry" in Fleet(settings.state).servers
    began = time.monotonic()
    fleet.stop(["carry", "nobody"])
    assert time.monotonic() - began < 5
    assert server.process() is None
