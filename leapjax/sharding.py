"""Meshes: the devices that a model is sharded over, and where each array axis goes.

    --mesh data=2,fsdp=1,tensor=4   ->  2 replicas of 4 devices each

`data` counts independent replicas: each has its own devices, weights, loop and slots, and no
collective ever crosses it. Inside a replica one program runs on a mesh of `fsdp` x `expert` x
`tensor`. Rows and the weights' other axis are split over `fsdp`; heads, MLP and vocabulary over
`tensor` (column then row, so one sum after attention and one after the MLP). The width of the
residual stream is split over `tensor` too (`leapjax.ops.mesh`): each sum is a reduce-scatter, and
an all-gather precedes the next products. Experts are split over `expert` and `fsdp` together, with
one sum after them; rows are replicated over `expert`. An axis that its mesh axis does not divide is
replicated. Nothing else in the package mentions devices.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from leapjax.config import check_keys
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families import table
from leapjax.ops.mesh import axes_of

AXES = ("data", "fsdp", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The number of devices along each mesh axis.

    Attributes:
      data: independent replicas.
      fsdp: devices that split a replica's rows, and also its weights.
      expert: devices that split a replica's experts (mixtures of experts only).
      tensor: devices that split a replica's heads, MLP and vocabulary.

    >>> shape = MeshShape(data=2, tensor=4)
    >>> shape.replica, shape.devices, str(shape)
    (4, 8, 'data=2,fsdp=1,tensor=4')
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    @property
    def replica(self) -> int:
        """Number of devices per replica."""
        return self.fsdp * self.expert * self.tensor

    @property
    def devices(self) -> int:
        """Total number of devices."""
        return self.data * self.replica

    def __str__(self) -> str:
        """As `--mesh` takes it."""
        names = [name for name in AXES if name != "expert" or self.expert > 1]
        return ",".join(f"{name}={getattr(self, name)}" for name in names)


def parse(text: str) -> MeshShape:
    """Read `data=2,tensor=4`; an omitted axis has size 1.

    Raises:
      UserError: an unknown axis, an axis given twice, or a count that is not a whole number >= 1.

    >>> parse("data=2,tensor=4")
    MeshShape(data=2, fsdp=1, tensor=4, expert=1)
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        check_keys([name], "--mesh", AXES, "axis")
        if name in sizes or not number.isdecimal() or int(number) < 1:
            raise UserError(f"--mesh {text!r}: expected each axis once, as in data=2,tensor=4")
        sizes[name] = int(number)
    return MeshShape(**sizes)


def check(shape: MeshShape, config: ModelConfig) -> None:
    """Refuse a mesh that would leave devices without work.

    Args:
      shape: how many devices.

    Raises:
      UserError: `tensor` splits the heads of a model that has none; `expert` splits the experts of
        a model that has none, or whose number `expert` and `fsdp` together do not divide.
    """
    if shape.tensor > 1 and not config.has_attention:
        raise UserError(
            f"--mesh {shape}: tensor splits heads and MLPs, and a {config.family} has none; use "
            "data or fsdp"
        )
    if shape.expert == 1:
        return
    counts = [run.experts.count for run in config.runs if run.experts]
    if not counts:
        raise UserError(
            f"--mesh {shape}: expert splits experts, and this model ({config.family}) has none; "
            "use tensor or fsdp"
        )
    if counts[0] % (shape.expert * shape.fsdp):
        raise UserError(
            f"--mesh {shape}: expert and fsdp together split experts, and {counts[0]} are no "
            f"multiple of {shape.expert * shape.fsdp}; choose a divisor"
        )


def logical_axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of each parameter, by its name in its layer; None is never split.

    They are the last ones of its shape, whether layers are stacked or not. Scales of int8 matrices
    and moments that an optimiser keeps go by their parameter.

    >>> from leapjax.testing import tiny_config
    >>> axes = logical_axes(tiny_config())
    >>> axes["q"], axes["q_scale"], axes["embed"]
    (('width', 'heads'), ('heads',), ('vocabulary', 'width'))
    """
    axes: dict[str, tuple[str | None, ...]] = {}
    for weight in table(config):
        own = axes[weight.short] = weight.axes[1:] if weight.stacked else weight.axes
        if weight.quantized:
            axes[f"{weight.short}_scale"] = (*own[:-2], own[-1])
        elif weight.name == "head":
            axes["head_scale"] = own[:1]
    return axes


@dataclasses.dataclass(frozen=True)
class Placement:
    """One replica's devices.

    Attributes:
      mesh: `fsdp` x `expert` x `tensor`.
    """

    mesh: Mesh

    def sharding(self, logical: Sequence[str | None], shape: Sequence[int], units=None):
        """Where an array goes.

        Args:
          logical: a logical axis, or None, for each axis of the array.
          units: logical axis -> how many whole things it holds (heads); they are not cut.
        """
        spec = []
        for name, size in zip(logical, shape, strict=True):
            count = (units or {}).get(name, size)
            axes = axes_of(name, count, self.mesh) if name else ()
            spec.append(axes[0] if len(axes) == 1 else axes or None)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def parameters(self, config: ModelConfig, tree):
        """Shardings of the parameters.

        Args:
          tree: the parameters, or their shapes as tuples.

        Returns:
          The same pytree of NamedShardings.
        """
        units = {"heads": config.n_heads, "kv_heads": config.n_kv_heads}
        known = logical_axes(config)

        def place(path, leaf):
            shape = leaf if isinstance(leaf, tuple) else leaf.shape
            axes = known.get(path[-1].key, ())
            return self.sharding((None,) * (len(shape) - len(axes)) + axes, shape, units)

        return jax.tree_util.tree_map_with_path(place, tree, is_leaf=lambda x: isinstance(x, tuple))

    def state(self, state, config: ModelConfig):
        """Shardings of a DecodeState: rows over `fsdp`, cached heads over `tensor`.

        Args:
          state: the state, or its shapes.
        """

        def place(path, leaf):
            name = getattr(path[0], "name", None)
            if name == "cache":
                return self.cache(leaf.shape)
            if not leaf.ndim:
                return self.everywhere()
            return self.sharding(("rows",) + (None,) * (leaf.ndim - 1), leaf.shape)

        return jax.tree_util.tree_map_with_path(place, state)

    def cache(self, shape: Sequence[int]) -> NamedSharding:
        """Sharding of a KV cache's keys or values, (L, rows, K, T, E)."""
        return self.sharding((None, "rows", "kv_heads", None, None), shape)

    def everywhere(self) -> NamedSharding:
        """Replicated over the replica."""
        return NamedSharding(self.mesh, PartitionSpec())


def under_mesh(placement: Placement | None) -> contextlib.AbstractContextManager[Any]:
    """In this context a program is traced for a replica's mesh; `leapjax.ops.mesh` asks for it.

    Args:
      placement: the replica's devices; None is the default device.
    """
    return contextlib.nullcontext() if placement is None else jax.set_mesh(placement.mesh)


def local_devices() -> list[Any]:
    """This process's devices in the order of their ids, so that neighbours come first.

    A TPU numbers its chips along its links, but need not list them in that order.
    """
    return sorted(jax.local_devices(), key=lambda device: device.id)


def placements(shape: MeshShape, devices: Sequence[Any] | None = None) -> list[Placement]:
    """The replicas' devices.

    Args:
      devices: in order, neighbours first; default: `local_devices()`.

    Returns:
      One Placement a replica.

    Raises:
      UserError: the devices are too few.
    """
    have = list(local_devices() if devices is None else devices)
    if shape.devices > len(have):
        raise UserError(
            f"--mesh {shape} needs {shape.devices} devices, here are {len(have)}; make it smaller"
        )
    grid = np.array(have[: shape.devices], dtype=object)
    grid = grid.reshape(shape.data, shape.fsdp, shape.expert, shape.tensor)
    kinds = (AxisType.Auto,) * 3
    return [Placement(Mesh(part, AXES[1:], axis_types=kinds)) for part in grid]
