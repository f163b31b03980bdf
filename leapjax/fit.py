"""`--mesh auto`: the mesh that a model needs here, by the memory of its compiled program.

If one device holds the model, every device gets a replica. Otherwise the smallest replica that
holds it is chosen, `tensor` before `fsdp`, as often as the devices allow. The allocator reports a
device's memory; where it reports nothing (CPU), one device is used.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.errors import NoRoom
from leapjax.failures import out_of_memory
from leapjax.models.config import ModelConfig
from leapjax.models.quantize import quantize as quantized
from leapjax.ops import hardware
from leapjax.planning.work import sparsity
from leapjax.progress import busy
from leapjax.serve.lowering import compile_all
from leapjax.serve.memory import array_bytes, device_limit, needed_bytes
from leapjax.serve.sizes import bucket
from leapjax.sharding import MeshShape, Placement, local_devices, placements

# A replica has room for at least this many rows; the engine takes more if they fit.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class Auto:
    """A description of the workload, for which a mesh with enough memory is chosen."""

    config: DecodeConfig = DecodeConfig()
    batch_size: int | None = None  # rows decoded at once by all replicas, if that is fixed
    # number of requests, if known; more replicas than that are useless
    requests: int | None = None
    prompt_length: int = 512  # tokens of a long prompt; longer ones fit with fewer rows


def wanted(
    mesh: str | None,
    config: DecodeConfig,
    batch_size: int | None = None,
    requests: int | None = None,
) -> str | Auto:
    """A command's `--mesh` as `leapjax.load` takes it.

    `mesh`: the flag's value; None means auto.
    """
    return Auto(config, batch_size, requests) if mesh in (None, "auto") else mesh


def choose(
    auto: Auto,
    stored: Callable[[], Mapping[str, tuple[tuple[int, ...], Any]]],
    model: ModelConfig,
    *,
    dtype: str,
    quantize: str | None = None,
    devices: Sequence[Any] | None = None,
) -> MeshShape | None:
    """The mesh to use on this process's devices.

    Nothing is compiled with one device, nor for meshes whose weights alone are too large.

    `stored`: tells of the weights: leaf name -> (shape, dtype); called if they matter; `devices`:
    to choose from; default: this process's, in the order of their ids. Returns the mesh; None is
    the default device. Raises NoRoom: it fits none of them.
    """
    have = local_devices() if devices is None else devices
    limit = device_limit(have[0]) if len(have) > 1 else None
    if limit is None:
        return None
    weights = tree(stored())
    for mesh in candidates(len(have), model):
        data = min(mesh.data, auto.requests or mesh.data, auto.batch_size or mesh.data)
        mesh = dataclasses.replace(mesh, data=data)
        if _needs(auto, mesh, weights, model, dtype, quantize, have, limit) <= limit:
            return None if mesh.devices == 1 else mesh
    fewer = "fewer rows (--batch-size), " if auto.batch_size else ""
    raise NoRoom(
        f"the model finds no room on {len(have)} devices of {limit / 1e9:.1f} GB; use {fewer}"
        "--quantize int8 or more devices, or try a --mesh of your own"
    )


def candidates(devices: int, model: ModelConfig) -> Iterator[MeshShape]:
    """Meshes in the order in which they are tried: small replicas first.

    Among equal ones `expert` comes before `tensor`, and `tensor` before `fsdp`.

    `devices`: how many there are; some stay idle where a replica's size does not divide them;
    `model`: `tensor` divides its heads, `fsdp` is a power of two that divides its width, `expert`
    one that, with `fsdp`, divides the experts of every layer that has some.
    """
    tensors = [t for t in range(1, devices + 1) if model.n_heads % t == 0]
    powers = [2**i for i in range(devices.bit_length())]
    fsdps = [f for f in powers if model.d_model % f == 0]
    counts = [run.experts.count for run in model.runs if run.experts]
    experts = powers if counts else [1]
    sizes = sorted(
        (t * f * e, f, t, e)
        for t, f, e in itertools.product(tensors, fsdps, experts)
        if t * f * e <= devices and (e == 1 or all(n % (f * e) == 0 for n in counts))
    )
    for size, fsdp, tensor, expert in sizes:
        yield MeshShape(devices // size, fsdp, tensor, expert)


def _needs(auto, mesh, weights, model, dtype, quantize, devices, limit) -> int:
    """Bytes that a device needs; without compiling where the weights alone exceed the limit."""
    place = placements(dataclasses.replace(mesh, data=1), devices)[0]
    loading, params = placed(weights, place, model)
    if quantize is not None:
        made = jax.eval_shape(lambda tree: quantized(tree, model, quantize), weights)
        rounded, params = placed(made, place, model)
        loading += rounded  # both are there for a moment
    if loading > limit:
        return loading
    rows = ROWS if auto.batch_size is None else -(-auto.batch_size // mesh.data)
    rows = min(rows, auto.requests or rows)
    slots = -(-rows // mesh.fsdp) * mesh.fsdp
    config = auto.config
    columns = min(bucket(auto.prompt_length) + config.gen_length, model.max_length)
    length = max(columns, config.gen_length)
    program = program_for(
        config,
        model,
        length=length,
        dtype=dtype,
        eot_token_id=None,
        refresh_group=hardware.defaults().refresh_group(length, dtype, sparsity(model)),
    )
    try:
        with busy(f"compiling for --mesh {mesh}, to see whether it fits"):
            made = compile_all(params, program, slots, place)
            return max(loading, needed_bytes(made.values()))
    except jax.errors.JaxRuntimeError as e:
        if out_of_memory(e):  # a TPU's compiler refuses what is too large
            return limit + 1
        raise


def tree(leaves: Mapping[str, tuple[tuple[int, ...], Any]]):
    """The weights' pytree of shapes, from leaf name -> (shape, dtype)."""
    from leapjax.checkpoint import unflatten

    made = {n: jax.ShapeDtypeStruct(s, jnp.dtype(kind)) for n, (s, kind) in leaves.items()}
    return unflatten(made)


def placed(tree, place: Placement, model: ModelConfig) -> tuple[int, Any]:
    """Bytes on one device of arrays where a placement puts them, and the same with shardings."""
    where = place.parameters(model, tree)
    put = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)
    return array_bytes(tree, where), put
