"""What an accelerator can do: its copy and read bandwidth and its best matrix rate.

Calls are queued one after the other and waited for once, so that a call's way from the host is
hidden behind the work of the one before; the median of several such queues counts. Data are
random: matrix units clock higher on zeros.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from leapjax.benchmarks import floor
from leapjax.models.layers import precision_for

COPY_BYTES = 4 * 2**30  # of the array that is copied; no cache holds a hundredth
SQUARES = (4096, 8192)
QUEUE = 10  # calls that are waited for together


def median_seconds(call: Callable[[Any], Any], first: Any, repeats: int, queue: int) -> float:
    """Seconds of one call, each on what the call before returned.

    Args:
      call: takes and returns arrays on the device.
      first: what the first call takes.
      repeats: queues; their median counts, after one that does not.
      queue: calls in each.
    """
    times, value = [], first
    for _ in range(repeats + 1):
        jax.block_until_ready(value)
        start = time.perf_counter()
        for _ in range(queue):
            value = call(value)
        jax.block_until_ready(value)
        times.append((time.perf_counter() - start) / queue)
    return statistics.median(times[1:])


def copy_bandwidth(size: int, repeats: int, queue: int = QUEUE) -> float:
    """Bytes per second, read and written, of one operation over an array that it replaces."""
    x = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    step = jax.jit(lambda x: x + jnp.uint32(1), donate_argnums=0)
    return 2 * x.nbytes / median_seconds(step, x, repeats, queue)


def read_bandwidth(size: int, repeats: int, queue: int = QUEUE) -> float:
    """Bytes per second of reading an array once, for the sums of its rows."""
    x = jax.random.normal(jax.random.key(0), (size // 2 // 2**15, 2**15), jnp.bfloat16)
    sums = jax.jit(lambda x: jnp.sum(x, axis=1, dtype=jnp.float32))
    return x.nbytes / median_seconds(lambda _: sums(x), x, repeats, queue)


def matrix_rate(dtype, sizes: tuple[int, ...], repeats: int, queue: int = QUEUE):
    """The best rate over squares of a dtype.

    Args:
      dtype: of the factors and the product.
      sizes: of the squares.
      repeats: see `median_seconds`.
      queue: likewise.

    Returns:
      FLOPs per second, and over which square.
    """
    best = 0.0, ""
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision_for(dtype)))
    for n in sizes:
        a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(dtype) for i in range(2))
        seconds = median_seconds(lambda _, a=a, b=b: product(a, b), a, repeats, queue)
        best = max(best, (2 * n**3 / seconds, f"XLA, {n} x {n}, {jnp.dtype(dtype).name}"))
    return best


def measure(dtype: str, quick: bool = False) -> floor.Machine:
    """Measure the default device; a CPU by `leapjax.benchmarks.floor.measure`, in float32.

    Args:
      dtype: of the matrix products.
      quick: tiny arrays, to try the code; the numbers mean nothing.
    """
    if jax.default_backend() == "cpu":
        return floor.measure(quick)
    size, sizes, repeats = COPY_BYTES, SQUARES, 5
    if quick:
        size, sizes, repeats = 2**20, (64,), 1
    rate, by = matrix_rate(jnp.dtype(dtype), sizes, repeats)
    return floor.Machine(
        rate,
        by,
        copy_bandwidth(size, repeats),
        size,
        0,
        len(os.sched_getaffinity(0)),
        read_bandwidth(size, repeats),
    )
