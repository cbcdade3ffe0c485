"""An SGLang that has changed, for tests: its ``SchedulerRequestReceiver.recv_requests`` takes one argument more.

It does so from the module's import on, in every process that has the directory of :func:`install` on its path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "sglang.srt.managers.scheduler_components.request_receiver"
TAKES = "(self, local_reqs=..., deadline=...)"  # as the plugin's check writes it


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        receiver = vars(module)["SchedulerRequestReceiver"]
        genuine = receiver.recv_requests

        def recv_requests(self: Any, local_reqs: Any = None, deadline: float | None = None) -> Any:
            return genuine(self, local_reqs)

        receiver.recv_requests = recv_requests


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == MODULE else None
        if spec is not None:
            assert spec.origin is not None
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def install(directory: Path) -> None:
    """``sitecustomize``: Python imports it when it starts."""
    (directory / "sitecustomize.py").write_text(f"from {__name__} import change\n\nchange()\n")


def change() -> None:
    """In this process."""
    sys.meta_path.insert(0, _Finder())
