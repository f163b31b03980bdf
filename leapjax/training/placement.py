"""Where a training run's arrays go: weights and moments over the mesh, rows over its replicas.

The weights, their averages and the optimiser's moments are split by the one table of
`leapjax.sharding` and repeated along `data`; a batch's rows are shared by `data` and `fsdp`.
XLA puts in the collectives: a run on a mesh computes what a run on one device computes, up to
the order of sums, and either goes on from the other's checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.ops.mesh import axes_of
from leapjax.sharding import AXES, MeshShape, check, local_devices, logical_axes


class TrainingPlacement:
    """A run's devices: the first of `devices`, neighbours first (default: `local_devices()`)."""

    def __init__(self, shape: MeshShape, model: ModelConfig, devices: Sequence[Any] | None = None):
        check(shape, model)
        have = list(local_devices() if devices is None else devices)
        if shape.devices > len(have):
            raise UserError(
                f"--mesh {shape} needs {shape.devices} devices, here are {len(have)}; make it "
                "smaller"
            )
        grid = np.array(have[: shape.devices], dtype=object)
        grid = grid.reshape([getattr(shape, axis) for axis in AXES])
        self.mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        self._axes = logical_axes(model)
        self._units = {"heads": model.n_heads, "kv_heads": model.n_kv_heads}

    def state(self, tree) -> Any:
        """Shardings of a training state, or of the weights alone, from the pytree or its shapes.

        A leaf is split like the parameter whose name ends its path, so moments and averages lie
        where their weights do.
        """
        return jax.tree_util.tree_map_with_path(self._leaf, tree)

    def _leaf(self, path, leaf) -> NamedSharding:
        names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        axes = self._axes.get(names[-1], ()) if names else ()
        if len(axes) > len(leaf.shape):  # a number that the optimiser keeps for a weight
            axes = ()
        spec: list[str | tuple[str, ...] | None] = [None] * (len(leaf.shape) - len(axes))
        for name, size in zip(axes, leaf.shape[len(spec) :], strict=True):
            units = self._units[name] if name in self._units else size
            axes = axes_of(name, math.gcd(size, units), self.mesh) if name else ()
            spec.append(axes[0] if len(axes) == 1 else axes or None)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def batch(self, rows: int) -> NamedSharding:
        """Where a batch of so many rows goes: over as many replicas as divide it."""
        size = self.mesh.shape
        for axes in (("data", "fsdp"), ("data",), ("fsdp",)):
            if rows % int(np.prod([size[a] for a in axes])) == 0:
                return NamedSharding(self.mesh, PartitionSpec(axes))
        return NamedSharding(self.mesh, PartitionSpec())
