"""What the TPU compiler says of a decode: memory, collectives, time to compile.

`jax.experimental.topologies` describes slices that are not attached; libtpu compiles for them
on any machine.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from leapjax.decoding import Program
from leapjax.errors import UserError
from leapjax.lane import compile_run
from leapjax.models.config import param_shapes
from leapjax.planning.chips import Slice
from leapjax.sharding import MeshShape, Placement, placements

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: all-reduce, all-gather, …
      shapes: of its result's arrays, as (dtype, dimensions).
      bytes: of its result.
      in_loop: it sits inside a loop.
      scope: where in our code, from the compiler's metadata.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    in_loop: bool
    scope: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One replica's compiled decode.

    Attributes:
      seconds: that compiling took here.
      weights: bytes a device.
      state: bytes a device of tokens and cache, which are donated.
      temporaries: bytes a device.
      donated: bytes of the state that the result reuses.
      collectives: all of them.
    """

    seconds: float
    weights: int
    state: int
    temporaries: int
    donated: int
    collectives: tuple[Collective, ...]

    @property
    def total(self) -> int:
        """Bytes a device."""
        return self.weights + self.state + self.temporaries


def devices(where: Slice) -> list[Any]:
    """The devices of a slice that is not attached.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    from jax.experimental import topologies

    # No TPU is looked for, nor the cloud's answer to where this machine is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{where.chip.xla}-{where.chips}")
    try:
        name = f"{where.chip.xla}:{where.shape}"
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as e:
        reason = " ".join(str(e).split())[:120]
        raise UserError(
            f"the TPU compiler can't be had for {where} ({reason}); pip install libtpu (or "
            "leapjax[tpu])"
        ) from e


def compile_for(where: Slice, mesh: MeshShape, program: Program, slots: int) -> Compiled:
    """Compile one replica's decode for a slice. All replicas are alike.

    Args:
      where: the slice.
      mesh: how it is used.
      program: the decode.
      slots: rows a replica.

    Raises:
      UserError: no compiler, or the program does not fit.
    """
    place = placements(mesh, devices(where))[0]
    params = abstract_params(program, place)
    began = time.perf_counter()
    try:
        executable = compile_run(params, program, slots, place)
    except jax.errors.JaxRuntimeError as e:
        text = " ".join(str(e).split())
        raise UserError(f"{where}, {mesh}: does not compile: {text[:300]}") from e
    seconds = time.perf_counter() - began
    stats, text = executable.memory_analysis(), executable.as_text()
    if stats is None or text is None:
        raise UserError(f"{where}: this jax tells nothing about compiled programs; upgrade it")
    weights = sum(
        jnp.dtype(x.dtype).itemsize * _product(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(params)
    )
    return Compiled(
        seconds=seconds,
        weights=weights,
        state=stats.argument_size_in_bytes - weights,
        temporaries=stats.temp_size_in_bytes,
        donated=stats.alias_size_in_bytes,
        collectives=tuple(read_collectives(text)),
    )


def abstract_params(program: Program, place: Placement):
    """The parameters' shapes with their shardings, stored in the compute dtype."""
    shapes = param_shapes(program.model)
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(
            shape, program.compute_dtype, sharding=sharding
        ),
        shapes,
        place.parameters(program.model, shapes),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def _product(shape) -> int:
    out = 1
    for size in shape:
        out *= size
    return out


def read_collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program's text."""
    found = []
    for line in text.splitlines():
        if not (match := _COLLECTIVE.search(line)):
            continue
        shapes = tuple(
            (kind, tuple(int(n) for n in sizes.split(",") if n))
            for kind, sizes in _ARRAY.findall(match.group(1))
        )
        scope = re.search(r'op_name="([^"]*)"', line)
        name = scope.group(1) if scope else ""
        size = sum(_BYTES.get(kind, 4) * _product(dims) for kind, dims in shapes)
        found.append(Collective(match.group(2), shapes, size, "/while/" in name, name))
    return found
