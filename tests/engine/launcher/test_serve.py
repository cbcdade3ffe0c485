"""``coatcheck serve`` as a user runs it: real processes, real HTTP, the official client."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from coatcheck.bench.support.server import ServerProcess, family

pytestmark = [pytest.mark.timeout(150), pytest.mark.processes]

# The null runner starts sooner; an answer takes its time all the same.
SMALL = ("--tp", "2", "--arena-mib", "64")
NULL = (*SMALL, "--runner", "null", "--step-ms", "10")


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)


def say(url: str, max_tokens: int = 8) -> openai.types.chat.ChatCompletion:
    with client(url) as opened:
        return opened.chat.completions.create(
            model="coatcheck-default",
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=max_tokens,
            extra_body={"ignore_eos": True},
        )


def all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=15)[1]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*SMALL, "--strategy", "17a57fd86", "--shutdown-timeout", "5") as running:
        yield running


def test_the_printed_command_is_answered(server: ServerProcess) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = next(line for line in server.log if line.startswith("curl"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert '"finish_reason":"stop"' in done.stdout.replace(" ", "")


def test_health_models_and_metrics(server: ServerProcess) -> None:
    root = server.url.removesuffix("/v1")
    say(server.url)
    assert httpx.get(f"{root}/health").status_code == 200
    assert [model.id for model in client(server.url).models.list()] == ["coatcheck-default"]
    assert 'strategy="object-inline"' in httpx.get(f"{root}/metrics").text


def test_processes_carry_names(server: ServerProcess) -> None:
    names = {process.name() for process in server.family()}
    assert {"coatcheck-rank0", "coatcheck-rank1", "coatcheck-work0", "coatcheck-work1"} <= names


def test_sigterm_lets_requests_finish_and_leaves_nothing() -> None:
    with ServerProcess(*NULL, "--workers", "1", "--shutdown-timeout", "30") as server:
        processes = server.family()
        say(server.url)
        answers: list[openai.types.chat.ChatCompletion] = []
        running = threading.Thread(target=lambda: answers.append(say(server.url, 300)))
        running.start()
        time.sleep(1.0)
        assert server.stop() == 0
        running.join(10)
        assert answers[0].usage
        assert answers[0].usage.completion_tokens == 300
        assert all_gone(processes)
        assert not server.left_behind()


def test_a_lost_rank_ends_the_server_and_its_requests() -> None:
    with ServerProcess(*NULL, "--workers", "1") as server:
        processes = server.family()
        failures: list[Exception] = []

        def ask() -> None:
            try:
                while True:
                    say(server.url, 2000)
            except openai.OpenAIError as error:
                failures.append(error)

        running = threading.Thread(target=ask)
        running.start()
        time.sleep(1.0)
        victim = next(process for process in processes if process.name() == "coatcheck-rank1")
        os.kill(victim.pid, signal.SIGKILL)
        assert server.process.wait(30) == 1
        running.join(10)
        assert failures
        assert "rank 1" in server.text
        assert "SIGKILL" in server.text
        assert all_gone(processes)


def test_kill_9_of_the_server_ends_everything() -> None:
    with ServerProcess(*NULL) as server:
        processes = server.family()
        assert len(processes) >= 5
        server.process.kill()
        assert all_gone(processes)
        assert not server.left_behind()


@pytest.fixture
def torchrun_server() -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[bytes], str]]:
    """A front end that does not start its ranks, the torchrun that does, and the URL."""
    command = [sys.executable, "-m", "coatcheck", "serve", "--port", "0", "--external-ranks", "--workers", "1", *NULL]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as front:
        try:
            assert front.stderr is not None
            assert "start the ranks" in front.stderr.readline()
            with subprocess.Popen(shlex.split(front.stderr.readline()), env=environment) as ranks:
                try:
                    ready = front.stderr.readline()
                    assert "ready:" in ready, ready
                    url = next(word for word in ready.split() if word.startswith("http"))
                    assert say(url).usage
                    yield front, ranks, url
                finally:
                    ranks.terminate()  # not kill: torchrun must end its ranks
        finally:
            front.kill()


External = tuple[subprocess.Popen[str], subprocess.Popen[bytes], str]


def test_ranks_started_by_torchrun_leave_with_the_front_end(torchrun_server: External) -> None:
    front, ranks, _ = torchrun_server
    front.terminate()
    assert front.wait(30) == 0
    assert ranks.wait(30) == 0


def test_ranks_started_by_torchrun_end_when_the_front_end_is_killed(torchrun_server: External) -> None:
    front, ranks, _ = torchrun_server
    front.kill()
    assert ranks.wait(30) == 0


def test_the_front_end_ends_when_ranks_started_by_torchrun_are_killed(torchrun_server: External) -> None:
    front, ranks, url = torchrun_server
    for process in family(ranks.pid)[1:]:
        process.kill()
    assert front.wait(30) == 1
    with pytest.raises(openai.APIConnectionError):
        say(url)
