"""The least time that a decode can take on this machine, and what the machine can do.

A pass must multiply, and must read, at least this (docs/performance.md):

    matrices    2 FLOPs a weight and computed position, in every layer; in a pass over the whole
                sequence the last layer's query, output and MLP on the window only, because only
                the window's outputs are read (its keys and values may be cached, so they count)
    attention   4 T FLOPs a query and unit of width, for scores and mixing
    head        2 D V FLOPs a position of the window
    bytes       the weights of layers and head once a pass, however many rows; with a cache also
                its keys and values: written by a full pass, read by a window's

Left out, so that the floor stays one: embeddings, norms, softmaxes, logits and other activations,
and whatever an implementation does besides. The floor of a pass is the larger of FLOPs over the
matrix rate and bytes over the copy bandwidth. Weights that fit into a cache can be read faster than
memory is copied; a share above 1 says so.

Shapes: B rows, T columns, W window, V vocabulary, L layers, D width.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.benchmarks.job import Decoded
from leapjax.models.config import ModelConfig

CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 32 * 2**20  # bytes, where the system does not say


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done at least.

    Attributes:
      flops: multiplications and additions of matrix products.
      bytes: to and from memory.
    """

    flops: float
    bytes: float


def _per_position(config: ModelConfig) -> tuple[int, int]:
    """Weights of one layer: of keys and values, and of all the rest."""
    d, e = config.d_model, config.head_dim
    keys_values = 2 * d * config.n_kv_heads * e
    rest = 2 * d * config.n_heads * e + 3 * d * config.mlp_hidden_size
    return keys_values, rest


def _weight_bytes(config: ModelConfig, item: int) -> int:
    keys_values, rest = _per_position(config)
    return item * (config.n_layers * (keys_values + rest) + config.vocab_size * config.d_model)


def _cache_bytes(config: ModelConfig, columns: int, item: int) -> int:
    return 2 * item * config.n_layers * columns * config.n_kv_heads * config.head_dim


def full_pass(
    config: ModelConfig, rows: float, columns: int, window: int, cached: bool, item: int = 4
) -> Work:
    """A pass over whole sequences whose window is proposed for.

    Args:
      config: the model's shape.
      rows: B.
      columns: T, pads not counted.
      window: W.
      cached: keys and values are kept.
      item: bytes a number.
    """
    kept = rows * _cache_bytes(config, columns, item) if cached else 0
    flops = sum(full_pass_flops(config, rows, columns, window).values())
    return Work(flops, _weight_bytes(config, item) + kept)


def full_pass_flops(
    config: ModelConfig, rows: float, columns: int, window: int
) -> dict[str, float]:
    """FLOPs of a pass over whole sequences by what they are for; arguments as for `full_pass`.

    Returns:
      `matrices`, `attention` and `head`.
    """
    keys_values, rest = _per_position(config)
    attention = 4 * columns * config.n_heads * config.head_dim
    before = (config.n_layers - 1) * columns  # positions of all layers but the last
    return {
        "matrices": rows * 2 * ((before + columns) * keys_values + (before + window) * rest),
        "attention": rows * (before + window) * attention,
        "head": rows * window * 2 * config.d_model * config.vocab_size,
    }


def window_pass(config: ModelConfig, rows: float, columns: int, window: int, item: int = 4) -> Work:
    """A pass over a window of each row against a cache; arguments as for `full_pass`."""
    keys_values, rest = _per_position(config)
    attention = 4 * columns * config.n_heads * config.head_dim
    layers = config.n_layers * window * (2 * (keys_values + rest) + attention)
    head = window * 2 * config.d_model * config.vocab_size
    kept = rows * _cache_bytes(config, columns, item)
    return Work(rows * (layers + head), _weight_bytes(config, item) + kept)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What this machine was measured to do.

    Attributes:
      flops_per_s: best matrix rate, of float32 on a CPU.
      flops_by: who reached it, over which square.
      bytes_per_s: copy bandwidth, reads and writes counted.
      copy_bytes: size of the array that was copied.
      cache_bytes: last-level cache, as the system states it.
      cores: that this process may use.
      read_bytes_per_s: of reading alone; 0 where it was not measured.
    """

    flops_per_s: float
    flops_by: str
    bytes_per_s: float
    copy_bytes: int
    cache_bytes: int
    cores: int
    read_bytes_per_s: float = 0.0

    def seconds(self, work: Work) -> float:
        """The floor of some work."""
        return max(work.flops / self.flops_per_s, work.bytes / self.bytes_per_s)


def decode_seconds(
    machine: Machine,
    config: ModelConfig,
    decoded: Decoded,
    columns: int,
    window: int,
    cached: bool,
) -> float:
    """The floor of a decode: of its full passes, and of its passes over windows.

    Rows share as many passes as they can: as many turns as the row with most needs.

    Args:
      machine: this one.
      config: the model's shape.
      decoded: steps and full passes of each row.
      columns: T, pads not counted.
      window: W.
      cached: with a dual cache.
    """
    full = decoded.full_passes
    short = [s - f for s, f in zip(decoded.steps, full, strict=True)]
    total = 0.0
    for counts, is_full in ((full, True), (short, False)):
        turns = max(counts)
        if turns == 0:
            continue
        rows = sum(counts) / turns  # a turn, on average
        if is_full:
            work = full_pass(config, rows, columns, window, cached)
        else:
            work = window_pass(config, rows, columns, window)
        total += turns * machine.seconds(work)
    return total


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


def best_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The fastest of some repetitions, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def copy_bandwidth(size: int, threads: int, repeats: int) -> float:
    """Bytes per second, read and written, of copying an array with all cores.

    Args:
      size: bytes of the array.
      threads: that copy, each its part.
      repeats: the best counts.
    """
    source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), parts))

        return 2 * source.nbytes / best_seconds(copy, repeats)


def matrix_rate(sizes: tuple[int, ...], repeats: int) -> tuple[float, str]:
    """The best float32 rate over squares, of XLA, NumPy and, where installed, torch.

    Args:
      sizes: of the squares.
      repeats: the best counts.

    Returns:
      FLOPs per second, and who reached them.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        torch = None
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    best = 0.0, ""
    for n in sizes:
        a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
        out = np.empty_like(a)
        xa, xb = jnp.asarray(a), jnp.asarray(b)
        runs = {
            "XLA": lambda xa=xa, xb=xb: jax.block_until_ready(product(xa, xb)),
            "NumPy": lambda a=a, b=b, out=out: np.matmul(a, b, out=out),
        }
        if torch is not None:
            ta, tb, to = (torch.from_numpy(x) for x in (a, b, out))
            runs["torch"] = lambda ta=ta, tb=tb, to=to: torch.mm(ta, tb, out=to)
        for name, run in runs.items():
            rate = 2 * n**3 / best_seconds(run, repeats)
            best = max(best, (rate, f"{name}, {n} x {n}"))
    return best


def measure(quick: bool = False) -> Machine:
    """Measure this machine; some seconds.

    Args:
      quick: tiny arrays, to try the code; the numbers mean nothing.
    """
    cores = len(os.sched_getaffinity(0))
    cache = last_level_cache()
    size, sizes, repeats = 4 * cache, (1024, 2048, 4096), 5
    if quick:
        size, sizes, repeats = 2**20, (64,), 1
    rate, by = matrix_rate(sizes, repeats)
    return Machine(rate, by, copy_bandwidth(size, cores, repeats), size, cache, cores)
