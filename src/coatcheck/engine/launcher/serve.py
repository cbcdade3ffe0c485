"""``coatcheck serve``: front end in this process, workers and ranks as its children; all end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console

from coatcheck.engine.config import ADMIN_TOKEN, ServeConfig
from coatcheck.engine.http.front_end import FrontEnd
from coatcheck.engine.launcher.processes import RankProcesses, watch
from coatcheck.engine.model_files import check_divides, read_config
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.engine.records import AutoRule
from coatcheck.engine.strategies.table import FALLBACK
from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.process import quiet_libraries

EXAMPLE = Path(__file__).with_name("example.png")  # a scene drawn by training/scenes.py
EXTERNAL = "tcp://127.0.0.1:*"  # where ranks that we do not start connect; the system picks the port
QUESTION = "Describe the image."

START_S = 600.0  # a large checkpoint on a slow disk
EXIT_S = 10.0  # ranks get this long to leave the step loop after Stop; then they are killed


class _Server(uvicorn.Server):
    """Signals are ours: a request under way may finish before the ranks are told to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(config: ServeConfig) -> int:
    """Serves until SIGTERM or SIGINT (exit status 0), a lost rank or a failed start (1).

    Leaves no process and no file behind. A second signal ends running requests at once. Raises ConfigError before
    anything is started.
    """
    check_divides(read_config(config.engine.model), config.tp)
    quiet_libraries()
    os.environ.pop(ADMIN_TOKEN, None)  # no child needs it
    listener = _listen(config.frontend.host, config.frontend.port)
    address = EXTERNAL if config.external_ranks else None
    front_end = FrontEnd(config.frontend, to_entry=address, from_entry=address, admin_token=config.admin_token)
    return await _Launcher(config, front_end, listener).run()


class _Launcher:
    def __init__(self, config: ServeConfig, front_end: FrontEnd, listener: socket.socket) -> None:
        self._config = config
        self._front_end = front_end
        self._listener = listener
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._ranks: RankProcesses | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        server = _Server(
            uvicorn.Config(
                self._front_end.app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=30
            )
        )
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._front_end.start()
            self._start_ranks()
            signalled = asyncio.create_task(self._stopping.wait(), name="signal")
            lost = asyncio.create_task(watch(self._ranks, self._front_end.link), name="watch")
            tasks = [signalled, lost, asyncio.create_task(self._announce(), name="announce")]
            http = asyncio.create_task(server.serve([self._listener]), name="http")
            await asyncio.wait([signalled, lost, http], return_when=asyncio.FIRST_COMPLETED)
            if not lost.done():
                await self._drain(lost)
            loss = None if lost.cancelled() else lost.result()
            if loss is not None:
                self._console.print(f"[red]error:[/red] {loss}; the server ends")
            clean = loss is None and await self._ranks_left()
            server.should_exit = True
            server.force_exit = True
            await asyncio.wait([http], timeout=EXIT_S)
            return 0 if clean else 1
        finally:
            for task in tasks:
                task.cancel()
            if self._ranks is not None:
                self._ranks.kill()
            await self._front_end.close()
            self._listener.close()

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def _start_ranks(self) -> None:
        link = self._front_end.link
        arena = self._front_end.arena.address if self._front_end.arena is not None else None
        settings = RankSettings(self._config.engine, self._config.ranks, link.to_entry, link.from_entry, arena)
        if self._config.external_ranks:
            command = f"torchrun --standalone --nproc-per-node {self._config.tp} --no-python coatcheck rank"
            self._console.print(f"start the ranks with\n  {command} {shlex.quote(settings.encode())}", markup=False)
            return
        self._ranks = RankProcesses(settings, self._config.tp)

    async def _announce(self) -> None:
        """Says when and how the server can be used."""
        try:
            ready = await self._front_end.ready(START_S)
        except (CoatcheckError, TimeoutError) as error:
            self._front_end.link.lost(f"the server did not start: {error or 'not ready in time'}")
            return
        host, port = self._listener.getsockname()[:2]
        url = f"http://{host}:{port}/v1"
        config = self._config
        strategy = config.frontend.strategy
        if strategy in dict(ready.unavailable):
            strategy = f"{FALLBACK} in place of {strategy}"
        self._console.print(
            f"[bold green]ready:[/bold green] [bold]{url}[/bold]  model {config.frontend.model_name}, "
            f"{ready.ranks} ranks, strategy {strategy}\n{auto_in_words(ready.auto)}\ntry it:"
        )
        print(example_command(url, config.frontend.model_name), flush=True)

    async def _drain(self, lost: asyncio.Task[str]) -> None:
        """What runs may finish within the bounded time, unless a rank is lost meanwhile or another signal comes.

        Then the ranks are told to end the rest and to leave.
        """
        self._console.print("stopping: new requests are refused, running ones may finish (signal again to hurry)")
        self._front_end.drain()
        drained = asyncio.create_task(self._front_end.drained(self._config.frontend.shutdown_timeout_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([drained, hurry, lost], return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        hurry.cancel()
        if lost.done():
            return
        lost.cancel()  # from here on ranks are expected to end
        await asyncio.wait([lost])
        await self._front_end.stop_ranks(1.0)
        await self._front_end.drained(1.0)  # what the ranks ended still has to be told to the clients

    async def _ranks_left(self) -> bool:
        """Waits a bounded time until the ranks have left; False if they had to be killed or ended with an error."""
        if self._ranks is None:
            return True
        if not await asyncio.to_thread(self._ranks.wait, EXIT_S):
            self._console.print("[yellow]warning:[/yellow] the ranks did not leave in time; they are killed")
            return False
        return self._ranks.clean()


def auto_in_words(rule: AutoRule) -> str:
    """What auto does on this server, as one line."""
    where = "all payloads ride in the request, as some rank has no arena"
    if rule.inside_bytes is not None:
        where = f"payloads up to {rule.inside_bytes / 1024:.4g} KiB ride in the request, larger ones go by handle"
    when = f"always {rule.timing}"
    if rule.timing == "measured":
        when = f"background where others would wait longer than it does (handover {rule.handover_s * 1e3:.3f} ms)"
    return f"auto: {where}; {when}"


def example_command(url: str, model: str) -> str:
    """One line for a shell that asks about the picture in the package."""
    path = EXAMPLE.relative_to(Path.cwd()) if EXAMPLE.is_relative_to(Path.cwd()) else EXAMPLE
    image = f"data:image/png;base64,'\"$(base64 -w0 {path})\"'"
    content = f'[{{"type":"image_url","image_url":{{"url":"{image}"}}}},{{"type":"text","text":"{QUESTION}"}}]'
    body = f'{{"model":"{model}","temperature":0,"messages":[{{"role":"user","content":{content}}}]}}'
    return f"curl -s {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise ConfigError(f"--host, --port: cannot listen on {host}:{port}: {error.strerror}") from error
