"""The rank processes of one tensor-parallel group on this host, and who notices their end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.ranks.settings import STORE_FD, RankSettings
from coatcheck.errors import RankLost
from coatcheck.process import PARENT

COMMAND = (sys.executable, "-m", "coatcheck.engine.ranks")
WATCH_S = 0.2  # how often ranks are looked at; a death is noticed within this


class RankProcesses:
    """Starts ``size`` ranks and ends them. Call from one thread that outlives the ranks: they die with it.

    ``command`` takes the settings as its last argument.
    """

    def __init__(self, settings: RankSettings, size: int, command: Sequence[str] = COMMAND) -> None:
        encoded = settings.encode()
        listener = socket.create_server(("127.0.0.1", 0))  # rank 0 inherits it: no port is guessed
        try:
            environment = {
                **os.environ,
                PARENT: str(os.getpid()),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(listener.getsockname()[1]),
            }
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
            # OpenMP threads that spin while they wait cost a shared machine dear: with one other busy process on two
            # cores, one rank served 8 requests/s spinning and 18 to 21 passive
            # (benchmarks.checks.ranks_agree --ranks 1).
            environment.setdefault("OMP_WAIT_POLICY", "passive")
            for name in ("TORCHELASTIC_RUN_ID", STORE_FD):
                environment.pop(name, None)
            self._processes: list[subprocess.Popen[bytes]] = []
            for rank in range(size):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                if rank == 0:
                    own[STORE_FD] = str(listener.fileno())
                self._processes.append(
                    subprocess.Popen(
                        [*command, encoded],
                        env={**environment, **own},
                        stdin=subprocess.DEVNULL,
                        pass_fds=[listener.fileno()] if rank == 0 else [],
                    )
                )
        finally:
            listener.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, by rank."""
        return tuple(process.pid for process in self._processes)

    def check(self) -> None:
        """Raises RankLost if a rank has ended; of several, one that was killed, as the others end for want of it."""
        ended = [(process.poll(), rank, process.pid) for rank, process in enumerate(self._processes)]
        causes = sorted((status, rank, pid) for status, rank, pid in ended if status is not None)
        if causes:
            status, rank, pid = causes[0]
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise RankLost(f"rank {rank} (pid {pid}) {how}")

    def wait(self, timeout_s: float) -> bool:
        """Waits until all have ended; False if some have not after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return True

    def clean(self) -> bool:
        """True if all have ended, each with status 0."""
        return all(process.poll() == 0 for process in self._processes)

    def kill(self) -> None:
        """Ends whatever still runs, at once, and reaps it. Idempotent."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


async def watch(ranks: RankProcesses | None, link: RankLink) -> str:
    """Waits until a rank has ended, which it tells ``link``, or ``link`` knows of a loss; returns why.

    Without ``ranks`` (something else started them) only ``link`` can know.
    """
    while True:
        await asyncio.sleep(WATCH_S)
        if ranks is not None:
            try:
                ranks.check()
            except RankLost as error:
                link.lost(str(error))
                return str(error)
        if link.loss is not None:
            return link.loss
