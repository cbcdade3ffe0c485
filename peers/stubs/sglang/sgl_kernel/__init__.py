"""Stands for SGLang's kernels, which have no CPU build: what is imported from here raises when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*values: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU build")

    return missing
