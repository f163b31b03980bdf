"""Device memory: a compiled program's needs, the needs of several lanes, the limit."""

import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax


class Footprint(NamedTuple):
    """Bytes of one lane on one device."""

    shared: int  # weights; the lanes of a replica share them
    state: int  # the slots' state and KV cache; each lane has its own
    temporaries: int  # needed while a chunk runs; one lane of a replica runs at a time


def footprint(executables: Iterable[Any], state: int) -> Footprint:
    """Memory of a lane on one device; its programs run one after the other.

    `state`: bytes of the lane's state there (`leapjax.serve.lowering.state_bytes`).
    """
    each = [_footprint(executable, state) for executable in executables]
    return Footprint(*map(max, zip(*each, strict=True)))


def _footprint(executable: Any, state: int) -> Footprint:
    stats = executable.memory_analysis()
    if stats is None:  # the backend has no memory analysis
        return Footprint(0, state, 0)
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Footprint(
        shared=max(stats.argument_size_in_bytes - state, 0),
        state=state,
        temporaries=int(results + stats.temp_size_in_bytes),
    )


def together(lanes: Iterable[Footprint]) -> int:
    """Bytes of a replica's lanes on one device, whichever lane runs."""
    lanes = list(lanes)
    shared = max(lane.shared for lane in lanes)
    return shared + sum(x.state for x in lanes) + max(x.temporaries for x in lanes)


def needed_bytes(executables: Iterable[Any]) -> int:
    """Device memory of a lane: weights, state, cache and temporaries."""
    return together([footprint(executables, 0)])


def array_bytes(shapes: Any, shardings: Any = None) -> int:
    """Bytes of a pytree's arrays on one device."""
    leaves = jax.tree.leaves(shapes)
    if shardings is None:
        sizes = [x.shape for x in leaves]
    else:
        placed = zip(leaves, jax.tree.leaves(shardings), strict=True)
        sizes = [s.shard_shape(x.shape) for x, s in placed]
    return sum(math.prod(size) * x.dtype.itemsize for size, x in zip(sizes, leaves, strict=True))


def memory_limit() -> int:
    """Bytes that a program may use on one device.

    Returns the allocator's limit if the backend reports one, else 90% of the host's memory.
    """
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return device_limit(jax.local_devices()[0]) or int(host * 0.9)


def device_limit(device: Any) -> int | None:
    """The limit of a device's allocator, in bytes; None if it reports none (CPU)."""
    return int((device.memory_stats() or {}).get("bytes_limit", 0)) or None
