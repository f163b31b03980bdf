"""Tokens per second of a slice: what the parts of a pass take, times how often they run.

How often is simulated (`leapjax.planning.schedule`, the engine's own schedule): rows that begin a
block refresh in turns, and freed slots are refilled. A block takes W / tokens_per_step passes in
the mean, the first of them the full one. With a block cache each row is prefilled, piece by piece,
and blocks are stored: in the next block's first pass, which is wider, or (where that pass decides
the next block's first token) in a pass of their own, in which no policy decides. How long a part
takes is said three times:

    bound    the roofline (`roofline`): what it must compute, move and exchange, the largest of
             the three; no program is faster
    bytes    the larger of FLOPs / peak and the bytes that the compiled program moves / bandwidth
    cycles   the TPU compiler's own estimate, at the chip's clock

To the last two comes the exchange (`exchange`), by the bytes of the program's collectives: of
synchronous ones always, of asynchronous ones what is longer than the other work. All three are
estimates. Left out: the host between two chunks, and what the runtime adds.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from leapjax.decoding import Program
from leapjax.decoding.prefill import piece_columns, prefills
from leapjax.planning import audit, exchange, need, roofline
from leapjax.planning.chips import Slice
from leapjax.planning.schedule import Counts, simulate_for
from leapjax.sharding import MeshShape


def _rows(slots: int) -> int:
    """Rows of the simulated decode: many, so that its begin and end hardly count."""
    return max(512, 16 * slots)


@functools.lru_cache(maxsize=256)
def schedule(program: Program, slots: int, tokens_per_step: float) -> Counts:
    """Simulate a long decode of a replica.

    A row's blocks differ in their steps: after each committed token but the last, the step ends
    with the probability that gives W / tokens_per_step steps in the mean. Where a block's first
    token is decided by no policy, W - 1 are committed.

    `tokens_per_step`: tokens that a row's policy commits in a step, in the mean; 1 to W.
    """
    decided = max(program.block_length - program.model.seeds_blocks, 1)
    steps = decided / min(max(tokens_per_step, 1.0), decided)
    ends = (steps - 1) / max(decided - 1, 1)
    rng = np.random.default_rng(0)
    each = 1 + rng.binomial(decided - 1, ends, (_rows(slots), program.blocks))
    return simulate_for(program, each.tolist(), slots)


def estimate(
    where: Slice,
    mesh: MeshShape,
    program: Program,
    slots: int,
    *,
    tokens_per_step: float,
    quantize: str | None = None,
    counted: Mapping[str, Any] | None = None,
    cycles: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Estimate the speed of a slice.

    `tokens_per_step`: tokens that a row commits in a pass: an assumption. `counted`: of a compiled
    program, bytes `moved` by each part, and what runs `outside` the loop, once a chunk, or around a
    row's prefill; and `collectives`. None estimates the bound and `serial`, which adds up
    computing, moving and exchanging. `cycles`: the compiler's estimate of the same parts. Returns
    JSON-ready: `schedule`, how often each part runs in the simulated decode; `parts`, their least
    times; `exchange`, seconds of their collectives; `seconds` of each part by kind; `step_s` and
    `tokens_per_s_chip` by kind.
    """
    w, rows = program.block_length, _rows(slots)
    counts = schedule(program, slots, tokens_per_step)
    least = roofline.parts(where, mesh, program, slots, quantize)
    runs = {
        need.WINDOW: counts.window_passes,
        need.REFRESH: counts.turns,
        need.STORE: counts.turns,
        need.PREFILL: rows * _pieces(program),
        need.FULL: counts.passes,
        need.BESIDES: counts.passes,
    }
    runs = {part: runs[part] for part in least} | {audit.OUTSIDE: counts.chunks}
    if prefills(program):
        runs |= {audit.AROUND: rows, need.WRITE: 0 if need.STORE in least else counts.stored}
    seconds = {"bound": {part: time.seconds for part, time in least.items()}}
    if counted is None:
        seconds["serial"] = {p: t.compute + t.memory + t.exchange for p, t in least.items()}
    exchanged: dict[str, dict[str, float]] = {}
    if counted is not None and cycles is not None:
        exchanged = _exchanged(where, counted)
        bandwidth = where.chip.bandwidth / where.chip.devices
        alone = {
            "bytes": {
                part: max(n / bandwidth, least[part].compute if part in least else 0.0)
                for part, n in counted["moved"].items()
            },
            "cycles": {part: n / where.chip.clock for part, n in cycles.items()},
        }
        for kind, parts in alone.items():
            seconds[kind] = {
                part: max(s, exchanged[part]["asynchronous"]) + exchanged[part]["synchronous"]
                for part, s in parts.items()
            }
    tokens = rows * program.blocks * w * mesh.data / (mesh.devices / where.chip.devices)
    whole = {kind: sum(runs[p] * s for p, s in each.items()) for kind, each in seconds.items()}
    return {
        "schedule": {"tokens": rows * program.blocks * w, "passes": counts.passes} | runs,
        "parts": {
            name: dataclasses.asdict(time) | {"bound_by": time.bound}
            for name, time in least.items()
        },
        "exchange": exchanged,
        "seconds": seconds,
        "step_s": {kind: s / counts.passes for kind, s in whole.items()},
        "tokens_per_s_chip": {kind: tokens / s for kind, s in whole.items()},
    }


def _pieces(program: Program) -> int:
    """Pieces of a row's prefill; the prompt fills its bucket."""
    return math.ceil((program.length - program.gen_length) / piece_columns(program))


def _exchanged(where: Slice, counted: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of each part's collectives."""
    out = {part: {"synchronous": 0.0, "asynchronous": 0.0} for part in counted["moved"]}
    for one in counted["collectives"]:
        way = "asynchronous" if one["asynchronous"] else "synchronous"
        out[one["part"]][way] += exchange.seconds(where, one)
    return out
