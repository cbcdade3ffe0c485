"""An SGLang plugin beside ours, for tests: says what is hooked and prepared; plants faults on the last rank.

It hooks none of SGLang's functions: ours stands aside if another plugin hooks the same ones.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from coatcheck.errors import MaterializeError
from coatcheck.integrations.sglang.plugin import GROUP, NAME

# Environment: a file. While it is there the last rank fails once and removes it, or is stuck, by what it says.
FAULT = "COATCHECK_TEST_FAULT"
OURS, SGLANGS, STUCK = "ours", "SGLang's", "stuck"  # an error of our code, one of SGLang's, until the file is gone
REASON = "a planted fault"

_UNPACKS = re.compile(r"witness: rank (\d+) unpacks (\d+) bytes")
_HOOKED = re.compile(r"witness: (\d+) hooks of ours")


def install(directory: Path) -> None:
    """Makes what ``directory``, once it is on the path, needs for SGLang to find this plugin."""
    found = directory / "coatcheck_witness-1.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: coatcheck-witness\nVersion: 1\n")
    (found / "entry_points.txt").write_text(f"[{GROUP}]\nwitness = {__name__}:register\n")


def register() -> None:
    """In each of SGLang's processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.runtime_context import get_parallel

    from coatcheck.integrations.sglang import ranks

    apply_hooks, genuine = HookRegistry.apply_hooks, vars(ranks)["unpack"]

    def apply() -> None:
        apply_hooks()
        sources = [source for path in HookRegistry._patched for _, _, source in HookRegistry._hooks[path]]
        _say(f"witness: {sum(source.plugin_name == NAME for source in sources)} hooks of ours")

    made = vars(ranks)["MultimodalInputs"].from_processor_output

    def unpack(body: bytes, blocks: Sequence[memoryview]) -> Any:
        parallel = get_parallel()
        _say(f"witness: rank {parallel.tp_rank} unpacks {sum(block.nbytes for block in blocks)} bytes")
        if planted(STUCK):
            while Path(os.environ[FAULT]).exists():
                time.sleep(0.05)
        if planted(OURS):
            raise MaterializeError(REASON)
        return genuine(body, blocks)

    def process(*args: Any, **kwargs: Any) -> Any:
        if planted(SGLANGS):
            raise ValueError(REASON)
        return made(*args, **kwargs)

    def planted(what: str) -> bool:
        parallel, fault = get_parallel(), Path(os.environ[FAULT])
        if parallel.tp_rank != parallel.tp_size - 1 or not fault.exists() or fault.read_text() != what:
            return False
        if what != STUCK:
            fault.unlink()
        return True

    mock.patch.object(ranks, "unpack", unpack).start()
    mock.patch.object(ranks, "MultimodalInputs", SimpleNamespace(from_processor_output=process)).start()
    mock.patch.object(HookRegistry, "apply_hooks", apply).start()


def _say(line: str) -> None:
    """As one line, although ranks write at the same time."""
    os.write(sys.stdout.fileno(), f"\n{line}\n".encode())


def hooked(log: Sequence[str]) -> list[int]:
    """What the lines say: for each process, how many hooks of ours SGLang has applied there."""
    return [int(found[1]) for line in log if (found := _HOOKED.search(line))]


def unpacked(log: Sequence[str]) -> list[tuple[int, int]]:
    """What the lines say: (rank, bytes of its blocks), in order."""
    return [(int(found[1]), int(found[2])) for line in log if (found := _UNPACKS.search(line))]
