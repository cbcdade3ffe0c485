"""A request's inputs to bytes and back: each large tensor to a block of its own, all the rest to one pickle, the body.

So the same picture in another prompt is the same block. The body names large tensors by their index.

Bytes are held as numpy arrays, which the garbage collector does not look into: Python 3.11 crashes when it collects a
cycle, a frame of a cancelled task say, that holds a memoryview of a memoryview.

Pickles name classes, so both sides know the few that there may be: what is packed from anything else is
:class:`Unpackable`, and the engine's own way is left to it; what is unpacked from anything else is refused.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from coatcheck.errors import MaterializeError
from coatcheck.integrations.sglang.compact import Compact, Stored, levels
from coatcheck.tensor_view import tensor_view

MOST_BODY = 4 << 20  # bytes: every rank gets the body by a socket; the ids of 100,000 tokens are 0.5 MB
LARGE = 1 << 16  # bytes of a tensor that gets a block: below it a block's 4 KiB pages and a rank's lease cost more

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
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy._core.multiarray", "scalar"),
    }
)


Row = NDArray[np.uint8]  # (bytes,)
V = TypeVar("V")


class Unpackable(Exception):
    """The object holds something that does not travel this way."""


def leaves(value: object) -> Iterator[torch.Tensor]:
    """The tensors in lists, tuples and dictionaries, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from leaves(one)


def large(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those that get a block, each once. Cheap: no byte is looked at.

    Raises Unpackable for what has no plain values in this process's memory.
    """
    found: dict[int, torch.Tensor] = {}
    for tensor in tensors:
        if type(tensor) is not torch.Tensor or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise Unpackable(f"a {type(tensor).__name__} on {tensor.device}")
        if tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            raise Unpackable("a tensor that is more than its values")
        if tensor.nbytes >= LARGE:
            found[id(tensor)] = tensor
    return list(found.values())


def flat(tensor: torch.Tensor) -> Row:
    """Its values as bytes; a copy if they do not lie in a row."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()


class Remembered(Generic[V]):
    """A value for a tensor, as long as the tensor is there and unchanged. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, V]] = {}  # by id: tensor, its version

    def known(self, tensor: torch.Tensor) -> V | None:
        """Without looking at a byte."""
        found = self._known.get(id(tensor))  # of inference tensors none: torch does not count their changes
        if found is None or found[0]() is not tensor or found[1] != tensor._version:
            return None
        return found[2]

    def keep(self, tensor: torch.Tensor, value: V) -> None:
        """Of a small tensor, or one of inference mode, nothing is kept."""
        if tensor.nbytes >= LARGE and not tensor.is_inference():
            key = id(tensor)
            gone = weakref.ref(tensor, lambda _: self._known.pop(key, None))
            self._known[key] = gone, tensor._version, value


class Digests:
    """Digests of tensors' types, shapes and values, 32 bytes each. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept = Remembered[bytes]()

    def known(self, tensor: torch.Tensor) -> bytes | None:
        """Without looking at a byte."""
        return self._kept.known(tensor)

    def of(self, tensor: torch.Tensor, row: Row | None = None) -> bytes:
        """``row``: its bytes, where they have been laid flat already."""
        digest = self.known(tensor)
        if digest is None:
            head = f"{tensor.dtype}{tuple(tensor.shape)} ".encode()
            digest = blake3(head).update((flat(tensor) if row is None else row).data).digest()
            self._kept.keep(tensor, digest)
        return digest


def pack(thing: object, blocks: Sequence[torch.Tensor] | Sequence[Stored], lent: Iterable[torch.Tensor] = ()) -> bytes:
    """The body. ``blocks``: what travels beside it; ``lent``: the tensors that a reader may leave over their block.

    Raises Unpackable.
    """
    file = io.BytesIO()
    try:
        _Pickler(file, {id(one): index for index, one in enumerate(blocks)}, {id(one) for one in lent}).dump(thing)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise Unpackable(str(error)) from error
    if file.tell() > MOST_BODY:
        raise Unpackable(f"{file.tell()} bytes beside the tensors")
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, blocks: dict[int, int], lent: set[int]) -> None:
        super().__init__(file, 5)
        self._blocks, self._lent = blocks, lent
        self._levels: dict[int, bytes] = {}

    def reducer_override(self, one: Any) -> Any:
        """Called for what has no opcode of its own; NotImplemented: as the object itself says."""
        if isinstance(one, torch.Tensor) and id(one) in self._blocks:
            return _block, (self._blocks[id(one)], _dtype(one), tuple(one.shape), id(one) in self._lent)
        if isinstance(one, Stored):
            if id(one) not in self._blocks:
                raise Unpackable("an image of another request")
            table = one.table
            key = id(table)
            if key not in self._levels:  # so that a table stands in the pickle once
                self._levels[key] = levels(table)
            described = tuple(one.handle.shape), self._levels[key], table.temporal, table.area
            return _compact, (self._blocks[id(one)], *described)
        if isinstance(one, torch.Tensor):
            large([one])  # raises Unpackable
            return _tensor, (_dtype(one), tuple(one.shape), flat(one).tobytes())
        if isinstance(one, type) or callable(one):
            name = getattr(one, "__module__", None), getattr(one, "__qualname__", None)
            if one not in _OURS and name not in ALLOWED:
                raise Unpackable(f"{name[0]}.{name[1]}")
            return NotImplemented
        reduced = one.__reduce_ex__(5)
        if isinstance(reduced, str):  # a name, which is pickled without being asked for here: torch.float32, say
            raise Unpackable(f"{type(one).__name__} {reduced}")
        return reduced


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def unpack(body: bytes, blocks: Sequence[memoryview]) -> Any:
    """What was packed. Lent tensors lie over ``blocks``, and must not be written to; all else is a copy.

    Raises MaterializeError if this is not what ``pack`` made, or a block is missing or too small.
    """
    try:
        return _Unpickler(body, blocks).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError) as error:
        raise MaterializeError(f"a body that is not one of ours: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, body: bytes, blocks: Sequence[memoryview]) -> None:
        super().__init__(io.BytesIO(body))
        # No method of this object: it would be in this object's memo, and the blocks held until the collector comes.
        self._block = partial(_lay, blocks)
        self._compact = partial(_lay_compact, blocks)

    def find_class(self, module: str, name: str) -> Any:
        """Called for every name in the pickle."""
        if module == __name__:
            if name == _block.__name__:
                return self._block
            if name == _compact.__name__:
                return self._compact
            if name == _tensor.__name__:
                return _tensor
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def _lay(blocks: Sequence[memoryview], index: int, dtype: str, shape: tuple[int, ...], lent: bool) -> torch.Tensor:
    if not 0 <= index < len(blocks):
        raise MaterializeError(f"block {index} of {len(blocks)}")
    made = _view(dtype, shape, blocks[index])
    return made if lent else made.clone()


def _lay_compact(
    blocks: Sequence[memoryview], index: int, shape: tuple[int, ...], table: bytes, temporal: int, area: int
) -> Compact:
    return Compact(_lay(blocks, index, "uint8", shape, lent=True), table, temporal, area)


def _compact(index: int, shape: tuple[int, ...], table: bytes, temporal: int, area: int) -> Compact:
    """Stands in a pickle for an image that a worker wrote."""
    raise MaterializeError(f"block {index} is read with its body only")


def _block(index: int, dtype: str, shape: tuple[int, ...], lent: bool) -> torch.Tensor:
    """Stands in a pickle for a tensor that travels beside it."""
    raise MaterializeError(f"block {index} is read with its body only")


def _tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> torch.Tensor:
    """Stands in a pickle for a small tensor."""
    if 0 in shape:
        return torch.empty(shape, dtype=_kind(dtype))
    return _view(dtype, shape, data).clone()


_OURS = (_block, _compact, _tensor)


def _view(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> torch.Tensor:
    try:
        return tensor_view(data, _kind(dtype)).view(shape)
    except (RuntimeError, ValueError) as error:
        raise MaterializeError(f"{len(data)} bytes for a tensor {dtype} of shape {shape}: {error}") from error


def _kind(dtype: str) -> torch.dtype:
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise MaterializeError(f"{dtype!r} is no type of tensor")
    return kind
