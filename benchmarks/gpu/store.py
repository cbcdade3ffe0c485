"""A group's results: one file, in which runs gather over many calls. Written after every window."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu.contenders import ROOT
from benchmarks.gpu.counters import gpus
from coatcheck.bench.serve.result import Report, Run
from coatcheck.bench.support.files import read_json, write_json

PACKAGES_S = 120.0
_PACKAGES = (
    "import json; from importlib.metadata import version\n"
    "print(json.dumps({name: version(name) for name in ('sglang', 'torch', 'transformers', 'numpy')}))"
)
_ENVIRONMENT = (
    "import json; from coatcheck.bench.support.environment import environment; print(json.dumps(environment()))"
)


class Store:
    """One group's file, ``OUT/GROUP-tpN.json.gz``, and a copy of it in each of ``copies``."""

    def __init__(
        self,
        out: Path,
        copies: tuple[Path, ...],
        group: str,
        tp: int,
        environment: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.path = out / f"{group}-tp{tp}.json.gz"
        self._copies = copies
        for directory in (out, *copies):
            directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.report = read_json(self.path, Report)
        else:
            self.report = Report(schema=1, environment=environment, options=options, runs=[])

    @property
    def done(self) -> set[tuple[str, int, int, int, int]]:
        """As :attr:`Window.key`."""
        return {(run.contender, run.clients, run.images, run.side, run.round) for run in self.report.runs}

    def add(self, run: Run) -> None:
        """And writes it all; a file is whole at any time."""
        self.report = msgspec.structs.replace(self.report, runs=[*self.report.runs, run])
        self.write()

    def write(self) -> None:
        """To all places."""
        new = self.path.with_suffix(".new.gz")  # which is no *.json.gz
        write_json(self.report, new)
        new.replace(self.path)
        for directory in self._copies:
            shutil.copy(self.path, directory / self.path.name)


def environment(python: str, variables: dict[str, str]) -> dict[str, Any]:
    """Versions and machine, once. In processes of their own: asking torch for a GPU's name takes memory there.

    ``python``: the servers' interpreter, ``variables``: their environment.
    """
    made: dict[str, Any] = _asked([sys.executable, "-c", _ENVIRONMENT], dict(os.environ))
    made["server"] = _asked([python, "-c", _PACKAGES], variables)
    made["commit"] = commit() or made.get("commit", "")
    made["gpu"] = [dict(zip(("name", "driver", "memory_mib"), row, strict=True)) for row in _cards()]
    shared = os.statvfs("/dev/shm")
    made["shm_gib"] = round(shared.f_blocks * shared.f_frsize / 2**30, 1)
    return made


def commit() -> str:
    """Of what pack.sh packed; empty in a checkout."""
    file = ROOT / "COMMIT"
    return file.read_text().strip() if file.exists() else ""


def _cards() -> list[list[str]]:
    return gpus("name", "driver_version", "memory.total")


def _asked(command: list[str], variables: dict[str, str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGES_S, env=variables, check=True)
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"error": str(error)[-500:]}
    return made
