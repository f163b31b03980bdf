"""What to try on a slice: meshes, rows a replica and forms of the weights, by the roofline.

Replicas along `data` run the same program on their own devices, so a slice has the same speed per
chip as one replica.
"""

import dataclasses
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.decoding import Program, program_for
from leapjax.models.config import ModelConfig
from leapjax.ops import hardware
from leapjax.planning import chips, need, speed
from leapjax.planning.work import sparsity
from leapjax.serve.sizes import bucket
from leapjax.sharding import MeshShape

MOST_ROWS = 512  # of a replica
TILE = 128  # columns of a TPU's matrix in memory
_ENOUGH = 0.97  # of the best speed: fewer rows answer sooner


@dataclasses.dataclass(frozen=True)
class Workload:
    """The workload to plan for."""

    model: ModelConfig
    config: DecodeConfig
    prompt_length: int  # tokens
    dtype: str  # of computation, and of weights that are not quantised
    batch: int | None = None  # rows on the slice at once; None searches
    # rows that a refresh or a storing pass computes at a time; None is the engine's default on the
    # TPU
    refresh_group: int | None = None
    tokens_per_step: float = 4.0  # assumed, a row
    quantize: tuple[str | None, ...] = (None,)  # forms of the weights, as in `leapjax.load`

    def rows(self, mesh: MeshShape) -> list[int]:
        """Rows per replica to try: the given number, or powers of two and 1.5 times them."""
        if self.batch is not None:
            rows = -(-self.batch // mesh.data)
            return [-(-rows // mesh.fsdp) * mesh.fsdp]
        steps = {n for i in range(10) for n in (2**i, 3 * 2**i // 2)}
        return sorted(n for n in steps if n <= MOST_ROWS and n % mesh.fsdp == 0)

    def program(self, chip: chips.Chip) -> Program:
        """The decode program of a replica on this kind of chip."""
        length = bucket(self.prompt_length) + self.config.gen_length
        kind, group, sparse = (
            hardware.of_tpu(chip.kinds[0]),
            self.refresh_group,
            sparsity(self.model),
        )
        if group is None and self.model.block_causal:
            w = self.config.for_model(self.model).block_length
            group = kind.storing_group(w or length, self.dtype, sparse)
        elif group is None:
            group = kind.refresh_group(length, self.dtype, sparse)
        return program_for(
            self.config,
            self.model,
            length=length,
            dtype=self.dtype,
            eot_token_id=None,
            refresh_group=group,
        )

    def estimate(
        self, where: chips.Slice, mesh: MeshShape, slots: int, quantize: str | None, **found
    ) -> dict[str, Any]:
        """The estimated speed of a slice; arguments and result as in `speed.estimate`."""
        known = {"tokens_per_step": self.tokens_per_step, "quantize": quantize}
        return speed.estimate(where, mesh, self.program(where.chip), slots, **known, **found)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a form of the weights, with the rows that may fit."""

    where: chips.Slice
    mesh: MeshShape
    quantize: str | None  # as in `leapjax.load`
    rows: tuple[int, ...]  # of a replica, best first
    speed: float  # tokens/s a chip with the first of them, by a roofline where nothing overlaps


def meshes(work: Workload, where: chips.Slice) -> list[MeshShape]:
    """The meshes of a slice; with a given batch no device may be without a row.

    Sizes are powers of two; `tensor` divides the heads, `expert` and `fsdp` together the experts.
    `tensor` leaves whole tiles of an expert: narrower parts would be laid out anew.
    """
    sizes = [2**i for i in range(10) if where.devices % 2**i == 0]
    routed = [run.experts for run in work.model.runs if run.experts]
    found = (
        MeshShape(
            where.devices // (tensor * expert * fsdp), fsdp=fsdp, expert=expert, tensor=tensor
        )
        for tensor in sizes
        for expert in (sizes if routed else (1,))
        for fsdp in (1, 2, 4, 8)
        if where.devices % (tensor * expert * fsdp) == 0
        and work.model.n_heads % tensor == 0
        and all(one.count % (expert * fsdp) == 0 for one in routed)
        and all(one.hidden_size % (tensor * TILE) == 0 or tensor == 1 for one in routed)
    )
    return [m for m in found if work.batch is None or work.batch >= m.data * m.fsdp]


def replicas(work: Workload, chip: str, most_chips: int) -> list[tuple[chips.Slice, MeshShape]]:
    """Each kind of replica on the smallest slice on offer that holds one.

    `chip`: name in `chips.CHIPS`.
    """
    found: dict[tuple[int, int, int], tuple[chips.Slice, MeshShape]] = {}
    for where in chips.slices(chip, most_chips):
        for mesh in meshes(work, where):
            found.setdefault((mesh.fsdp, mesh.expert, mesh.tensor), (where, mesh))
    return list(found.values())


def candidates(work: Workload, where: chips.Slice, mesh: MeshShape) -> list[Candidate]:
    """What may fit of a mesh, one for each form of the weights.

    Candidates whose weights, cache and logits alone exceed the memory are left out. The others'
    rows are those with the best speed, or the fewest that nearly reach it, and then fewer.
    """
    has, out = where.chip.hbm / where.chip.devices, []
    for quantize in work.quantize:
        speeds = {}
        for rows in work.rows(mesh):
            program = work.program(where.chip)
            logits = 4 * rows * program.block_length * work.model.vocab_size / mesh.replica
            if need.held(mesh, program, rows, quantize).total + logits >= has:
                break
            said = work.estimate(where, mesh, rows, quantize)
            speeds[rows] = said["tokens_per_s_chip"]["serial"]
        if speeds:
            enough = _ENOUGH * max(speeds.values())
            first = min(n for n, speed in speeds.items() if speed >= enough)
            order = sorted((n for n in speeds if n <= first), reverse=True)
            out.append(Candidate(where, mesh, quantize, tuple(order), speeds[first]))
    return out


def best(found: list[Candidate], tries: int) -> list[Candidate]:
    """The fastest `tries` candidates of each form of the weights."""
    ordered = sorted(found, key=lambda c: (-c.speed, c.mesh.replica, str(c.mesh)))
    forms = dict.fromkeys(c.quantize for c in found)
    kept = [c for form in forms for c in [c for c in ordered if c.quantize == form][:tries]]
    return sorted(kept, key=ordered.index)
