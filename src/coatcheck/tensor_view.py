"""Tensors over memory that belongs to somebody else."""

from __future__ import annotations

import warnings

import torch

from coatcheck.wire import Buffer

with warnings.catch_warnings():
    # torch warns, once in a process, that writing through a tensor over read-only memory is undefined. Whoever gets
    # such a tensor does not write, and clones if it must. At import, because filters are the whole process's, and
    # tensors are laid out on threads.
    warnings.simplefilter("ignore")
    torch.frombuffer(bytes(1), dtype=torch.uint8)


def tensor_view(data: Buffer, dtype: torch.dtype) -> torch.Tensor:
    """(values,) over ``data``, which it keeps alive, without a copy. Not to be written to if ``data`` is read-only.

    Raises ValueError if ``data`` is empty, or no whole number of values.
    """
    return torch.frombuffer(data, dtype=dtype)
