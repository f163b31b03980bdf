"""Mixtures of experts: parameters, experts that a pass reads, exchange, meshes, kernels."""

import dataclasses

import numpy as np
import pytest

from leapjax.config import DecodeConfig
from leapjax.models.config import Experts
from leapjax.planning import (
    audit,
    candidates,
    chips,
    grouped,
    models,
    need,
    roofline,
    work,
)
from leapjax.sharding import MeshShape
from tests.planning.shapes import program

MINI = models.find("llada2-mini")
D, HEADS, KV, F, ONE = 2048, 16 * 128, 4 * 128, 5120, 512
ATTENTION = 2 * D * HEADS + 2 * D * KV
SMALL = 2 * D + 2 * 128  # norms of a layer
EXPERT = 3 * D * ONE


@pytest.mark.parametrize(
    ("name", "total", "active"),  # billions; of releases "16B-A1B", "100B-A6B", "30B-A3B", "7B-A1B"
    [
        ("llada2-mini", 16.26, 1.43),
        ("llada2-flash", 102.89, 6.15),
        ("sdar-30b-a3b", 30.53, 3.35),
        ("llada-moe-7b-a1b", 7.36, 1.72),
        ("llada-8b", 8.02, 8.02),
    ],
)
def test_parameters_of_released_models(name, total, active):
    found = work.parameters(models.find(name))
    assert [round(n / 1e9, 2) for n in found] == [total, active]


def test_parameters_by_hand():
    """LLaDA2-mini: a dense layer, then 19 of 256 experts: a token uses 8, and a shared one."""
    dense = ATTENTION + SMALL + 3 * D * F
    sparse = ATTENTION + SMALL + D * 256 + 256 + EXPERT
    outside = 2 * 157_184 * D + D
    assert work.parameters(MINI) == (
        outside + dense + 19 * (sparse + 256 * EXPERT),
        outside + dense + 19 * (sparse + 8 * EXPERT),
    )


@pytest.mark.parametrize("tokens", [1, 8, 32])
@pytest.mark.parametrize("groups", [(1, 1), (8, 4)])
def test_experts_touched(tokens, groups):
    """Drawn at random, with and without groups: the mean is that of the formula."""
    (count, top), x, k = groups, 32, 4
    rng = np.random.default_rng(tokens)
    seen = []
    for _ in range(400):
        score = rng.random((tokens, x))
        best = rng.random((tokens, count)).argsort(axis=1) < top  # groups that are allowed
        score[~np.repeat(best, x // count, axis=1)] = -1
        seen.append(len(np.unique(score.argsort(axis=1)[:, -k:])))
    experts = Experts(x, k, 8, groups=count, top_groups=top)
    error = np.std(seen) / 20 + 1e-3
    assert abs(work.touched(experts, tokens) - np.mean(seen)) < 4 * error
    assert work.touched(experts, 1) == pytest.approx(k)


def test_a_pass_reads_the_experts_that_its_tokens_touch():
    """LLaDA2-mini, 2 rows of blocks of 32 in turns of 0 rows: passes of 64 tokens."""
    made = program("llada2-mini", "block", refresh_group=0)
    touched = 256 * (1 - (1 - 8 / 256) ** 64)
    assert 222 < touched < 223
    layers = 20 * (ATTENTION + SMALL) + 3 * D * F + 19 * (D * 256 + 256 + EXPERT)
    found = need.passes(MeshShape(), made, 2).passes[need.WINDOW]
    assert found.need.experts == pytest.approx(2 * 19 * touched * EXPERT)
    assert found.need.weights == pytest.approx(2 * (layers + 19 * touched * EXPERT))
    # Over devices: each reads its share; the rest is split over tensor only, rows over nothing.
    for mesh, dense in (
        (MeshShape(expert=4), 1),
        (MeshShape(expert=2, tensor=2), 2),
        (MeshShape(fsdp=2, expert=2), 1),
    ):
        split = need.passes(mesh, made, 2).passes[need.WINDOW]
        assert split.need.experts == pytest.approx(2 * 19 * touched * EXPERT / 4)
        small = 19 * 2 * (D * 256 + 256)  # routers
        rest = split.need.weights - split.need.experts
        assert (layers * 2 - small) / dense <= rest * 1.001 < (layers * 2) / dense + 1.1 * small
        assert split.routing.touched == pytest.approx(touched / mesh.fsdp / mesh.expert)
    # int8: a byte a weight, and float32 scales of each expert's outputs.
    whole = need.passes(MeshShape(), made, 2, "int8").passes[need.WINDOW]
    scales = 4 * (2 * ONE + D)
    assert whole.need.experts == pytest.approx(19 * touched * (EXPERT + scales))


def test_the_roofline_of_experts():
    """FLOPs of chosen experts on the devices that share them, and a sum over all of these."""
    made, where = program("llada2-mini", "block", refresh_group=0), chips.parse("v6e:2x2")
    rows, w, t = 2, 32, 768
    tokens = rows * w
    alike = 2 * tokens * (20 * ATTENTION + 3 * D * F + 19 * (D * 256 + EXPERT))
    alike += 20 * 4 * tokens * t * HEADS
    routed = 2 * tokens * 19 * 8 * EXPERT
    stream = tokens * D * 2
    for mesh, shared, sums in (
        (MeshShape(), 1, (0, 1)),
        (MeshShape(expert=4), 1, (0, 19)),
        (MeshShape(expert=2, tensor=2), 2, (20 + 1 + 1, 19)),
    ):
        found = roofline.parts(where, mesh, made, rows)[need.WINDOW]
        assert found.compute == pytest.approx((alike / shared + routed / mesh.replica) / 918e12)
        summed = 0.0
        for devices, count in zip((mesh.tensor, mesh.replica), sums, strict=True):
            if devices > 1:
                link = 100e9 * where.spanned(devices)
                summed += count * (2 * (devices - 1) / devices * stream / link + devices * 1e-6)
        assert found.exchange == pytest.approx(summed)


def test_a_pass_over_whole_sequences():
    """LLaDA-MoE without a cache: the last layer's MLP is computed for the window only."""
    model = models.find("llada-moe-7b-a1b")
    full = work.full_pass_flops(model, 3, 768, 32)
    assert full["experts"] == 3 * 2 * (15 * 768 + 32) * 8 * 3 * 2048 * 1024
    window = work.window_pass_flops(model, 3, 768, 32)
    assert window["experts"] == 3 * 2 * 16 * 32 * 8 * 3 * 2048 * 1024
    # Bytes: 96 tokens touch all but a few of 64 experts.
    read = 64 * (1 - (7 / 8) ** 96)
    attention = 16 * (4 * 2048 * 2048 + 2048 * 64)
    weights = attention + 16 * read * 3 * 2048 * 1024 + 157_184 * 2048
    cache = 3 * 2 * 16 * 768 * 2048
    assert work.window_pass(model, 3, 768, 32, 2).bytes == pytest.approx(2 * (weights + cache))


def test_turns_have_more_rows_where_few_weights_are_active():
    """A turn waits for all weights, and computes with the active ones."""
    alike, routed = 20 * ATTENTION + 3 * D * F + 19 * (D * 256 + EXPERT), 19 * EXPERT
    sparse = (alike + 256 * routed) / (alike + 8 * routed)
    assert work.sparsity(MINI) == pytest.approx(sparse) and 19 < sparse < 20
    assert work.sparsity(models.find("llada-8b")) == 1
    made = candidates.Workload(MINI, DecodeConfig(gen_length=256), 512, "bfloat16")
    assert made.program(chips.CHIPS["v6e"]).refresh_group == int(560 * sparse // 64)


def test_meshes_of_experts_are_searched():
    config = DecodeConfig(gen_length=256, cache="block", block_length=32)
    made = candidates.Workload(MINI, config, 512, "bfloat16", batch=8)
    where = chips.parse("v6e:2x4")
    found = candidates.meshes(made, where)
    assert MeshShape(expert=8) in found and MeshShape(expert=2, tensor=4) in found
    assert all(m.devices == 8 for m in found) and len(set(found)) == len(found)
    # An expert's 512 columns are four tiles, SDAR's 768 are six.
    assert max(m.tensor for m in found) == 4
    sdar = dataclasses.replace(made, model=models.find("sdar-30b-a3b"))
    assert max(m.tensor for m in candidates.meshes(sdar, where)) == 2
    dense = dataclasses.replace(made, model=models.find("sdar-8b"))
    assert all(m.expert == 1 for m in candidates.meshes(dense, where))
    # On v5e 33 GB of weights fit on no chip alone, and experts split best over all of them.
    fits = [c for m in found for c in candidates.candidates(made, chips.parse("v5e:2x4"), m)]
    assert fits and all(c.mesh.expert * c.mesh.fsdp * c.mesh.tensor > 1 for c in fits)


KERNEL = """\
HloModule jit_run
%layer (p: (s32[], bf16[64,2048])) -> (s32[], bf16[64,2048]) {
  %p = (s32[], bf16[64,2048]{1,0}, bf16[1024,2048,512]{2,1,0}) parameter(0)
  %x = bf16[64,2048]{1,0} get-tuple-element(%p), index=1
  %w = bf16[1024,2048,512]{2,1,0} get-tuple-element(%p), index=2
  %ragged-dot.1 = bf16[64,512]{1,0} custom-call(%x, %w), custom_call_target="tpu_custom_call", \
frontend_attributes={ragged_dot_tiling="TILES"}, \
metadata={op_name="jit(run)/while/body/window pass/while/body/experts/ragged_dot"}
  ROOT %t = (s32[], bf16[64,2048]{1,0}, bf16[1024,2048,512]{2,1,0}) tuple(%i, %x, %w)
}
%more (p: (s32[], bf16[64,2048])) -> pred[] {
  %p = (s32[], bf16[64,2048]{1,0}, bf16[1024,2048,512]{2,1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}
ENTRY %main (a: bf16[64,2048], b: bf16[1024,2048,512]) -> bf16[64,2048] {
  %a = bf16[64,2048]{1,0} parameter(0)
  %b = bf16[1024,2048,512]{2,1,0} parameter(1), metadata={op_name="params[\\'layers\\']"}
  %t = (s32[], bf16[64,2048]{1,0}, bf16[1024,2048,512]{2,1,0}) tuple(%i, %a, %b)
  %l = (s32[], bf16[64,2048]{1,0}, bf16[1024,2048,512]{2,1,0}) while(%t), condition=%more, \
body=%layer, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %o = bf16[64,2048]{1,0} get-tuple-element(%l), index=1
}
"""


@pytest.mark.parametrize(
    ("tiles", "rows", "matrices"),
    [
        # All of K in a tile: an expert's matrix once, rows once for each of 2 tiles of columns.
        ("16,2048,256", 2 * 64 * 2048, 1),
        # K in two tiles: matrices and rows once a step. 64 rows are 4 tiles, 3 of which meet two.
        ("16,1024,512", 0, 0),
    ],
)
def test_a_grouped_product_reads_the_experts_touched(tiles, rows, matrices):
    """8 tokens that choose 8 of 256 experts, in a stack of 4 layers."""
    routing = grouped.Routing(Experts(256, 8, 512), tokens=8)
    touched = 256 * (1 - (1 - 8 / 256) ** 8)
    steps = touched + 3
    expected = need.Passes(
        {need.WINDOW: need.Expected(8, 1, need.Need(1.0), routing)}, need.Need(1.0), frozenset()
    )
    found = audit.audit(KERNEL.replace("TILES", tiles), expected).passes[need.WINDOW]
    (one,) = found.operations
    read = (matrices * touched or steps) * 2048 * 512 + (rows or steps * 16 * 2048)
    assert one.times == 4 and one.exact
    assert one.read / 4 / 2 == pytest.approx(read, rel=1e-6)
    assert one.written == 4 * 2 * 64 * 512
    assert one.cycles == 0 and found.grouped == one.read + one.written
    # Nothing known of routing: each row may have an expert of its own.
    blind = audit.audit(KERNEL.replace("TILES", tiles)).passes[need.WINDOW].operations[0]
    assert not blind.exact and blind.read > one.read


def test_experts_elsewhere_are_not_read():
    """Of 256 experts on 4 devices a device reads a quarter of those touched, for its own pairs."""
    whole, part = (grouped.Routing(Experts(256, 8, 512), 64, n) for n in (1, 4))
    assert part.touched == whole.touched / 4 and part.pairs == 64 * 8 / 4
