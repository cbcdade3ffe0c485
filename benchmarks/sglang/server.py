"""A real SGLang server with tensor-parallel ranks on the CPU, serving the default model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from coatcheck.bench.support.server import LoggedProcess
from training.evaluate import DEFAULT_MODEL

PEERS = Path(__file__).parents[2] / ".peers"
HOST = "127.0.0.1"

PLUGIN = "COATCHECK_SGLANG_ENABLED"

_IS_FOUND = """
import sys
from importlib.metadata import entry_points
sys.exit(not entry_points(group="sglang.srt.plugins", name="coatcheck"))
"""
_READY = "The server is fired up and ready to roll!"
# Without SGLang's kernels SGLANG_CPU_OMP_THREADS_BIND binds nothing: each rank would have as many threads as there are
# cores, which spin for one another. Two ranks on two cores: 90 ms a token, with one thread each 22 to 24 ms.
CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CPU_OPTIONS = (
    *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native", "--mm-attention-backend", "sdpa"),
    *("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled", "--skip-server-warmup"),
    *("--mem-fraction-static", "0.1", "--max-total-tokens", "32768"),
    # sdpa's mask is quadratic in the patches of all images that are encoded together: 16 requests at once took 8 GB.
    *("--prefill-max-requests", "1"),
    *("--chunked-prefill-size", "1024"),  # an image of 1024 x 1024 pixels has 1,369 tokens
)


class SglangServer(LoggedProcess):
    """Context manager: ready on entry, ended by SIGTERM on exit.

    ``peers`` has the environment that ``make test-sglang`` builds; ``options`` are added to SGLang's command line,
    ``environment`` to this process's own; ``within`` is a command that becomes the one that follows it. ``plugin`` says
    whether ours is to act, by its own setting. Raises RuntimeError if it is to and SGLang would not find it,
    FileNotFoundError without the environment.
    """

    def __init__(
        self,
        *options: str,
        ranks: int = 2,
        plugin: bool = True,
        environment: Mapping[str, str] | None = None,
        peers: Path = PEERS,
        within: Sequence[str] = (),
    ) -> None:
        python = peers / "sglang" / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"{python}: no such interpreter; 'make test-sglang' builds it")
        if plugin and subprocess.run([python, "-c", _IS_FOUND], timeout=60, check=False).returncode:
            raise RuntimeError(f"{python} finds no plugin of ours; 'make test-sglang' installs it")
        port = _free_port()
        super().__init__(
            [
                *within,
                *(str(python), "-m", "sglang.launch_server", "--model-path", str(DEFAULT_MODEL)),
                *("--host", HOST, "--port", str(port), "--tp", str(ranks), *CPU_OPTIONS, *options),
            ],
            {
                **CPU_ENVIRONMENT,
                "SGLANG_CPU_OMP_THREADS_BIND": binding(ranks),
                PLUGIN: str(int(plugin)),
                **(environment or {}),
            },
        )
        self.url = f"http://{HOST}:{port}"  # without /v1

    def is_ready(self, line: str) -> bool:
        """See :class:`LoggedProcess`."""
        return _READY in line

    def kill(self) -> None:
        """At once, with all that it started. Idempotent."""
        started = self.family() if self.process.poll() is None else []
        super().kill()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def binding(ranks: int) -> str:
    """A core for each rank, in turns where there are fewer; to be ``SGLANG_CPU_OMP_THREADS_BIND``."""
    cores = sorted(os.sched_getaffinity(0))
    return "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
