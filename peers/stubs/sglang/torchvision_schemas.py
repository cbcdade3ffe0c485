"""Lets torchvision's CUDA build be imported beside a CPU build of torch, without its operators.

Its own library cannot be loaded then, but importing it adds to two operators that this library defines.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_kept: list[Any] = []  # torch forgets operators whose library is gone


class _Before(MetaPathFinder):
    """Defines them when torchvision is first looked for; torch is not imported before."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define(
                "qnms(Tensor dets, Tensor scores, float iou_threshold, float scale, int zero_point) -> Tensor"
            )
            _kept.append(library)


sys.meta_path.insert(0, _Before())
