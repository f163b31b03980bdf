"""Read what a torch pickle says about its tensors, without running anything.

A pickle is a small program. This is an interpreter of its own for the few instructions
that describing tensors takes: a global is a name, never an imported object, and the only
"calls" are the ones spelled out in `_call`. Anything else is refused.
Source: Python's pickletools (instructions) and what torch.save writes for a state_dict.
"""

from __future__ import annotations

import dataclasses
import pickletools
import warnings
from typing import Any

import ml_dtypes
import numpy as np

from leapjax.errors import UserError

from .tensor import shown

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_CALLABLE = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A name that the pickle refers to; nothing is imported."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A storage of `count` elements of `dtype`, kept under `key`."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A tensor: a strided view on a storage, everything in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """The stack's MARK."""


# Instructions that push their argument as it is.
_PUSH = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINSTRING SHORT_BINSTRING".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_views(data: bytes, where: str) -> dict[str, View]:
    """The tensors that a state_dict's pickle describes.

    Args:
      data: the pickle.
      where: file name, for messages.

    Returns:
      Tensor name -> `View`, in the pickle's order. Sizes are checked against the storage
      that each view names, not yet against the file.

    Raises:
      UserError: the pickle does anything else than describe tensors.
    """
    try:
        with warnings.catch_warnings():  # pickletools warns of odd string escapes
            warnings.simplefilter("ignore")
            root = _Machine(where).run(data)
    except UserError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, EOFError, UnicodeError, OverflowError):
        # Raised by pickletools on garbage and by the stack when it runs empty.
        raise UserError(
            f"{where}: damaged pickle, or no pickle at all; fetch the file again"
        ) from None
    if not isinstance(root, dict):
        raise UserError(f"{where}: holds no dict of tensors; expected a state_dict")
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise UserError(
                f"{where}: entry {shown(str(name))} is no tensor; expected a plain state_dict"
            )
    return root


class _Machine:
    """The pickle virtual machine, reduced to data."""

    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, position in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            self.step(name, argument, position)
        raise ValueError("no STOP")

    def step(self, name: str, argument: Any, position: int | None) -> None:
        stack = self.stack
        if name in _PUSH:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_Mark)
        elif name in _TUPLES:
            n = _TUPLES[name]
            if n > len(stack):
                raise ValueError("stack")
            items = tuple(stack[len(stack) - n :])
            del stack[len(stack) - n :]
            stack.append(items)
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(self.lookup(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(attribute, str) or not isinstance(module, str):
                raise ValueError("global")
            stack.append(self.lookup(module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.call(function, arguments))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name == "BUILD":
            # A state_dict's own attributes (`_metadata`): version numbers of modules.
            state = stack.pop()
            if not isinstance(stack[-1], dict) or not isinstance(state, dict):
                raise ValueError("build")
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.set_items([key, value])
        elif name == "SETITEMS":
            self.set_items(self.since_mark())
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            if not isinstance(stack[-1], list):
                raise ValueError("append")
            stack[-1].extend(items)
        else:
            raise UserError(
                f"{self.where}: pickle uses {name} at byte {position}, which describing tensors "
                "does not need; use a safetensors copy of the checkpoint"
            )

    def since_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _Mark:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("setitems")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only plain keys: hashing nested tuples can take for ever.
            if not isinstance(key, (str, int)):
                raise ValueError("key")
            target[key] = value

    def lookup(self, module: str, attribute: str) -> Global:
        name = f"{module}.{attribute}"
        if name not in _CALLABLE and not (module == "torch" and attribute in STORAGES):
            raise UserError(
                f"{self.where}: pickle asks for {shown(name)}, which could run code; refused. "
                "Use a safetensors copy of the checkpoint"
            )
        return Global(name)

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("reduce")
        if function.name == "collections.OrderedDict":
            if arguments:
                raise ValueError("OrderedDict with arguments")
            return {}
        if function.name == "torch._utils._rebuild_parameter":
            if len(arguments) != 3 or not isinstance(arguments[0], View):
                raise ValueError("parameter")
            return arguments[0]
        if function.name == "torch._utils._rebuild_tensor_v2" and 6 <= len(arguments) <= 7:
            return self.view(*arguments[:4])
        raise ValueError("call")

    def view(self, storage: Any, offset: Any, shape: Any, strides: Any) -> View:
        if not isinstance(storage, Storage) or not _count(offset):
            raise ValueError("view")
        for axis in (shape, strides):
            if not isinstance(axis, tuple) or len(axis) > 8 or not all(map(_count, axis)):
                raise UserError(
                    f"{self.where}: a tensor has sizes or strides that are no counts (negative?); "
                    "fetch the file again"
                )
        if len(shape) != len(strides):
            raise ValueError("axes")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.count:
            raise UserError(
                f"{self.where}: a tensor of shape {shape} reaches element {last} of a storage of "
                f"{storage.count}; fetch the file again"
            )
        return View(storage, offset, shape, strides)

    def storage(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) != 5:
            raise ValueError("persistent id")
        tag, kind, key, _, count = identity
        if (
            tag != "storage"
            or not isinstance(kind, Global)
            or not kind.name.startswith("torch.")
            or not isinstance(key, str)
            or not _count(count)
        ):
            raise ValueError("storage")
        dtype = STORAGES.get(kind.name.removeprefix("torch."))
        if dtype is None:
            raise ValueError("storage type")
        return Storage(dtype, key, count)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
