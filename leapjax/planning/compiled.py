"""What the TPU compiler says of a decode: memory, collectives, time to compile.

`jax.experimental.topologies` describes slices that are not attached; libtpu compiles for them
on any machine.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from leapjax.decoding import Program
from leapjax.errors import UserError
from leapjax.models import param_shapes
from leapjax.models.quantize import quantize as quantized
from leapjax.planning import collectives, hlo
from leapjax.planning.chips import Slice
from leapjax.serve.lowering import lower_run
from leapjax.serve.memory import array_bytes
from leapjax.sharding import MeshShape, Placement, placements


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One replica's compiled decode."""

    seconds: float  # that compiling took here
    cpu_seconds: float  # of this process meanwhile
    weights: int  # bytes a device
    state: int  # bytes a device of tokens and cache, which are donated
    temporaries: int  # bytes a device, the program's code included
    donated: int  # bytes of the state that the result reuses
    # those arrays, as (dtype, dimensions on a device)
    reused: tuple[tuple[str, tuple[int, ...]], ...]
    partitions: int  # devices that the program knows of
    collectives: tuple[collectives.Collective, ...]
    text: str = dataclasses.field(repr=False)  # the compiled program, as the compiler prints it

    @property
    def total(self) -> int:
        """Bytes a device."""
        return self.weights + self.state + self.temporaries


# No TPU is looked for, nor the cloud's answer to where this machine is; several processes may
# compile at once (no lock file), and no logs are left in /tmp.
_OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


def devices(where: Slice) -> list[Any]:
    """The devices of a slice that is not attached, in the order of their ids.

    In libtpu's own order (host by host) a replica can begin with ids that are not consecutive,
    and then does not compile on large slices.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            f"the TPU compiler, libtpu, is not installed: pip install 'jax[tpu]=={jax.__version__}'"
            " (Linux, x86-64; no TPU needed)"
        )
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    more = {} if where.chips > 1 else {"chips_per_host_bounds": (1, 1, 1)}
    try:
        name = f"{where.chip.xla}:{where.shape}"
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except Exception as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{where}: the TPU compiler does not take it ({reason}); try another shape, or "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        ) from e
    return sorted(found, key=lambda device: device.id)


def compile_for(
    where: Slice,
    mesh: MeshShape,
    program: Program,
    slots: int,
    quantize: str | None = None,
    lower: Callable[..., Any] = lower_run,
) -> Compiled:
    """Compile one replica's decode for a slice. All replicas are alike."""
    place = placements(mesh, devices(where))[0]
    params = abstract_params(program, place, quantize)
    began, worked = time.perf_counter(), time.process_time()
    try:
        executable = lower(params, program, slots, place).compile()
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"{where}, {mesh}: does not compile: {brief(str(e))}") from e
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    stats, text = executable.memory_analysis(), executable.as_text()
    if stats is None or text is None:
        raise UserError(f"{where}: this jax tells nothing about compiled programs; upgrade it")
    weights, module = array_bytes(params, place.parameters(program.model, params)), hlo.parse(text)
    return Compiled(
        seconds=seconds,
        cpu_seconds=cpu,
        weights=weights,
        state=stats.argument_size_in_bytes - weights,
        temporaries=stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        donated=stats.alias_size_in_bytes,
        reused=tuple(module.donated),
        partitions=module.partitions,
        collectives=tuple(collectives.read(module)),
        text=text,
    )


def brief(reason: str) -> str:
    """Why a program does not compile: the compiler's words, or only how much memory is missing."""
    text = " ".join(reason.split())
    # HBM holds arrays; vmem, on the chip, what one operation works on.
    short = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ (?:hbm|vmem)", text)
    return f"too little memory ({short.group()})" if short else text[:300]


def abstract_params(program: Program, place: Placement, quantize: str | None = None):
    """The parameters' shapes with their shardings.

    `program`: the decode; weights that are not quantised have its compute dtype.
    """
    model, dtype = program.model, program.compute_dtype
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        param_shapes(model),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    if quantize is not None:
        params = jax.eval_shape(lambda tree: quantized(tree, model, quantize), params)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        params,
        place.parameters(model, params),
    )
