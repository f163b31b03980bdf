"""What a Pallas call on a TPU moves, by its grid and blocks, not by the size of its operands.

The compiler's text has the kernel's module as MLIR bytecode. Its main function names the grid
(`iteration_bounds`), and of each operand and result the block (`window_bounds`) and the function
that says which block a step of the grid works on (`transform_indices`). The runtime copies a block
when its index changes from one step to the next, steps in order, the last dimension fastest.
"""

import base64
import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from leapjax.planning.hlo import Array

TARGET = "tpu_custom_call"
_BODY = re.compile(r'"body":"([A-Za-z0-9+/=]*)"')
# Attributes and types of Mosaic's own dialect where MLIR's own types take only theirs: replaced
# by others of the same length, so that the bytecode is read without that dialect.
_SPACE = re.compile(rb"#tpu\.memory_space<(\w+)>")
_SEMAPHORE = re.compile(rb"!tpu\.\w*semaphore")
_MOST_STEPS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Moved:
    """The shares of a call's operands and results that are copied; 2 is twice all of it."""

    operands: tuple[float, ...]  # one share an operand
    results: tuple[float, ...]  # one share a result
    # known from blocks. If not, a share may be that of a block a step, where the index depends on
    # data, or 1 where the kernel copies on its own.
    exact: bool


def moved(attributes: str, operands: Sequence[Array], results: Sequence[Array]) -> Moved:
    """Count a call's copies."""
    unknown = Moved((1.0,) * len(operands), (1.0,) * len(results), False)
    found = _BODY.search(attributes)
    kernel = _kernel(found.group(1)) if found else None
    if kernel is None or len(kernel.windows) < len(operands) + len(results):
        return unknown
    shares, exact = [], True
    for window, array in zip(kernel.windows, [*operands, *results], strict=False):
        share, known = _share(window, array, kernel.grid)
        shares.append(share)
        exact = exact and known
    return Moved(tuple(shares[: len(operands)]), tuple(shares[len(operands) :]), exact)


@dataclasses.dataclass(frozen=True)
class _Window:
    """Of an operand or a result."""

    block: tuple[int, ...] | None  # its block's shape; None for the whole array at once
    # of each step and dimension, which block it is, as arrays over the grid's steps; None where it
    # depends on data
    index: tuple[Any, ...] = ()
    own: bool = False  # the kernel copies on its own what it needs


@dataclasses.dataclass(frozen=True)
class _Kernel:
    grid: tuple[int, ...]
    windows: tuple[_Window, ...]


def _share(window: _Window, array: Array, grid: tuple[int, ...]) -> tuple[float, bool]:
    """Which part of an array is copied, and whether that is known."""
    if window.own:
        return 1.0, False
    if window.block is None:
        return 1.0, True
    steps = math.prod(grid)
    if len(window.block) != len(array.dims) or any(i is None for i in window.index):
        return steps * math.prod(window.block) / max(array.size, 1), False
    index = [np.broadcast_to(i, (steps,)) for i in window.index]
    new = np.ones(steps, bool)
    new[1:] = np.any([i[1:] != i[:-1] for i in index], axis=0)
    # Blocks at the end may reach over it.
    sizes = [
        np.minimum(block, dim - np.minimum(i * block, dim))
        for i, block, dim in zip(index, window.block, array.dims, strict=True)
    ]
    return float(np.prod(sizes, axis=0)[new].sum()) / max(array.size, 1), True


@functools.lru_cache(maxsize=64)
def _kernel(body: str) -> _Kernel | None:
    """Read a kernel's module; None if it is not understood."""
    from jax.extend.mlir import ir

    data = _SPACE.sub(rb'"tpu.memory_space \1"', base64.b64decode(body))
    data = _SEMAPHORE.sub(lambda m: b"vector<1xi8>".ljust(len(m.group())), data)
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        try:
            module = ir.Module.parse(data)
            functions = {
                ir.StringAttr(f.attributes["sym_name"]).value: f for f in module.body.operations
            }
            main = next(iter(functions.values()))
            grid = _integers(ir, main, "iteration_bounds")
            if math.prod(grid) > _MOST_STEPS:
                return None
            return _Kernel(grid, tuple(_windows(ir, main, functions, grid)))
        except (ir.MLIRError, KeyError, ValueError, IndexError, StopIteration):
            return None


def _integers(ir, operation, name: str) -> tuple[int, ...]:
    if name not in operation.attributes:
        return ()
    return tuple(int(n) for n in ir.DenseI64ArrayAttr(operation.attributes[name]))


def _windows(ir, main, functions, grid):
    """The windows of operands, those that go before the grid included, and of results."""
    arguments = [str(a.type) for a in main.regions[0].blocks[0].arguments][len(grid) :]
    first = ir.IntegerAttr(main.attributes["scalar_prefetch"]).value
    parameters = main.attributes["window_params"] if "window_params" in main.attributes else ()
    for _ in range(first):
        yield _Window(None)
    for place, text in enumerate(arguments[first:]):
        own = '"tpu.memory_space any"' in text or '"tpu.memory_space hbm"' in text
        if own or place >= len(parameters):
            yield _Window(None, own=own)
            continue
        one = ir.DictAttr(parameters[place])
        block = tuple(int(n) for n in ir.DenseI64ArrayAttr(one["window_bounds"]))
        name = ir.FlatSymbolRefAttr(one["transform_indices"]).value
        index = _indices(ir, functions[name], grid)
        known = "window_kind" not in [each.name for each in one]
        yield _Window(block, index if known else (None,) * len(block))


_BINARY = {
    "addi": np.add, "subi": np.subtract, "muli": np.multiply, "divsi": np.floor_divide,
    "floordivsi": np.floor_divide, "remsi": np.remainder, "minsi": np.minimum,
    "maxsi": np.maximum, "andi": np.bitwise_and, "ori": np.bitwise_or,
}  # fmt: skip
_COMPARED = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)


def _indices(ir, function, grid: tuple[int, ...]) -> tuple[Any, ...]:
    """The results of an index function for all steps of the grid at once; None if unknown."""
    steps = np.indices(grid).reshape(len(grid), -1)
    block = function.regions[0].blocks[0]
    values: dict[Any, Any] = dict(zip(block.arguments, steps, strict=False))
    for operation in block.operations:
        given: list[Any] = [values.get(o) for o in operation.operands]
        name = operation.name.rpartition(".")[2]
        if name == "return":
            return tuple(given)
        if name == "constant":
            values[operation.results[0]] = ir.IntegerAttr(operation.attributes["value"]).value
        elif any(g is None for g in given):
            continue
        elif name in _BINARY:
            values[operation.results[0]] = _BINARY[name](*given)
        elif name in ("index_cast", "extui", "extsi", "trunci"):
            values[operation.results[0]] = given[0]
        elif name == "cmpi":
            way = ir.IntegerAttr(operation.attributes["predicate"]).value
            if way < len(_COMPARED):
                values[operation.results[0]] = _COMPARED[way](*given)
        elif name == "select":
            values[operation.results[0]] = np.where(*given)
    return ()
