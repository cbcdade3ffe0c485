"""Stands for ``sglang.srt.plugins.hook_registry``: hooks are kept when registered, and applied later, each alone."""

from __future__ import annotations

import functools
import logging
import pkgutil
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar


class HookType(Enum):
    """The kind that the plugin uses."""

    AROUND = "around"


class HookRegistry:
    """As SGLang's, as far as the plugin sees it."""

    hooks: ClassVar[dict[str, list[Callable[..., Any]]]] = {}
    patched: ClassVar[set[str]] = set()
    breaks: ClassVar[set[str]] = set()  # targets that fail to be hooked

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: HookType = HookType.AROUND, *, source: Any = None) -> None:
        """Keeps it."""
        assert hook_type is HookType.AROUND
        cls.hooks.setdefault(target, []).append(hook)

    @classmethod
    def apply_hooks(cls) -> None:
        """Logs what fails, and goes on."""
        for target, hooks in sorted(cls.hooks.items()):
            if target in cls.patched:
                continue
            try:
                if target in cls.breaks:
                    raise AttributeError(target)
                owner, name = target.rsplit(".", 1)
                wrapped = pkgutil.resolve_name(target)
                for hook in hooks:
                    wrapped = _around(wrapped, hook)
                setattr(pkgutil.resolve_name(owner), name, wrapped)
                cls.patched.add(target)
            except Exception:
                logging.getLogger("sglang").exception("Failed to apply hooks to %s", target)


def _around(original_fn: Callable[..., Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original_fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return hook(original_fn, *args, **kwargs)

    return wrapper
