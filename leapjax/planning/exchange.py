"""How long the collectives of a compiled program take, by the bytes that they exchange.

Over c chips, of a result of B bytes a device, each device sends

    all-reduce            2 (c - 1) / c B       all-gather, all-to-all   (c - 1) / c B
    reduce-scatter          (c - 1)     B       collective-permute                   B

over as many links as the chips' line or rectangle has dimensions, a permutation and chips that are
no neighbours over one; and each takes c hops of 1 us, a permutation one. What the devices of one
chip tell each other is free. An asynchronous collective takes its time beside the other work.

Latency of a hop: "How to Scale Your Model", https://jax-ml.github.io/scaling-book/sharding.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from leapjax.planning.audit import Pass
from leapjax.planning.chips import Slice
from leapjax.sharding import MeshShape

HOP = 1e-6  # seconds
_SENT = {
    "all-reduce": lambda c: 2 * (c - 1) / c,
    "all-gather": lambda c: (c - 1) / c,
    "all-to-all": lambda c: (c - 1) / c,
    "reduce-scatter": lambda c: c - 1,
    "collective-permute": lambda c: 1,
}


def listed(parts: Iterable[Pass], mesh: MeshShape) -> list[dict[str, Any]]:
    """The collectives of a replica's program, equal ones together.

    `parts` are those of an audit. The result is JSON-ready: of each its `part`, `kind`, mesh axes
    that it is `over`, `group` (a group of devices that exchange), `bytes` of its result on a
    device, whether `asynchronous`, and `times`.
    """
    count: Counter[tuple] = Counter()
    for part in parts:
        for each in part.exchanges:
            c = each.what
            over = c.axes({"fsdp": mesh.fsdp, "expert": mesh.expert, "tensor": mesh.tensor})
            group = (c.groups or ((),))[0] or tuple(range(mesh.replica))
            words = "?" if over is None else ",".join(over)
            count[part.name, c.kind, words, group, c.bytes, c.asynchronous] += each.times
    names = ("part", "kind", "over", "group", "bytes", "asynchronous")
    return [dict(zip(names, key, strict=True)) | {"times": n} for key, n in count.items()]


def seconds(where: Slice, one: Mapping[str, Any]) -> float:
    """Seconds that a collective takes, all its times together."""
    chips = {device // where.chip.devices for device in one["group"]}
    if (c := len(chips)) == 1:
        return 0.0
    permuted = one["kind"] == "collective-permute"
    neighbours = max(chips) - min(chips) == c - 1
    links = where.spanned(max(one["group"]) + 1) if neighbours and not permuted else 1
    sent = one["bytes"] * _SENT[one["kind"]](c)
    return one["times"] * (sent / (where.chip.link * links) + HOP * (1 if permuted else c))
