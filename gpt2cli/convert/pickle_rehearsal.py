"""Owns the rehearsal of a pickle: what it would build, found out without building any of it.

A pickle is a program. torch's weights-only reader runs no foreign code, but it does as it is told:
it makes buffers and tensors of any size, and hangs on tuples nested in tuples. Here the program is
followed with stand-ins, and only what a checkpoint of weights consists of is let through: numbers,
strings, lists, dictionaries, and dense tensors that lie inside storages which are there.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2cli.errors import InputError

MAX_PROGRAM = 4 << 20  # bytes; that of GPT-2 XL with its optimizer has 300,000
_MAX_DEPTH = 64
_MAX_STACK = 50_000
_MAX_NUMBER = 2**48

_ORDERED_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
ITEM_BYTES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexFloatStorage": 8,
    "torch ComplexDoubleStorage": 16,
}


@dataclass(frozen=True)
class Storage:
    """A claim: a block of memory of this many bytes is stored under this key."""

    key: str
    kind: str
    n_items: int

    @property
    def n_bytes(self) -> int:
        return self.n_items * ITEM_BYTES[self.kind]


@dataclass
class Rehearsal:
    """What a pickle would make: its value, with stand-ins for tensors, and the storages it needs."""

    value: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)


class _Ordered(dict[Any, Any]):
    """Stands for a collections.OrderedDict."""


@dataclass(frozen=True)
class _Global:
    name: str  # "module name"


class _Tensor:
    """Stands for a tensor or parameter."""


class _Mark:
    """Where a group on the stack begins."""


_MARK = _Mark()


def rehearse(path: Path, program: io.BytesIO) -> Rehearsal:
    """Follow the pickle that begins at `program`'s position; it stands behind its end afterwards.

    Raises InputError where it is damaged, or would do more than hold weights.
    """
    machine = _Machine(path)
    try:
        for opcode, argument, _ in pickletools.genops(program):
            step = _STEPS.get(opcode.name)
            if step is None:
                raise damaged(path, f"the pickle has an instruction that torch does not write: {opcode.name}")
            step(machine, argument)
            if len(machine.stack) > _MAX_STACK:
                raise damaged(path, "the pickle is nested too deeply")
        (machine.made.value,) = machine.stack
    # genops raises ValueError, UnicodeDecodeError among them, for what it cannot read.
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error)) from None
    _check_depth(path, machine.made.value)
    return machine.made


def damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: the checkpoint is damaged", why[:200], "fetch or save the file again")


class _Machine:
    """The stack, the memory and the results of one pickle. Methods are named after opcodes' effects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made = Rehearsal()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_group(self) -> list[Any]:
        """What was pushed since the last mark."""
        group = []
        while (value := self.stack.pop()) is not _MARK:
            group.append(value)
        return group[::-1]

    def pop_tuple(self, n_items: int) -> None:
        items = self.stack[-n_items:]
        if len(items) < n_items or any(item is _MARK for item in items):
            raise IndexError("a tuple lacks items")
        self.stack[-n_items:] = [tuple(items)]

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("something is appended to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise TypeError("a key is set in what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise TypeError("a dictionary has a key that is neither text nor number")
            target[key] = value

    def name(self, name: str) -> None:
        """A class or function, by its name: only the few that weights are made of."""
        if name not in (_ORDERED_DICT, _TENSOR, _PARAMETER) and name not in ITEM_BYTES:
            dotted = ".".join(name.split(" "))
            if name.startswith("torch"):
                raise InputError(
                    f"{self.path}: holds {dotted}",
                    "dense tensors of the usual types are read, and nothing else of torch",
                    "save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
                )
            raise InputError(
                f"{self.path}: the file wants to run code: {dotted}",
                "a checkpoint of weights has no need to; nothing of it was run",
                "do not open the file unless you trust it; where it was made, save the weights alone:"
                " torch.save(model.state_dict(), 'weights.pt')",
            )
        self.push(_Global(name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case _Global(name), () if name == _ORDERED_DICT:
                self.push(_Ordered())
            case _Global(name), (
                Storage() as storage,
                offset,
                shape,
                strides,
                bool(),
                _Ordered() as hooks,
            ) if name == _TENSOR and not hooks:
                self._check_tensor(storage, offset, shape, strides)
                self.push(_Tensor())
            case _Global(name), (_Tensor(), bool(), _Ordered() as hooks) if name == _PARAMETER and not hooks:
                self.push(_Tensor())
            case _:
                raise TypeError("something is called that does not make a tensor")

    def set_state(self) -> None:
        """torch's state dicts carry versions of their modules; nothing else carries anything."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Ordered) or type(state) is not dict or set(state) - {"_metadata"}:
            raise TypeError("attributes are set on what has none")

    def load_storage(self) -> None:
        match self.stack.pop():
            # The last, in files of torch before 1.6, would be a part of another storage.
            case ("storage", _Global(kind), str(key), str(), int(n_items), *rest) if (
                kind in ITEM_BYTES and rest in ([], [None]) and 0 <= n_items <= _MAX_NUMBER
            ):
                storage = Storage(key, kind, n_items)
            case _:
                raise TypeError("a storage is described in an unknown way")
        if self.made.storages.setdefault(key, storage) != storage:
            raise TypeError(f"storage {key!r} is described in two ways")
        self.push(storage)

    def _check_tensor(self, storage: Storage, offset: Any, shape: Any, strides: Any) -> None:
        """The tensor lies inside its storage, and has no more items than that: no stride repeats any."""
        if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
            raise TypeError("a tensor has no proper shape")
        for number in (offset, *shape, *strides):
            if type(number) is not int or not 0 <= number <= _MAX_NUMBER:
                raise TypeError(f"a tensor has the shape {shape!r} and the strides {strides!r}")
        if math.prod(shape) > storage.n_items:
            raise TypeError(f"a tensor of shape {list(shape)} has a storage of {storage.n_items} items")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.n_items:
            raise TypeError(
                f"a tensor of shape {list(shape)} ends at item {last} of a storage of {storage.n_items}"
            )


def _check_depth(path: Path, value: Any) -> None:
    """Level by level, each object once: pickles may share parts, and hold themselves."""
    level, seen = [value], {id(value)}
    for _ in range(_MAX_DEPTH):
        children = [child for parent in level for child in _children(parent) if id(child) not in seen]
        seen.update(map(id, children))
        level = children
    if level:
        raise damaged(path, f"the pickle is nested more than {_MAX_DEPTH} levels deep")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _nothing(machine: _Machine, argument: Any) -> None:
    """The version of the protocol, and the end."""


def _pop_two(machine: _Machine) -> list[Any]:
    value, key = machine.stack.pop(), machine.stack.pop()
    return [key, value]


# The instructions that torch.save writes, which are those that its weights-only reader follows.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "STOP": _nothing,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _push_argument,
    "BININT1": _push_argument,
    "BININT2": _push_argument,
    "LONG1": _push_argument,
    "BINFLOAT": _push_argument,
    "BINUNICODE": _push_argument,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.push(_MARK),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_group())),
    "TUPLE1": lambda machine, _: machine.pop_tuple(1),
    "TUPLE2": lambda machine, _: machine.pop_tuple(2),
    "TUPLE3": lambda machine, _: machine.pop_tuple(3),
    "BINPUT": lambda machine, key: machine.remember(key),
    "LONG_BINPUT": lambda machine, key: machine.remember(key),
    "BINGET": lambda machine, key: machine.push(machine.memo[key]),
    "LONG_BINGET": lambda machine, key: machine.push(machine.memo[key]),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_group()),
    "SETITEM": lambda machine, _: machine.set_items(_pop_two(machine)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_group()),
    "GLOBAL": lambda machine, name: machine.name(name),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_state(),
    "BINPERSID": lambda machine, _: machine.load_storage(),
}
