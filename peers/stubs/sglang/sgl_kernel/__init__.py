"""Stands for SGLang's kernels, which have no CPU build: what is taken from here, or from a module below, has every
attribute, and raises when it is called."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch

AT_IMPORT = (  # operators that modules take on any CPU; convert_weight_packed would be taken for AMX
    "fused_gdn_gating_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_sigmoid_mul_cpu",
)


class Missing:
    """A kernel, or a type that kernels take."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self.__name__}.{name}")

    def __call__(self, *values: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(f"{self.__name__} has no CPU build")


__getattr__ = Missing(__name__).__getattr__


class _Below(MetaPathFinder, Loader):
    """Any module of this package."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.startswith(f"{__name__}.") else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = Missing(module.__name__).__getattr__


sys.meta_path.append(_Below())
_library = torch.library.Library("sgl_kernel", "FRAGMENT")
for _name in AT_IMPORT:
    _library.define(f"{_name}() -> ()")
