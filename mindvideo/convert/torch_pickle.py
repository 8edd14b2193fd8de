# SPDX-License-Identifier: Apache-2.0
"""What the pickle of a PyTorch file says, without unpickling it.

A pickle is a program for a small stack machine, whose instructions may call any function of any module. Python's own
`Unpickler` with a restricted `find_class` would still build objects and set their state by rules that this project does
not control, and takes memory for sizes that a pickle only announces. So the standard library's decoder
(`pickletools.genops`) names the instructions one by one, and `load` acts on those few that a state dict consists of. It
imports nothing and calls nothing: a function's name stands for data (`TensorView`) or for nothing (`OPAQUE`), and every
other name or instruction is a ValueError that tells it. Memory grows with the number of instructions, which is bounded.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

MOST_INSTRUCTIONS = 1_000_000  # 35 make a tensor
MOST_AXES = 32  # numpy has no more
BFLOAT16 = "bfloat16"  # numpy has no name for it

STORAGES = {
    "torch.FloatStorage": "f4", "torch.DoubleStorage": "f8", "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": BFLOAT16, "torch.LongStorage": "i8", "torch.IntStorage": "i4", "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1", "torch.ByteStorage": "u1", "torch.BoolStorage": "?", "torch.ComplexFloatStorage": "c8",
    "torch.ComplexDoubleStorage": "c16", "torch.storage.UntypedStorage": "u1", "torch.UntypedStorage": "u1",
}  # fmt: skip
DTYPES = {
    "torch.float32": "f4", "torch.float64": "f8", "torch.float16": "f2", "torch.bfloat16": BFLOAT16,
    "torch.int64": "i8", "torch.int32": "i4", "torch.int16": "i2", "torch.int8": "i1", "torch.uint8": "u1",
    "torch.uint16": "u2", "torch.uint32": "u4", "torch.uint64": "u8", "torch.bool": "?", "torch.complex64": "c8",
    "torch.complex128": "c16",
}  # fmt: skip
# Numbers and arrays of numpy beside the weights, such as a best score: let stand, and not read.
_IGNORED = {
    "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "_codecs.encode", "torch.device",
}  # fmt: skip
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
OPAQUE = object()


class Name(NamedTuple):
    """A function or class that the pickle names."""

    of: str


class Storage(NamedTuple):
    """A row of numbers elsewhere in the file; `size` counts them."""

    key: str
    dtype: str
    size: int


class TensorView(NamedTuple):
    """Numbers of a storage; offset and strides count numbers of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """The value of the pickle that starts here, made of dicts, lists, tuples, numbers, text and `TensorView`, and the
    storages that it names. The stream ends up behind it."""
    machine = _Machine()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MOST_INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")
        machine.act(instruction.name, argument)
    if len(machine.stack) != 1 or machine.marks:
        raise ValueError("its pickle does not end in one value")
    return machine.stack[0], machine.storages


class _Machine:
    """The stack, the stacks below each mark, and what was noted for later use."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.copied = 0

    def act(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple([self.stack.pop() for _ in range(int(name[-1]))][::-1]))
        elif action := _ACTIONS.get(name):
            action(self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its pickle uses the instruction {name}, which no state dict needs")

    def memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def make_tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def append(self, _: None) -> None:
        item = self.stack.pop()
        _as(list, self.stack[-1]).append(item)

    def appends(self, _: None) -> None:
        items = self._since_mark()
        _as(list, self.stack[-1]).extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def set_items(self, _: None) -> None:
        items = self._since_mark()
        _put(self.stack[-1], items)

    def name(self, argument: str) -> None:
        self.stack.append(_allowed(argument.replace(" ", ".", 1)))

    def stack_name(self, _: None) -> None:
        last, first = self.stack.pop(), self.stack.pop()
        self.stack.append(_allowed(f"{_as(str, first)}.{_as(str, last)}"))

    def refer(self, _: None) -> None:
        """A storage, which PyTorch keeps outside of the pickle."""
        match self.stack.pop():
            case ("storage", Name(kind), str(key), _, int(size), *views) if views in ([], [None]):
                storage = Storage(key, _of(STORAGES, kind), _count(size))
            case _:
                raise ValueError("its pickle refers to something that is no storage")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key[:80]!r} is described in two ways")
        self.stack.append(storage)

    def reduce(self, _: None) -> None:
        arguments, called = _as(tuple, self.stack.pop()), _as(Name, self.stack.pop())
        # Three instructions copy a list that was noted, however long it is.
        self.copied += sum(len(argument) for argument in arguments if isinstance(argument, (list, tuple)))
        if self.copied > MOST_INSTRUCTIONS:
            raise ValueError(f"its pickle copies more than {MOST_INSTRUCTIONS} values")
        self.stack.append(_CALLS[called.of](*arguments) if called.of in _CALLS else _ignored(called.of))

    def build(self, _: None) -> None:
        """State of an object: of an OrderedDict (`_metadata`) or of what is not read. It is left out."""
        self.stack.pop()
        if self.stack[-1] is not OPAQUE:
            _as(dict, self.stack[-1])


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MEMOIZE": _Machine.memoize, "MARK": _Machine.mark, "TUPLE": _Machine.make_tuple, "APPEND": _Machine.append,
    "APPENDS": _Machine.appends, "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.stack_name, "BINPERSID": _Machine.refer,
    "REDUCE": _Machine.reduce, "BUILD": _Machine.build,
}  # fmt: skip


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorView:
    storage = _as(Storage, storage)
    return _view(storage, storage.dtype, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    """Of a type that has no storage class of its own: the storage counts bytes."""
    return _view(_as(Storage, storage), _of(DTYPES, _as(Name, dtype).of), offset, shape, strides)


def _view(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> TensorView:
    shape, strides = (tuple(map(_count, _as(tuple, numbers))) for numbers in (shape, strides))
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides; at most {MOST_AXES} are read")
    return TensorView(storage, dtype, _count(offset), shape, strides)


def _parameter(tensor: Any, *_: Any) -> TensorView:
    return _as(TensorView, tensor)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        _put(found, [key, value])
    return found


def _size(numbers: Any) -> tuple[int, ...]:
    return tuple(map(_count, _as(tuple, numbers)))


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_ALLOWED = _CALLS.keys() | STORAGES.keys() | DTYPES.keys() | _IGNORED


def _allowed(name: str) -> Name:
    name = name.replace("torch.cuda.", "torch.", 1) if name.endswith("Storage") else name
    if name not in _ALLOWED:
        raise ValueError(f"it asks for {name[:80]!r}, which no state dict needs; nothing of it was run")
    return Name(name)


def _ignored(name: str) -> object:
    if name not in _IGNORED:
        raise ValueError(f"its pickle calls {name!r}")
    return OPAQUE


def _of(table: dict[str, str], name: str) -> str:
    if name not in table:
        raise ValueError(f"its pickle takes {name!r} for a type of numbers")
    return table[name]


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has {type(value).__name__} where {kind.__name__} must be")
    return value


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**62:
        raise ValueError(f"its pickle has {type(number).__name__} where a size must be, or one out of range")
    return number


def _put(target: Any, items: list[Any]) -> None:
    """Keys and values in turn into a dict. Keys are plain: the hash of nested tuples can take forever."""
    if len(items) % 2 or not all(key is None or isinstance(key, (str, int, float)) for key in items[::2]):
        raise ValueError("its pickle has a dict whose keys are neither text nor numbers")
    _as(dict, target).update(zip(items[::2], items[1::2], strict=True))
