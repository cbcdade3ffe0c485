"""An object and its tensors to the bytes of one block, and back, without a copy of the tensors on the way back.

A block: 8 bytes, the length of a table; the table (msgpack: the length of each part); the parts, each at a multiple of
``ALIGN`` bytes. The first part is a pickle (protocol 5) of the object with the data of its tensors and arrays taken
out of band; those are the other parts.

Bytes are held as numpy arrays, which the garbage collector does not look into: Python 3.11 crashes when it collects a
cycle, a frame of a cancelled task say, that holds a memoryview of a memoryview.

Pickles name classes, so both sides know the few that there may be: what is packed from anything else is
:class:`Unpackable`, and the engine's own way is left to it; what is unpacked from anything else is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from coatcheck.errors import MaterializeError
from coatcheck.views import tensor_view

ALIGN = 64  # bytes: a cache line, and more than any element's size
_LENGTH = 8  # bytes that say how long the table is, little-endian

# Everything a pickle of ours may name. What SGLang 0.5.23's processors put into their output, and how numpy and msgspec
# rebuild theirs; nothing of it runs code that the pickle brings.
ALLOWED = frozenset(
    {
        ("sglang.srt.managers.schedule_batch", "MultimodalProcessorOutput"),
        ("sglang.srt.managers.schedule_batch", "MultimodalDataItem"),
        ("sglang.srt.multimodal.modality", "Modality"),
        ("sglang.srt.multimodal.modality", "MultimodalInputFormat"),
        ("msgspec._utils", "rebuild"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("array", "array"),
        ("array", "_array_reconstructor"),
        ("numpy", "dtype"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy._core.multiarray", "scalar"),
    }
)


Row = NDArray[np.uint8]  # (bytes,)


class Unpackable(Exception):
    """The object holds something that does not travel this way."""


def _tensor(dtype: str, shape: tuple[int, ...], lent: bool, data: Any) -> torch.Tensor:
    """Stands in a pickle for a tensor. ``lent``: laid over the block, if the reader allows it; else a copy."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise MaterializeError(f"{dtype!r} is no type of tensor")
    if 0 in shape:
        return torch.empty(shape, dtype=kind)
    flat = tensor_view(data, kind)
    return (flat if lent else flat.clone()).view(shape)


@dataclass(frozen=True)
class Packed:
    """What a block is to hold. ``digest``: of all of it, 32 bytes."""

    nbytes: int
    digest: bytes
    _parts: tuple[tuple[int, Row], ...]  # (start, bytes)

    def write(self, room: memoryview) -> None:
        """Copies it to the start of ``room``, without the interpreter's lock. What is between parts is not written."""
        for start, row in self._parts:
            if row.nbytes:
                np.copyto(np.frombuffer(room, np.uint8, row.nbytes, start), row)


class Packer:
    """Packs one object. Keeps what it has laid flat and hashed, so that nothing is copied or hashed twice."""

    def __init__(self) -> None:
        self._flat: dict[int, tuple[torch.Tensor, Row]] = {}  # by the tensor's id, which its entry keeps alive
        self._digests: dict[tuple[int, int], bytes] = {}  # by address and length

    def digest(self, tensor: torch.Tensor) -> bytes:
        """Of its type, shape and values; 32 bytes."""
        head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        return blake3(head).update(self._hash(self.flat(tensor))).digest()

    def pack(self, thing: object, lent: Iterable[torch.Tensor] = ()) -> Packed:
        """``lent``: tensors in it that a reader may leave over the block. Raises Unpackable."""
        file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        try:
            _Pickler(file, buffers, self.flat, {id(tensor) for tensor in lent}).dump(thing)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise Unpackable(str(error)) from error
        parts = [_row(file.getvalue()), *(_row(buffer.raw()) for buffer in buffers)]
        table = msgspec.msgpack.encode([part.nbytes for part in parts])
        head = _row(len(table).to_bytes(_LENGTH, "little") + table)
        *starts, end = _starts(head.nbytes, [part.nbytes for part in parts])
        digest = blake3(head.data)
        for part in parts:
            digest.update(self._hash(part))
        return Packed(end, digest.digest(), ((0, head), *zip(starts, parts, strict=True)))

    def flat(self, tensor: torch.Tensor) -> Row:
        """Its values as bytes, laid in a row where they are not. Raises Unpackable."""
        if id(tensor) not in self._flat:
            if type(tensor) is not torch.Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided:
                raise Unpackable(f"a {type(tensor).__name__} on {tensor.device}")
            if tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
                raise Unpackable("a tensor that is more than its values")
            flat = tensor.contiguous().view(-1).view(torch.uint8)
            self._flat[id(tensor)] = tensor, flat.numpy()
        return self._flat[id(tensor)][1]

    def _hash(self, row: Row) -> bytes:
        if not row.nbytes:
            return b""
        place = (row.ctypes.data, row.nbytes)
        if place not in self._digests:
            self._digests[place] = blake3(row.data).digest()
        return self._digests[place]


def _row(data: bytes | memoryview) -> Row:
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


class _Pickler(pickle.Pickler):
    def __init__(
        self,
        file: io.BytesIO,
        buffers: list[pickle.PickleBuffer],
        flat: Callable[[torch.Tensor], Row],
        lent: set[int],
    ) -> None:
        super().__init__(file, 5, buffer_callback=buffers.append)
        self._flat, self._lent = flat, lent

    def reducer_override(self, one: Any) -> Any:
        """Called for what has no opcode of its own; NotImplemented: as the object itself says."""
        if isinstance(one, torch.Tensor):
            data = pickle.PickleBuffer(self._flat(one))  # type: ignore[arg-type]  # numpy's stubs know no Buffer in 3.11
            return _tensor, (str(one.dtype).removeprefix("torch."), tuple(one.shape), id(one) in self._lent, data)
        if isinstance(one, type) or callable(one):
            name = getattr(one, "__module__", None), getattr(one, "__qualname__", None)
            if one is not _tensor and name not in ALLOWED:
                raise Unpackable(f"{name[0]}.{name[1]}")
        return NotImplemented


def unpack(block: memoryview, lend: bool) -> Any:
    """What was packed. ``lend``: tensors that were packed as such lie over ``block``, and must not be written to.

    Raises MaterializeError if these are not bytes that a :class:`Packer` made.
    """
    try:
        length = int.from_bytes(block[:_LENGTH], "little")
        sizes = msgspec.msgpack.decode(block[_LENGTH : _LENGTH + length], type=list[int])
        *starts, end = _starts(_LENGTH + length, sizes)
        if not sizes or min(sizes) < 0 or end > len(block):
            raise MaterializeError("a block whose parts go beyond its end")
        first, *rest = (block[start : start + size] for start, size in zip(starts, sizes, strict=True))
        return _Unpickler(io.BytesIO(first), lend, rest).load()
    except (pickle.UnpicklingError, msgspec.MsgspecError, EOFError, ValueError, TypeError) as error:
        raise MaterializeError(f"a block that is not one of ours: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, lend: bool, buffers: Iterable[memoryview]) -> None:
        super().__init__(file, buffers=buffers)
        self._lend = lend

    def find_class(self, module: str, name: str) -> Any:
        """Called for every name in the pickle."""
        if (module, name) == (__name__, _tensor.__name__):
            return _tensor if self._lend else _copied
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        found = super().find_class(module, name)
        return (lambda *layout: found(*layout).copy()) if name == "_frombuffer" else found  # arrays are never lent


def _copied(dtype: str, shape: tuple[int, ...], lent: bool, data: Any) -> torch.Tensor:
    return _tensor(dtype, shape, False, data)


def _starts(head: int, sizes: Iterable[int]) -> list[int]:
    """Where each part starts, and, last, where the last one ends."""
    starts, end = [], head
    for size in sizes:
        starts.append(-(-end // ALIGN) * ALIGN)
        end = starts[-1] + size
    return [*starts, end]
