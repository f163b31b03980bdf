"""How long the parts of a pass take at least: a roofline, stated so that it can be argued with.

    window pass    the layers over the columns that most steps compute, of all rows
    refresh pass   a turn of a refresh: the layers over whole sequences, of `refresh_group` rows
    storing pass   a turn that stores finished blocks: the layers over two blocks of its rows
    prefill        a piece of a row's prompt: the layers over its columns
    full pass      without a cache: the layers over whole sequences, of all rows
    besides        the rest of a pass: the head over the windows of all rows

    seconds  = the largest of compute, memory and exchange, as if all were done at the same time
    compute  = FLOPs / devices that share them / peak
    memory   = bytes that a part has to move (`leapjax.planning.need`) a device / bandwidth
    exchange = bytes of all-reduce / links, and 1 us a hop; with fsdp, weights gathered too

FLOPs are those of `leapjax.planning.work`: 2 a weight and computed position, 4 T H E a query
and layer, the head on the window only, the last layer's output on the window only in a full
pass; of experts those that a position chooses. A replica's devices share them, but along `expert`
every device computes all rows in everything but experts. A row that is prefilled attends to half of
its columns in the mean. int8 weights are multiplied in the compute dtype.

Each layer sums (rows, positions, D) over `tensor` twice, and the embedding once: an all-reduce, or
a reduce-scatter and an all-gather, which send as much. The sum after experts is over all of the
replica's devices, and of all of its rows. Over c chips one sends 2 (c - 1) / c of its
bytes over as many links as the replica has dimensions (lines without wrap-around; XLA may do better
on a torus), in c hops of 1 us (latency of a hop: "How to Scale Your Model",
https://jax-ml.github.io/scaling-book/sharding). What the two devices of a chip tell each other is
free. Over `fsdp` the layers' weights, but for experts, are gathered once a pass over one link.

Left out: attention scores, logits, norms. Peaks are never reached. What a compiled
program really moves is counted by `leapjax.planning.audit`; `leapjax.planning.speed` puts these
bytes in the place of the least ones, and adds up what the engine's schedule runs.
"""

import dataclasses

from leapjax.decoding import Program
from leapjax.planning import need, work
from leapjax.planning.chips import Slice
from leapjax.planning.exchange import HOP, seconds
from leapjax.sharding import MeshShape


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a pass by what could bound it."""

    compute: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """As if all three were done at the same time."""
        return max(self.compute, self.memory, self.exchange)

    @property
    def bound(self) -> str:
        """Which is the largest."""
        names = ("compute", "memory", "exchange")
        return max(names, key=lambda name: getattr(self, name))


def parts(
    where: Slice, mesh: MeshShape, program: Program, slots: int, quantize: str | None = None
) -> dict[str, Time]:
    """The least time of each part of a pass of a replica.

    `besides`, and the passes that the cache has, by name.
    """
    model, chip = program.model, where.chip
    t, w = program.length, program.block_length
    todo = need.passes(mesh, program, slots, quantize)
    share = 1 / chip.devices  # several JAX devices a chip share its figures

    def time(flops: float, needed: need.Need, exchange: float, routed: float = 0.0) -> Time:
        each = flops / (mesh.fsdp * mesh.tensor) + routed / mesh.replica
        compute = each / (chip.flops * share)
        return Time(compute, needed.total / (chip.bandwidth * share), exchange)

    def layers(name: str, rows: int, whole: bool) -> Time:
        expected = todo.passes[name]
        positions = expected.columns
        attended = t // 2 if name == need.PREFILL else t
        if whole:
            counted = work.full_pass_flops(model, rows, t, w)
        else:
            counted = work.window_pass_flops(model, rows, attended, positions)
        # Rows of a turn are not spread over fsdp. The last layer's sums may be over windows only.
        spread = mesh.fsdp if name in (need.WINDOW, need.FULL) else 1
        stream = rows * model.d_model * program.compute_dtype.itemsize
        routed = sum(run.n_layers for run in model.runs if run.experts)
        cut, last = positions - w if whole else 0, model.runs[-1].experts is not None
        sums = 2 * model.n_layers + 1 - routed
        summed = stream * (sums * positions - (2 - last) * cut)
        exchange = _exchange(where, mesh.tensor, sums, summed / spread)
        exchange += _exchange(
            where, mesh.replica, routed, stream * (routed * positions - last * cut)
        )
        if mesh.fsdp > 1:
            gathered = (expected.need.weights - expected.need.experts) / mesh.fsdp
            exchange += (mesh.fsdp - 1) * gathered / (chip.link * share)
            exchange += model.n_layers * mesh.fsdp * HOP
        everywhere = counted["matrices"] + counted["attention"]
        return time(everywhere, expected.need, exchange, counted["experts"])

    head = work.window_pass_flops(model, slots, t, w)["head"]
    turn = min(program.refresh_group or slots, slots)
    rows = {need.WINDOW: slots, need.FULL: slots, need.PREFILL: 1}
    rows |= {need.REFRESH: turn, need.STORE: turn}
    whole = (need.REFRESH, need.FULL)
    found = {name: layers(name, rows[name], name in whole) for name in todo.passes}
    return found | {need.BESIDES: time(head, todo.besides, 0.0)}


def _exchange(where: Slice, devices: int, sums: int, summed: float) -> float:
    """Seconds of all-reduces.

    `devices`: that take part in each, neighbours; `summed`: bytes of all of them.
    """
    if not sums:
        return 0.0
    one = {"kind": "all-reduce", "group": range(devices), "bytes": summed / sums, "times": sums}
    return seconds(where, one)
