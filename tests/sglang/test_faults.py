"""What goes wrong in a real SGLang server with the plugin: a fault on one rank, another SGLang, sudden death.

And what the plugin does not carry, by SGLang's configuration or by its own settings: SGLang answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
import os
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.sglang.questions import Client
from benchmarks.sglang.server import SglangServer
from benchmarks.support.presence import FILES, Presence, left, look
from coatcheck.integrations.sglang.arena_owner import READY_TIMEOUT_S
from coatcheck.integrations.sglang.targets import CALLED, HOOKED, RECORDS, USED
from tests.sglang.conftest import Page, Servers, until_idle, until_whole
from tests.support import sglang_changed, sglang_witness
from training.evaluate import Sample, held_out, held_out_form

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
LONG: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 4000}  # a minute and more
CARRIED_S = 60.0  # until all ranks have mapped the arena, from the first request on
GONE_S = 90.0  # SGLang looks every second whether its processes live, and gives those that it kills 60 s
DOCTOR_S = 300.0  # it imports SGLang
SHOWN_S = 20.0
MIB = 1 << 20
REQUESTS = "coatcheck_sglang_requests_total"
ASIDE = "coatcheck carries nothing for now"
SMALL, LARGE = ((112, 140),), ((364, 448),)  # at most 0.06 MB of uint8, at least 0.4
HUGE = ((800, 1024),)  # at least 1.9 MB
# What SGLang leaves behind when it is killed, also without the plugin. Temporary files of ours are called coatcheck-*.
SGLANGS = (
    *("/dev/shm/sgl_shm_mq_*", "/dev/shm/sglang_loads_*.shm", "/dev/shm/sem.mp-*"),
    *("*/coatcheck-server-*/tmp????????", "*/coatcheck-server-*/torchinductor_*"),  # sockets; torch makes it on import
    "*/coatcheck-server-*/tmp????????/*.db",  # what its /metrics adds up
)


@dataclass
class Running:
    """A server, the system before it was started, and where a file plants a fault."""

    server: SglangServer
    before: Presence
    fault: Path

    @property
    def unpacked(self) -> list[tuple[int, int]]:
        """(rank, bytes) so far."""
        return sglang_witness.unpacked(self.server.log)

    def ranks_since(self, start: int) -> list[int]:
        """Those that have materialized a payload since there were ``start`` of ``unpacked``."""
        return sorted(rank for rank, _ in self.unpacked[start:])

    def arenas(self) -> set[str]:
        """Those that the server's processes have open or mapped."""
        return look(self.server.temporary, self.before).own["memfds of an arena"]

    def plant(self, what: str) -> None:
        """For the next ticket of the last rank: one of the witness's faults."""
        new = self.fault.with_suffix(".new")
        new.write_text(what)
        new.rename(self.fault)

    def said(self, words: str) -> list[str]:
        """Lines of the log."""
        return [line for line in self.server.log if words in line]


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """``start(*options, ranks=, changed=, **settings)``: another server in place of the one that runs."""
    peers = request.config.getoption("--peers")
    current: list[SglangServer] = []

    def end() -> None:
        for server in current:
            server.kill()  # SIGTERM takes SGLang up to 11 s
            server.__exit__(None, None, None)
        current.clear()

    def start(*options: str, ranks: int = 2, changed: bool = False, **settings: str) -> Running:
        end()
        servers.close()
        directory = tmp_path_factory.mktemp("path")
        sglang_witness.install(directory)
        if changed:
            sglang_changed.install(directory)
        fault = directory / "fault"
        environment = {**settings, **path(directory), sglang_witness.FAULT: str(fault)}
        server = SglangServer(*options, ranks=ranks, environment=environment, peers=peers)
        before = look(server.temporary)
        server.__enter__()
        current.append(server)
        return Running(server, before, fault)

    yield start
    end()


@pytest.fixture(scope="module")
def faulty(start: Start) -> Running:
    """Its arena holds less than the tests put into it."""
    running = start("--enable-metrics", COATCHECK_SGLANG_ARENA_MIB="4")
    until_whole(running.server)
    return running


@pytest.fixture(autouse=True)
def no_fault_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves no fault to the next."""
    yield
    if "faulty" in request.fixturenames:
        request.getfixturevalue("faulty").fault.unlink(missing_ok=True)


def path(directory: Path) -> dict[str, str]:
    """This checkout, and before it what a test adds."""
    return {"PYTHONPATH": os.pathsep.join([str(directory), str(ROOT / "src"), str(ROOT)])}


async def is_right(opened: Client, asked: Sample, **more: Any) -> bool:
    (answer,) = await opened.ask(asked, **more)
    return answer.text == asked.answer


async def until(done: Callable[[], bool]) -> None:
    """In ``SHOWN_S``: metrics are written once a second."""
    deadline = time.monotonic() + SHOWN_S
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def until_carried(running: Running, opened: Client, ranks: int) -> None:
    """SGLang's own path has the first requests, until every rank has mapped the arena."""
    deadline = time.monotonic() + CARRIED_S
    for asked in held_out(1000, 20, SMALL):
        before = len(running.unpacked)
        try:
            assert await is_right(opened, asked)
        except httpx.HTTPError as error:
            raise AssertionError(running.server.text) from error  # what it said before it ended, say
        if running.ranks_since(before) == list(range(ranks)):
            return
        assert time.monotonic() < deadline, running.server.text
    raise AssertionError("never carried")


# ---------------------------------------------------------------------- a fault on one rank


async def test_what_sglang_refuses_on_one_rank_fails_its_request_and_no_other(faulty: Running) -> None:
    async with Client(faulty.server.url) as opened:
        await until_carried(faulty, opened, 2)
        for asked in held_out(12, 21, LARGE):
            faulty.plant(sglang_witness.SGLANGS)
            with pytest.raises(httpx.HTTPStatusError) as failed:
                await opened.ask(asked)
            assert not faulty.fault.exists()
            assert failed.value.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
            assert "on rank 1: ValueError" in failed.value.response.text
        # They were more than the arena holds: had one kept its block, there would be no room for the next.
        assert sum(nbytes for rank, nbytes in faulty.unpacked if rank == 1) > 4 * MIB
        before = len(faulty.unpacked)
        for asked in held_out(2, 22, LARGE):
            assert await is_right(opened, asked)
        assert faulty.ranks_since(before) == [0, 0, 1, 1]
        await until_idle(opened)


async def test_a_fault_of_ours_costs_no_request_anything(faulty: Running) -> None:
    async with Client(faulty.server.url) as opened:
        trouble = Page(faulty.server.url).value(REQUESTS, way="trouble")
        for asked in held_out(2, 35, SMALL):
            faulty.plant(sglang_witness.OURS)
            assert await is_right(opened, asked)
            assert not faulty.fault.exists()
        await until(lambda: Page(faulty.server.url).value(REQUESTS, way="trouble") == trouble + 2)
        assert await is_right(opened, *held_out(1, 36, SMALL))


async def test_a_rank_whose_lane_is_stuck_fails_no_request_and_is_used_again_once_it_answers(faulty: Running) -> None:
    async with Client(faulty.server.url) as opened:
        said = len(faulty.said(ASIDE))
        faulty.plant(sglang_witness.STUCK)
        assert all(await asyncio.gather(*(is_right(opened, asked) for asked in held_out(4, 37, SMALL))))
        start = time.monotonic()
        for asked in held_out(4, 38, SMALL):
            assert await is_right(opened, asked)
        assert time.monotonic() - start < 4 * READY_TIMEOUT_S, "each of them waited for the rank"
        await until(lambda: Page(faulty.server.url).value("coatcheck_sglang_breaker_open") == 1)
        assert len(faulty.said(ASIDE)) == said + 1
        faulty.fault.unlink()
        await until(lambda: Page(faulty.server.url).value("coatcheck_sglang_breaker_open") == 0)
        carried = Page(faulty.server.url).carried
        assert await is_right(opened, *held_out(1, 39, SMALL))
        assert Page(faulty.server.url).carried == carried + 1
        assert len(faulty.said(ASIDE)) == said + 1


async def test_of_many_at_once_only_the_one_with_the_fault_fails(faulty: Running) -> None:
    samples = list(held_out(8, 29, SMALL))
    async with Client(faulty.server.url) as opened:
        faulty.plant(sglang_witness.SGLANGS)
        outcomes = await asyncio.gather(*(is_right(opened, asked) for asked in samples), return_exceptions=True)
        failed = [outcome for outcome in outcomes if outcome is not True]
        assert len(failed) == 1 and isinstance(failed[0], httpx.HTTPStatusError), outcomes
        assert "on rank 1: ValueError" in failed[0].response.text
        assert await is_right(opened, samples[0])


async def test_a_fault_within_a_batch_request_fails_it_and_not_the_next(faulty: Running) -> None:
    samples = list(held_out(4, 24, SMALL))
    async with Client(faulty.server.url) as opened:
        faulty.plant(sglang_witness.SGLANGS)
        with pytest.raises(httpx.HTTPStatusError) as failed:
            await opened.ask(*samples)
        assert "on rank 1: ValueError" in failed.value.response.text
        answers = await opened.ask(*samples)
        assert [answer.text for answer in answers] == [asked.answer for asked in samples]


# ---------------------------------------------------------------------- sudden death


async def kill_while_busy(running: Running, victim: psutil.Process) -> None:
    """SIGKILL while every rank holds payloads of the arena; then nothing of the server may be left but SGLang's own."""
    server = running.server
    async with Client(server.url) as opened:
        before = len(running.unpacked)
        asking = [asyncio.create_task(opened.ask(asked, **LONG)) for asked in held_out(4, 25, SMALL)]
        deadline = time.monotonic() + CARRIED_S
        while len(running.unpacked) < before + 8 or await opened.busy() < 4:
            assert time.monotonic() < deadline, server.text
            await asyncio.sleep(0.1)
        during = look(server.temporary, running.before)
        assert len(during.own["memfds of an arena"]) == 1
        assert any(during.own[kind] for kind in FILES)
        victim.kill()
        killed = time.monotonic()
        outcomes = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), GONE_S)
        assert all(isinstance(outcome, httpx.HTTPError) for outcome in outcomes), outcomes
    await asyncio.to_thread(server.process.wait, GONE_S)
    while remains := ours(left(during, look(server.temporary, running.before))):
        assert time.monotonic() < killed + GONE_S, remains
        await asyncio.sleep(0.2)
    rest = left(during, look(server.temporary, running.before))
    print(f"nothing of ours {time.monotonic() - killed:.1f} s after the kill; of SGLang: {rest}")


def ours(remains: dict[str, list[str]]) -> dict[str, list[str]]:
    """What is not known to be SGLang's."""
    found = {
        kind: [thing for thing in things if not any(fnmatch.fnmatch(thing, name) for name in SGLANGS)]
        for kind, things in remains.items()
    }
    return {kind: things for kind, things in found.items() if things}


async def test_a_killed_rank_leaves_nothing_of_ours(faulty: Running) -> None:
    (rank,) = [one for one in faulty.server.family() if "scheduler_TP1" in " ".join(one.cmdline())]
    await kill_while_busy(faulty, rank)


async def test_the_broadcast_flag_is_bypassed_and_a_killed_tokenizer_leaves_nothing_of_ours(start: Start) -> None:
    running = start("--enable-broadcast-mm-inputs-process")
    assert running.said("--enable-broadcast-mm-inputs-process: what coatcheck carries is not broadcast again")
    async with Client(running.server.url) as opened:
        await until_carried(running, opened, 2)
    await kill_while_busy(running, psutil.Process(running.server.process.pid))


# ---------------------------------------------------------------------- another SGLang, other configurations


async def stands_aside(running: Running, reason: str) -> None:
    """It said so once, did nothing, and SGLang answers."""
    async with Client(running.server.url) as opened:
        for asked in (*held_out(2, 26), *held_out_form("two-images", 1, 26)):
            assert await is_right(opened, asked)
        batch = list(held_out(3, 27))
        assert [answer.text for answer in await opened.ask(*batch)] == [asked.answer for asked in batch]
    (said,) = running.said("coatcheck stands aside")
    assert reason in said
    assert not running.unpacked
    assert not running.arenas()
    assert len(sglang_witness.hooked(running.server.log)) >= 3  # the tokenizer's process and two ranks


async def test_with_another_signature_the_plugin_stands_aside_whole(start: Start) -> None:
    running = start(changed=True)
    await stands_aside(running, f"recv_requests: takes {sglang_changed.TAKES}, not (self, local_reqs=...)")
    assert set(sglang_witness.hooked(running.server.log)) == {0}


async def test_a_configuration_that_is_not_served_stands_aside_by_name(start: Start) -> None:
    running = start("--mm-enable-dp-encoder")
    await stands_aside(running, "`--mm-enable-dp-encoder`")
    assert set(sglang_witness.hooked(running.server.log)) == {len(HOOKED)}  # in place, but they pass everything through


# ---------------------------------------------------------------------- settings of ours


def named(prefix: str, in_share: bool) -> Iterator[str]:
    """Request ids that are in a share of one half, or not."""
    for number in range(1000):
        rid = f"{prefix} {number}"
        if (zlib.crc32(rid.encode()) < 1 << 31) == in_share:
            yield rid


async def test_one_rank_half_of_the_requests_and_an_arena_that_is_too_small(start: Start) -> None:
    running = start("--enable-metrics", ranks=1, COATCHECK_SGLANG_SHARE="0.5", COATCHECK_SGLANG_ARENA_MIB="1")
    until_whole(running.server)
    async with Client(running.server.url) as opened:
        await until_carried(running, opened, 1)
        assert running.said("carries multimodal inputs to 1 ranks: an arena of 1 MiB (as set), 50% of requests")

        async def carried(rids: Iterator[str], samples: Iterator[Sample]) -> list[int]:
            before = len(running.unpacked)
            for rid, asked in zip(rids, samples, strict=False):
                assert await is_right(opened, asked, rid=rid)
            return running.ranks_since(before)

        assert await carried(named("small, in it", True), held_out(3, 28, SMALL)) == [0, 0, 0]
        assert await carried(named("small, not in it", False), held_out(3, 28, SMALL)) == []
        assert await carried(named("large, in it", True), held_out(3, 28, HUGE)) == []
        together = zip(named("at once", True), held_out(12, 29, SMALL), strict=False)
        assert all(await asyncio.gather(*(is_right(opened, asked, rid=rid) for rid, asked in together)))


# ---------------------------------------------------------------------- the doctor


def doctor(peers: Path, directory: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status, and findings by what was looked at; run by SGLang's interpreter."""
    done = subprocess.run(
        [peers / "sglang/bin/python", "-m", "coatcheck", "doctor", "--for", "sglang", "--json"],
        env={**os.environ, **path(directory), "SGLANG_USE_CPU_ENGINE": "1", "COATCHECK_SGLANG_ARENA_MIB": "16"},
        capture_output=True,
        text=True,
        timeout=DOCTOR_S,
        check=False,
    )
    with contextlib.suppress(json.JSONDecodeError):
        return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    raise AssertionError(done.stderr)


def failed(findings: dict[str, dict[str, str]]) -> list[str]:
    return [what for what, finding in findings.items() if finding["status"] == "failed"]


@pytest.mark.timeout(DOCTOR_S + 20)
def test_the_doctor_finds_everything_in_the_real_sglang(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    status, findings = doctor(pytestconfig.getoption("--peers"), tmp_path)
    assert (status, failed(findings)) == (0, [])
    checked = [*findings][[*findings].index("SGLang's version") :]  # what the plugin looks at when it loads, to the end
    assert {findings[what]["status"] for what in checked} == {"ok"}
    assert len(checked) == 4 + len([*HOOKED, *CALLED, *RECORDS, *USED])  # version, imports, settings, made inputs


@pytest.mark.timeout(DOCTOR_S + 20)
def test_the_doctor_names_a_signature_that_has_changed(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    sglang_changed.install(tmp_path)
    status, findings = doctor(pytestconfig.getoption("--peers"), tmp_path)
    assert (status, failed(findings)) == (1, ["hook SchedulerRequestReceiver.recv_requests"])
    assert sglang_changed.TAKES in findings["hook SchedulerRequestReceiver.recv_requests"]["found"]
