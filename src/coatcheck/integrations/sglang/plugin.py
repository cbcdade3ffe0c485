"""SGLang's entry point: registers all hooks, or none and says why once.

SGLang calls :func:`register` in every one of its processes, then applies what was registered.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import partial
from typing import Any

from coatcheck.integrations.sglang import settings
from coatcheck.integrations.sglang.rollcall import RollCall, stand_aside
from coatcheck.integrations.sglang.targets import HOOKED, check, failures

GROUP = "sglang.srt.plugins"  # the entry points that SGLang loads
NAME = "coatcheck"  # ours among them, as SGLANG_PLUGINS names it
_SIDES = ("tokenizer", "ranks")

logger = logging.getLogger(__name__)


def register() -> None:
    """Raises nothing: whatever is wrong, SGLang serves as without the plugin."""
    try:
        chosen = settings.read(os.environ)
        if not chosen.enabled:
            logger.info("%s=0: coatcheck registers nothing", settings.ENABLED)
            return
        problem = failures(check())
        if problem:
            stand_aside(problem)
            return
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        tokenizer, ranks = adapters()
        roll_call = RollCall({**tokenizer.HOOKS, **ranks.HOOKS}, ranks.join, partial(tokenizer.open_arena, chosen))
        hooks = roll_call.hooks
        unknown = hooks.keys() ^ {function.path for function in HOOKED}
        if unknown:
            raise LookupError(f"hooks and targets disagree about {', '.join(sorted(unknown))}")
        for path, hook in hooks.items():
            HookRegistry.register(path, hook, HookType.AROUND)
    except Exception as error:
        stand_aside(f"{type(error).__name__}: {error}")


def adapters() -> tuple[Any, Any]:
    """The tokenizer's and the ranks' side. They import SGLang, so they are imported here."""
    tokenizer, ranks = (importlib.import_module(f"coatcheck.integrations.sglang.{name}") for name in _SIDES)
    return tokenizer, ranks
