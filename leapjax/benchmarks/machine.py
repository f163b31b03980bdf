"""What this machine can do: its copy bandwidth, and its best rate of matrix products.

On a CPU, NumPy copies with all cores, and XLA, NumPy and torch (where installed) multiply; the
best of some repetitions counts. On an accelerator, calls are queued one after the other and waited
for once, so that a call's way from the host is hidden behind the work of the one before; the median
of several queues counts. Data are random: matrix units clock higher on zeros.
"""

import dataclasses
import functools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.benchmarks.timing import summarise, timed
from leapjax.ops import hardware
from leapjax.ops.primitives import precision_for
from leapjax.planning.work import Work

CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 32 * 2**20  # bytes, where the system does not say
COPY_BYTES = 4 * 2**30  # of an accelerator's array that is copied; no cache holds a hundredth
QUEUE = 10  # calls that are waited for together


@dataclasses.dataclass(frozen=True)
class Machine:
    """What this machine was measured to do."""

    flops_per_s: float  # best matrix rate, of float32 on a CPU
    flops_by: str  # who reached it, over which square
    bytes_per_s: float  # copy bandwidth, reads and writes counted
    copy_bytes: int  # size of the array that was copied
    cache_bytes: int  # last-level cache, as the system states it; 0 on an accelerator
    cores: int  # that this process may use
    read_bytes_per_s: float = 0.0  # of reading alone; 0 where it was not measured
    # `copy`, `read` and the dtypes of products -> the rates of all repetitions that count
    # (`summarise`)
    spreads: Mapping[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def seconds(self, work: Work) -> float:
        """The floor of some work: the larger of its FLOPs' time and its bytes'.

        Weights that fit into a cache can be read faster than memory is copied, so that shares of
        the floor above 1 can occur.
        """
        return max(work.flops / self.flops_per_s, work.bytes / self.bytes_per_s)

    def text(self) -> str:
        """What was measured, as a part of a sentence."""
        beside = [f"array of {self.copy_bytes / 1e9:.2f} GB"]
        if self.cache_bytes:
            beside.append(f"last-level cache {self.cache_bytes / 1e9:.2f} GB")
        if self.read_bytes_per_s:
            beside.append(f"it read {self.read_bytes_per_s / 1e9:.1f} GB/s")
        large = self.flops_per_s >= 1e13
        rate, unit = self.flops_per_s / (1e12 if large else 1e9), "TFLOP/s" if large else "GFLOP/s"
        return (
            f"copied {self.bytes_per_s / 1e9:.1f} GB/s ({', '.join(beside)}) and multiplied at "
            f"{rate:.0f} {unit} ({self.flops_by})"
        )


def measure(dtype: str = "float32", quick: bool = False, besides: Sequence[str] = ()) -> Machine:
    """Measure the default device; some seconds.

    `dtype`: of the matrix products; on a CPU they are in float32; `quick`: tiny arrays, to try the
    code; the numbers mean nothing; `besides`: other dtypes whose matrix rate is wanted too, in
    `spreads`.
    """
    on_cpu, cores = hardware.on_cpu(), len(os.sched_getaffinity(0))
    cache = last_level_cache() if on_cpu else 0
    size, squares, repeats = 4 * cache or COPY_BYTES, (1024, 2048, 4096), 5
    if not on_cpu:
        squares = 4096, 8192
    if quick:
        size, squares, repeats = 2**20, (64,), 1
    dtype = "float32" if on_cpu else dtype
    timing = repeated_seconds if on_cpu else queued_seconds
    counts = max if on_cpu else statistics.median
    seconds = functools.partial(timing, repeats=repeats)
    others = host_products if on_cpu else no_products
    rates, by = matrix_rates(dtype, squares, seconds, counts, others)
    found = {dtype: rates}
    for name in set(besides) - {dtype}:
        # Two sizes: the largest takes a CPU without units for it very long.
        found[name], _ = matrix_rates(name, squares[:2], seconds, counts)
    if on_cpu:
        found["copy"] = host_copy_bandwidth(size, cores, repeats)
    else:
        found |= {"copy": copy_bandwidth(size, repeats), "read": read_bandwidth(size, repeats)}
    rate = {name: counts(each) for name, each in found.items()}
    return Machine(
        rate[dtype],
        by,
        rate["copy"],
        size,
        cache,
        cores,
        rate.get("read", 0.0),
        {name: summarise(each) for name, each in found.items()},
    )


def last_level_cache(folder: Path = CACHE_FOLDER) -> int:
    """Bytes of the largest cache that the system names, or a guess."""
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        if digits.isdigit():
            sizes.append(int(digits) * unit)
    return max(sizes, default=UNKNOWN_CACHE)


def repeated_seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of some repetitions, after one that does not count."""
    return [timed(lambda: jax.block_until_ready(run())) for _ in range(repeats + 1)][1:]


def queued_seconds(
    call: Callable[..., Any], *first: Any, repeats: int, queue: int = QUEUE
) -> list[float]:
    """Seconds of one call of several that are queued, by queue.

    `call`: takes and returns arrays on the device. `first`: what the first call takes; the others
    take what the call before returned. Empty if it takes nothing. `repeats`: queues, after one that
    does not count.
    """
    value: tuple[Any, ...] = first

    def run():
        nonlocal value
        for _ in range(queue):
            out = call(*value)
            value = (out,) if first else ()
        jax.block_until_ready(out)

    jax.block_until_ready(first)
    return [timed(run) / queue for _ in range(repeats + 1)][1:]


def copy_bandwidth(size: int, repeats: int, queue: int = QUEUE) -> list[float]:
    """Bytes per second, read and written, of operations over an array that each replaces."""
    x = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    step = jax.jit(lambda x: x + jnp.uint32(1), donate_argnums=0)
    size = 2 * x.nbytes  # the first call donates it
    return [size / s for s in queued_seconds(step, x, repeats=repeats, queue=queue)]


def read_bandwidth(size: int, repeats: int, queue: int = QUEUE) -> list[float]:
    """Bytes per second of reading an array, for the sums of its rows."""
    x = jax.random.normal(jax.random.key(0), (size // 2 // 2**15, 2**15), jnp.bfloat16)
    sums = jax.jit(lambda x: jnp.sum(x, axis=1, dtype=jnp.float32))
    return [x.nbytes / s for s in queued_seconds(lambda: sums(x), repeats=repeats, queue=queue)]


def host_copy_bandwidth(size: int, threads: int, repeats: int) -> list[float]:
    """Bytes per second, read and written, of copying an array with all cores.

    `size`: bytes of the array.
    """
    source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), parts))

        return [2 * source.nbytes / s for s in repeated_seconds(copy, repeats)]


def no_products(a, b) -> dict[str, Callable[[], Any]]:
    """Nobody multiplies beside XLA."""
    return {}


def matrix_rates(
    dtype,
    sizes: Sequence[int],
    seconds: Callable[[Callable[[], Any]], list[float]],
    counts: Callable[[list[float]], float],
    others: Callable[[Any, Any], dict[str, Callable[[], Any]]] = no_products,
) -> tuple[list[float], str]:
    """The best rates over squares of a dtype.

    `dtype`: of the factors and the product; `counts`: by which of several rates they are compared;
    `others`: name -> product of two matrices, for who takes part beside XLA. Returns the FLOP/s of
    each repetition, and who reached them over which square.
    """
    best: tuple[list[float], str] = [0.0], ""
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision_for(jnp.dtype(dtype))))
    for n in sizes:
        a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(dtype) for i in range(2))
        runs = {"XLA": lambda a=a, b=b: product(a, b)} | others(a, b)
        for name, run in runs.items():
            found = [2 * n**3 / s for s in seconds(run)], f"{name}, {n} x {n}, {jnp.dtype(dtype)}"
            best = max(best, found, key=lambda pair: counts(pair[0]))
    return best


def host_products(a, b) -> dict[str, Callable[[], Any]]:
    """Products of two float32 matrices on a CPU by NumPy and, where installed, torch."""
    # Copies, because JAX's arrays may not be written to, and torch warns of such.
    a, b = np.array(a), np.array(b)
    out = np.empty_like(a)
    runs: dict[str, Callable[[], Any]] = {"NumPy": lambda: np.matmul(a, b, out=out)}
    try:
        import torch  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        return runs
    ta, tb, to = (torch.from_numpy(x) for x in (a, b, out))
    return runs | {"torch": lambda: torch.mm(ta, tb, out=to)}
