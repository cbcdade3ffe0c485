"""SGLang in ``sys.modules``, for tests that doctor it."""

from __future__ import annotations

import os
import sys

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
