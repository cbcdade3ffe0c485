"""SGLang in ``sys.modules``, for tests that doctor it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from coatcheck.integrations.sglang import rollcall, settings, targets
from tests.support import sglang
from tests.support.sglang_hooks import HookRegistry


@pytest.fixture
def fake_sglang(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if SGLang 0.5.23 were installed and nothing had been said yet; undoes what is done through it."""
    for name, module in sglang.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(targets, "version", lambda: "0.5.23+cpu")
    for name in [name for name in os.environ if name.startswith(settings.PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(rollcall.SAID, "")  # undone afterwards, whatever is said
    monkeypatch.setattr(HookRegistry, "hooks", {})
    monkeypatch.setattr(HookRegistry, "patched", set())
    monkeypatch.setattr(HookRegistry, "breaks", set())
    return monkeypatch


@pytest.fixture
def fresh(fake_sglang: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports one of the plugin's sides ("tokenizer", "ranks") over the SGLang that is there now."""

    def fresh(side: str) -> Any:
        package = importlib.import_module("coatcheck.integrations.sglang")
        path = f"{package.__name__}.{side}"
        fake_sglang.setattr(package, side, None, raising=False)
        fake_sglang.setitem(sys.modules, path, ModuleType(path))  # so that what was there comes back afterwards
        del sys.modules[path]
        return importlib.import_module(path)

    return fresh
