"""SGLang's entry point: registers all hooks, or none and says why once.

SGLang calls :func:`register` in every one of its processes, then applies what was registered.
"""

from __future__ import annotations

import importlib
import logging
import os

from coatcheck.integrations.sglang import settings
from coatcheck.integrations.sglang.rollcall import Hook, RollCall, stand_aside
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

        welcome = f"an arena of {chosen.arena_bytes >> 20} MiB, {chosen.share:.0%} of requests"
        hooks = RollCall(adapter_hooks(chosen), welcome).hooks
        unknown = hooks.keys() ^ {function.path for function in HOOKED}
        if unknown:
            raise LookupError(f"hooks and targets disagree about {', '.join(sorted(unknown))}")
        for path, hook in hooks.items():
            HookRegistry.register(path, hook, HookType.AROUND)
    except Exception as error:
        stand_aside(f"{type(error).__name__}: {error}")


def adapter_hooks(chosen: settings.Settings) -> dict[str, Hook]:
    """What the tokenizer's and the ranks' side hook, by path. They import SGLang, so they are imported here."""
    tokenizer, ranks = (importlib.import_module(f"coatcheck.integrations.sglang.{name}") for name in _SIDES)
    tokenizer.configure(chosen)
    return {**tokenizer.HOOKS, **ranks.HOOKS}
